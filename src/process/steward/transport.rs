//! What a steward and its pool exchange bytes through, without blocking.

use crate::process::remote::speech::{Identity, Preamble};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

pub(super) enum Transport {
    Plain(TcpStream),
    Stdio {
        input: File,
        output: File,
    },
    #[cfg(feature = "remote-tls")]
    Tls(Box<super::super::remote::tls::FarStream>),
}

impl Transport {
    pub(super) fn stdio() -> io::Result<Transport> {
        let input = File::from(rustix::stdio::stdin().try_clone_to_owned()?);
        let output = File::from(rustix::stdio::stdout().try_clone_to_owned()?);
        rustix::io::ioctl_fionbio(&input, true)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        Ok(Transport::Stdio { input, output })
    }

    pub(super) fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(stream) => stream.read(bytes),
            Transport::Stdio { input, .. } => input.read(bytes),
            #[cfg(feature = "remote-tls")]
            Transport::Tls(stream) => stream.read(bytes),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(stream) => stream.write(bytes),
            Transport::Stdio { output, .. } => output.write(bytes),
            #[cfg(feature = "remote-tls")]
            Transport::Tls(stream) => stream.write(bytes),
        }
    }

    /// Passes on what it holds back itself; true when nothing is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        match self {
            #[cfg(feature = "remote-tls")]
            Transport::Tls(stream) => stream.pass_on(),
            _ => Ok(true),
        }
    }

    pub(super) fn wants_write(&self) -> bool {
        match self {
            #[cfg(feature = "remote-tls")]
            Transport::Tls(stream) => stream.wants_write(),
            _ => false,
        }
    }

    /// What becomes readable when something comes.
    pub(super) fn input(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Plain(stream) => stream.as_fd(),
            Transport::Stdio { input, .. } => input.as_fd(),
            #[cfg(feature = "remote-tls")]
            Transport::Tls(stream) => stream.as_fd(),
        }
    }

    /// What becomes writable when there is room.
    pub(super) fn output(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Stdio { output, .. } => output.as_fd(),
            _ => self.input(),
        }
    }

    /// The connection of the worker's own goes where this one leads; with others there is none.
    pub(super) fn plain(&self) -> Option<&TcpStream> {
        match self {
            Transport::Plain(stream) => Some(stream),
            _ => None,
        }
    }
}

#[cfg(feature = "remote-tls")]
pub(super) fn tls(addresses: &[String], identity: &Identity, preamble: &Preamble) -> io::Result<Transport> {
    use crate::process::remote::{speech::Part, tls::FarStream};
    super::dial::dial(addresses, |stream| {
        let mut stream = FarStream::open(stream, identity)?;
        super::dial::shake_hands(&mut stream, preamble, Part::Control)?;
        stream.stop_blocking()?;
        Ok(Transport::Tls(Box::new(stream)))
    })
}

#[cfg(not(feature = "remote-tls"))]
pub(super) fn tls(_: &[String], _: &Identity, _: &Preamble) -> io::Result<Transport> {
    Err(io::Error::other("the program was built without the feature `remote-tls`"))
}

/// Waits until one of these can be read from (or else written to); false when the time is up.
pub(super) fn wait(fds: &[(BorrowedFd<'_>, bool)], limit: Duration) -> io::Result<bool> {
    let flags = |reads| if reads { PollFlags::IN } else { PollFlags::OUT };
    let mut fds: Vec<_> = fds.iter().map(|(fd, reads)| PollFd::new(fd, flags(*reads))).collect();
    let limit = Timespec::try_from(limit).ok();
    match poll(&mut fds, limit.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
