//! Reaching the pool.

use crate::process::remote::speech::{HANDSHAKE_LIMIT, Part, Preamble, Secret, keep_alive, opening, same};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long one address may take.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// Connects to the first address at which it is the pool that answers, as `greet` finds out.
pub(super) fn dial<T>(addresses: &[String], greet: impl Fn(TcpStream) -> io::Result<T>) -> io::Result<T> {
    let mut errors = Vec::new();
    for address in addresses {
        match resolve_and_connect(address).and_then(&greet) {
            Ok(greeted) => return Ok(greeted),
            Err(error) => errors.push(format!("{address}: {error}")),
        }
    }
    Err(io::Error::other(format!("cannot reach the pool at {}", errors.join(", at "))))
}

fn resolve_and_connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, DIAL_LIMIT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                stream.set_read_timeout(Some(HANDSHAKE_LIMIT))?;
                stream.set_write_timeout(Some(HANDSHAKE_LIMIT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects, and makes sure of each other.
pub(super) fn control(addresses: &[String], preamble: &Preamble) -> io::Result<TcpStream> {
    dial(addresses, |mut stream| {
        shake_hands(&mut stream, preamble, Part::Control)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    })
}

/// Another connection, to where the first one leads.
pub(super) fn data(control: &TcpStream, preamble: &Preamble) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&control.peer_addr()?, DIAL_LIMIT)?;
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    stream.set_read_timeout(Some(HANDSHAKE_LIMIT))?;
    shake_hands(&mut stream, preamble, Part::Data)?;
    // A worker blocks for as long as it takes.
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// The pool proves itself first, so that the token is told to nobody else.
pub(super) fn shake_hands(
    stream: &mut (impl Read + Write),
    preamble: &Preamble,
    part: Part,
) -> io::Result<()> {
    stream.write_all(&opening(&preamble.id, part))?;
    stream.flush()?;
    let mut answer: Secret = [0; 32];
    stream.read_exact(&mut answer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("the pool does not expect this worker (any more)"),
        _ => error,
    })?;
    if !same(&answer, &preamble.answer) {
        return Err(io::Error::other("what answers is not the pool"));
    }
    stream.write_all(&preamble.token)?;
    stream.flush()
}
