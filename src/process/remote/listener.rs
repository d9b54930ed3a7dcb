//! Where workers connect to, and how they prove that they are expected.

use super::not_ready;
use super::speech::{HANDSHAKE_LIMIT, OPENING, Part, Route, Secret, keep_alive, read_opening, same};
use crate::process::launcher::Launcher;
#[cfg(feature = "remote-tls")]
use crate::process::start::start_error;
use crate::task::PoolError;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

/// How many connections may be there that have not proven themselves.
const STRANGERS: usize = 256;

/// How long to wait when a connection cannot be accepted, mostly for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection that has proven itself.
pub(super) enum Connected {
    Plain(TcpStream),
    #[cfg(feature = "remote-tls")]
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// What one worker is known by.
pub(super) struct Ticket {
    pub(super) id: Secret,
    pub(super) answer: Secret,
    pub(super) token: Secret,
}

impl Ticket {
    pub(super) fn new() -> io::Result<Ticket> {
        Ok(Ticket { id: random()?, answer: random()?, token: random()? })
    }
}

fn random() -> io::Result<Secret> {
    let mut secret = [0; 32];
    let mut filled = 0;
    while filled < secret.len() {
        filled += rustix::rand::getrandom(&mut secret[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(secret)
}

/// Listens for workers.
pub(super) struct Listener {
    expected: Arc<Waiting>,
    addresses: Vec<String>,
    accepting: Mutex<Option<JoinHandle<()>>>,
    #[cfg(feature = "remote-tls")]
    authority: Option<Arc<super::tls::Authority>>,
}

/// Who is expected.
#[derive(Default)]
struct Waiting(Mutex<HashMap<Secret, Entry>>);

struct Entry {
    answer: Secret,
    token: Secret,
    /// Each part comes once.
    control: Option<mpsc::Sender<Connected>>,
    data: Option<mpsc::Sender<Connected>>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<Secret, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to say to a stranger that gives this number.
    fn answer(&self, id: &Secret) -> Option<Secret> {
        self.lock().get(id).map(|entry| entry.answer)
    }

    /// Who waits for this connection, if the token is right. It is of no use a second time.
    fn admit(&self, id: &Secret, token: &Secret, part: Part) -> Option<mpsc::Sender<Connected>> {
        let mut waiting = self.lock();
        let entry = waiting.get_mut(id).filter(|entry| same(&entry.token, token))?;
        match part {
            Part::Control => entry.control.take(),
            // Not before the other one.
            Part::Data => entry.data.take_if(|_| entry.control.is_none()),
        }
    }
}

/// A worker that is expected; forgotten when dropped.
pub(super) struct Expected {
    id: Secret,
    waiting: Arc<Waiting>,
    control: mpsc::Receiver<Connected>,
    data: mpsc::Receiver<Connected>,
}

impl Expected {
    /// Waits for its connection.
    pub(super) async fn next(&mut self, part: Part) -> Result<Connected, PoolError> {
        let receiver = match part {
            Part::Control => &mut self.control,
            Part::Data => &mut self.data,
        };
        let gone = || not_ready("the connection of a worker was lost".into());
        tokio::time::timeout(limit_of(part), receiver.recv()).await.ok().flatten().ok_or_else(gone)
    }
}

/// The control connection takes as long as a start may.
fn limit_of(part: Part) -> Duration {
    match part {
        Part::Control => Duration::MAX,
        Part::Data => HANDSHAKE_LIMIT,
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id);
    }
}

impl Listener {
    pub(super) fn open(launcher: &Launcher, runtime: &Handle) -> Result<Listener, PoolError> {
        let bind = launcher.bind;
        let explain =
            |error| PoolError::Start { reason: format!("listening on {bind} for workers: {error}") };
        let listener = std::net::TcpListener::bind(bind).map_err(explain)?;
        listener.set_nonblocking(true).map_err(explain)?;
        let bound = listener.local_addr().map_err(explain)?;
        let _entered = runtime.enter();
        let listener = TcpListener::from_std(listener).map_err(explain)?;
        let expected = Arc::new(Waiting::default());
        #[cfg(feature = "remote-tls")]
        let authority = match launcher.encrypted {
            true => Some(Arc::new(super::tls::Authority::new().map_err(start_error)?)),
            false => None,
        };
        let greeter = Greeter {
            waiting: expected.clone(),
            #[cfg(feature = "remote-tls")]
            authority: authority.clone(),
        };
        let accepting = Mutex::new(Some(runtime.spawn(accept(listener, Arc::new(greeter)))));
        Ok(Listener {
            expected,
            addresses: addresses(launcher, bound),
            accepting,
            #[cfg(feature = "remote-tls")]
            authority,
        })
    }

    pub(super) fn expect(&self, ticket: &Ticket) -> Expected {
        let ((control, control_receiver), (data, data_receiver)) = (mpsc::channel(1), mpsc::channel(1));
        let Ticket { id, answer, token } = *ticket;
        let entry = Entry { answer, token, control: Some(control), data: Some(data) };
        self.expected.lock().insert(id, entry);
        Expected { id, waiting: self.expected.clone(), control: control_receiver, data: data_receiver }
    }

    /// How a worker gets here.
    pub(super) fn route(&self) -> Result<Route, PoolError> {
        let addresses = self.addresses.clone();
        #[cfg(feature = "remote-tls")]
        if let Some(authority) = &self.authority {
            let identity = authority.identity().map_err(start_error)?;
            return Ok(Route::Tls { addresses, identity });
        }
        Ok(Route::Dial { addresses })
    }

    pub(super) async fn close(&self) {
        let accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(accepting) = accepting {
            accepting.abort();
            let _ = accepting.await;
        }
    }
}

impl Drop for Listener {
    /// A pool that did not come to be after all is never stopped.
    fn drop(&mut self) {
        let accepting = self.accepting.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(accepting) = accepting {
            accepting.abort();
        }
    }
}

/// What workers are told to dial.
fn addresses(launcher: &Launcher, bound: SocketAddr) -> Vec<String> {
    let with_port = |address: &String| match address.parse::<std::net::IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, bound.port()).to_string(),
        Err(_) if address.contains(':') => address.clone(),
        Err(_) => format!("{address}:{}", bound.port()),
    };
    if !launcher.advertised.is_empty() {
        return launcher.advertised.iter().map(with_port).collect();
    }
    if !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    own_address().into_iter().chain([name]).map(|address| with_port(&address)).collect()
}

/// The address that this machine uses towards others. Nothing is sent.
fn own_address() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // An address that is set aside for documentation.
    socket.connect("192.0.2.1:9").ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback() && !own.is_unspecified()).then(|| own.to_string())
}

/// Sees to those who connect.
struct Greeter {
    waiting: Arc<Waiting>,
    #[cfg(feature = "remote-tls")]
    authority: Option<Arc<super::tls::Authority>>,
}

async fn accept(listener: TcpListener, greeter: Arc<Greeter>) {
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let mut greetings = tokio::task::JoinSet::new();
    loop {
        // It is never closed.
        let Ok(permit) = strangers.clone().acquire_owned().await else { return };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    greetings.spawn(greet(stream, greeter.clone(), permit));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            Some(_) = greetings.join_next() => {}
        }
    }
}

/// Passes on a connection if it proves itself in time.
async fn greet(stream: TcpStream, greeter: Arc<Greeter>, permit: OwnedSemaphorePermit) {
    if let Ok(Ok(Some((connected, wanted)))) =
        tokio::time::timeout(HANDSHAKE_LIMIT, greeter.prove(stream)).await
    {
        // Whoever waited may have stopped.
        let _ = wanted.try_send(connected);
    }
    drop(permit);
}

impl Greeter {
    async fn prove(&self, mut stream: TcpStream) -> io::Result<Option<(Connected, mpsc::Sender<Connected>)>> {
        stream.set_nodelay(true)?;
        keep_alive(&stream)?;
        #[cfg(feature = "remote-tls")]
        if let Some(authority) = &self.authority {
            let mut stream = authority.accept(stream).await?;
            let wanted = self.examine(&mut stream).await?;
            return Ok(wanted.map(|wanted| (Connected::Tls(Box::new(stream)), wanted)));
        }
        let wanted = self.examine(&mut stream).await?;
        Ok(wanted.map(|wanted| (Connected::Plain(stream), wanted)))
    }

    async fn examine(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<Option<mpsc::Sender<Connected>>> {
        let mut opening = [0; OPENING];
        stream.read_exact(&mut opening).await?;
        let Some((id, part)) = read_opening(&opening) else { return Ok(None) };
        let Some(answer) = self.waiting.answer(&id) else { return Ok(None) };
        stream.write_all(&answer).await?;
        stream.flush().await?;
        let mut token = [0; 32];
        stream.read_exact(&mut token).await?;
        Ok(self.waiting.admit(&id, &token, part))
    }
}

/// Has strangers knock, one after the other, at a listener that expects one worker; how often somebody
/// was let in.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn read_knocks(bytes: &[u8]) -> usize {
    let ticket = Ticket { id: [1; 32], answer: [2; 32], token: [3; 32] };
    let waiting = Waiting::default();
    let ((control, _control), (data, _data)) = (mpsc::channel(1), mpsc::channel(1));
    let entry =
        Entry { answer: ticket.answer, token: ticket.token, control: Some(control), data: Some(data) };
    waiting.lock().insert(ticket.id, entry);
    let mut admitted = Vec::new();
    for knock in bytes.chunks(OPENING + size_of::<Secret>()) {
        let Some((opening, token)) = knock.split_first_chunk::<OPENING>() else { break };
        let Some((id, part)) = read_opening(opening) else { continue };
        assert_eq!(opening[..], super::speech::opening(&id, part));
        assert_eq!(waiting.answer(&id).is_some(), id == ticket.id);
        let Ok(token) = Secret::try_from(token) else { break };
        if waiting.admit(&id, &token, part).is_some() {
            assert!(id == ticket.id && token == ticket.token);
            admitted.push(part);
        }
    }
    assert!(matches!(admitted[..], [] | [Part::Control] | [Part::Control, Part::Data]));
    admitted.len()
}
