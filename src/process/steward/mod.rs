//! The steward: a small process on the machine of a worker, which stands in for the pool there.
//!
//! It is what a launcher starts. It reads from its standard input how to reach the pool and how to
//! prove who it is, connects, forks the worker, and from then on passes on what the worker prints,
//! reports how it ended, and ends it when the pool says so or is not to be heard of any more. It has
//! a single thread for all its life, and nothing in it waits for anything but its one `poll`.

mod dial;
mod errand;
mod household;
mod transport;

use super::child::{Duties, end_with, run_preload};
use super::remote::speech::{
    Command, Configuration, Frame, Frames, MAGIC, MAX_PREAMBLE, Preamble, Refusal, Report, Route, cut,
    message,
};
use crate::sys::{child, entry, fault, fds, signals};
use crate::wire::{PROTOCOL, build_identity};
use errand::Errand;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use transport::Transport;

/// The environment variable has this value in a process that is to be a steward.
pub(crate) const STEWARD: &str = "steward";

/// Serves as a steward; `work` is what its worker then does.
pub(crate) fn serve_as_steward(work: fn(Duties) -> io::Result<()>) -> ! {
    end_with(STEWARD, steward(work))
}

fn steward(work: fn(Duties) -> io::Result<()>) -> io::Result<()> {
    signals::leave_to_the_program();
    // It writes to pipes of the worker, who may die at any time, and has its end to tell then.
    fault::ignore_sigpipe();
    fds::close_all_above_stdio();
    let _ = rustix::thread::set_name(c"steward");
    let preamble = read_preamble(io::stdin().lock())?;
    let mut post = Post::open(&preamble)?;
    let configuration = post.await_start()?;
    let household = match prepare(configuration, &preamble).and_then(|errand| errand.start(&post, work)) {
        Ok(household) => household,
        Err(refusal) => {
            post.send(&Report::NotStarted(refusal))?;
            return post.flush();
        }
    };
    post.send(&Report::Started { pid: household.pid() })?;
    household.keep(&mut post)
}

/// Reads how to reach the pool, byte by byte where it must: with [`Route::Stdio`] commands follow.
fn read_preamble(mut input: impl Read) -> io::Result<Preamble> {
    let mut start = [0; MAGIC.len() + 4];
    input.read_exact(&mut start)?;
    let (magic, length) = start.split_at(MAGIC.len());
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if magic != MAGIC || length > MAX_PREAMBLE {
        return Err(io::Error::other("standard input is not from a pool of this version"));
    }
    let mut preamble = vec![0; length];
    input.read_exact(&mut preamble)?;
    postcard::from_bytes(&preamble).map_err(io::Error::other)
}

/// Puts the configuration in place, as far as that is for the steward to do.
fn prepare(configuration: Configuration, preamble: &Preamble) -> Result<Errand<'_>, Refusal> {
    let Configuration { protocol, build, depth, mut limits, stdout, stderr, preload, .. } = configuration;
    if protocol != PROTOCOL || build != build_identity() {
        return Err(Refusal::OtherBuild);
    }
    entry::set_environment(configuration.clear_env, &configuration.env);
    if let Some(directory) = &configuration.current_dir {
        rustix::process::chdir(directory.as_os_str()).map_err(|error| {
            Refusal::Other(cut(format!("going to {}: {error}", directory.to_string_lossy())))
        })?;
    }
    if let Some(sandbox) = &mut limits.sandbox {
        *sandbox = sandbox.resolved(None).map_err(|reason| Refusal::NotConfined(cut(reason)))?;
    }
    if let Some((shim, arguments)) = preload {
        run_preload(shim, arguments).map_err(|reason| Refusal::Preload(cut(reason)))?;
    }
    Ok(Errand { preamble, depth, limits, stdout, stderr })
}

/// The connection with the pool, as messages.
struct Post {
    transport: Transport,
    frames: Frames,
    outgoing: Vec<u8>,
    /// How much of that is written.
    written: usize,
    /// Held open by the launcher as long as it lives, unless frames come through it.
    stdin: Option<OwnedFd>,
    /// For how long nothing may be heard.
    silence: Duration,
    heard: Instant,
    next_beat: Instant,
    /// There is more to be read that no `poll` tells of.
    has_more: bool,
}

impl Post {
    fn open(preamble: &Preamble) -> io::Result<Post> {
        let transport = match &preamble.route {
            Route::Dial { addresses } => Transport::Plain(dial::control(addresses, preamble)?),
            Route::Tls { addresses, identity } => transport::tls(addresses, identity, preamble)?,
            Route::Stdio => Transport::stdio()?,
        };
        let stdin = match transport {
            Transport::Stdio { .. } => None,
            _ => Some(rustix::stdio::stdin().try_clone_to_owned()?),
        };
        leave_stdio()?;
        let now = Instant::now();
        let mut post = Post {
            transport,
            // The pool is trusted, and its preload may have much for an argument.
            frames: Frames::new(usize::MAX),
            outgoing: Vec::new(),
            written: 0,
            stdin,
            silence: preamble.silence,
            heard: now,
            next_beat: now,
            has_more: false,
        };
        let host = cut(rustix::system::uname().nodename().to_string_lossy());
        post.send(&Report::Hello { protocol: PROTOCOL, build: build_identity(), host })?;
        Ok(post)
    }

    /// Waits for the first command.
    fn await_start(&mut self) -> io::Result<Configuration> {
        loop {
            self.flush()?;
            match self.next()? {
                Some(Frame::Message(Command::Start(configuration))) => return Ok(*configuration),
                Some(Frame::Message(Command::Beat | Command::Look)) => continue,
                Some(_) => return Err(io::Error::other("was told otherwise than to start first")),
                None => {}
            }
            transport::wait(&[(self.transport.input(), true)], self.silence)?;
            if !self.read()? && self.heard.elapsed() > self.silence {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn send(&mut self, report: &Report) -> io::Result<()> {
        self.outgoing.extend(message(report)?);
        Ok(())
    }

    /// The next frame, if it has come.
    fn next(&mut self) -> io::Result<Option<Frame<Command>>> {
        self.frames.next()
    }

    /// Takes in what has come; whether there was anything. An error when there will be no more.
    fn read(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 64 * 1024];
        let mut any = false;
        self.has_more = false;
        loop {
            match self.transport.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::BrokenPipe.into()),
                Ok(read) => {
                    self.frames.add(&bytes[..read]);
                    self.heard = Instant::now();
                    any = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            // For others to have their turn.
            if self.frames.has_much() {
                self.has_more = true;
                return Ok(true);
            }
        }
    }

    /// Writes what it can; true when nothing is left.
    fn write(&mut self) -> io::Result<bool> {
        while self.written < self.outgoing.len() {
            match self.transport.write(&self.outgoing[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outgoing.clear();
        self.written = 0;
        self.transport.flush()
    }

    /// Writes all there is, for as long as the pool takes any.
    fn flush(&mut self) -> io::Result<()> {
        while !self.write()? {
            if !transport::wait(&[(self.transport.output(), false)], self.silence)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    /// Waits until the pool has hung up, which it does when it has read everything.
    fn await_end(&mut self, limit: Duration) -> io::Result<()> {
        let until = Instant::now() + limit;
        while self.read().is_ok() {
            while self.next()?.is_some() {}
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !transport::wait(&[(self.transport.input(), true)], left)? {
                break;
            }
        }
        Ok(())
    }

    fn is_stuck(&self) -> bool {
        !self.outgoing.is_empty() || self.transport.wants_write()
    }

    /// Says that this is still there, when it is time.
    fn beat(&mut self) -> io::Result<()> {
        if Instant::now() >= self.next_beat {
            // Whatever is on its way already says as much.
            if !self.is_stuck() {
                self.send(&Report::Beat)?;
            }
            self.next_beat = Instant::now() + self.silence / 4;
        }
        Ok(())
    }
}

/// What the preload function reads is nothing that is for the steward, and what it prints goes where the
/// steward's own words go: neither is to be mixed up with what the pool says and hears.
fn leave_stdio() -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok(())
}

/// Ends this process at once if it is a forked worker of a steward that is gone.
fn die_with(steward: rustix::process::Pid) {
    if !child::die_with_parent(steward) {
        child::exit_now(1);
    }
}

/// Reads what comes as what a steward is started with, and what follows it, in pieces of this length; in
/// words, what it says.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn read_as_steward(bytes: &[u8], piece: usize) -> Vec<String> {
    let mut input = bytes;
    if let Err(error) = read_preamble(&mut input) {
        return vec![error.to_string()];
    }
    crate::process::remote::speech::read_in_pieces::<Command>(input, piece, usize::MAX)
}
