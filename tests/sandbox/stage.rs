//! What escapes are tried on: files, listeners and processes outside of the sandbox.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// What only the test's own process has in its memory there.
pub(super) static SECRET: u64 = 0x5ec7_e700_5ec7_e700;

/// What a task has to know of a [`Host`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stage {
    pub(super) dir: PathBuf,
    pub(super) tcp: u16,
    pub(super) udp: u16,
    /// The process to be attacked.
    pub(super) target: i32,
    /// Where [`SECRET`] lies in the memory of the test's process.
    pub(super) secret_at: u64,
}

impl Stage {
    /// A file that no sandbox gives access to.
    pub(super) fn secret(&self) -> PathBuf {
        self.dir.join("secret")
    }

    /// A file that sandboxes let tasks read.
    pub(super) fn readable(&self) -> PathBuf {
        self.dir.join("readable")
    }

    /// A directory that no sandbox gives access to, with an empty one, `empty`, within.
    pub(super) fn theirs(&self) -> PathBuf {
        self.dir.join("theirs")
    }

    /// A directory that a sandbox may let tasks write to.
    pub(super) fn mine(&self) -> PathBuf {
        self.dir.join("mine")
    }

    pub(super) fn unix_stream(&self) -> PathBuf {
        self.dir.join("stream")
    }

    pub(super) fn unix_datagram(&self) -> PathBuf {
        self.dir.join("datagram")
    }

    /// The name of an abstract socket.
    pub(super) fn abstract_name(&self, kind: &str) -> String {
        format!("{}/{kind}", self.dir.display())
    }

    /// As a text of one line.
    pub(super) fn to_text(&self) -> String {
        let Stage { dir, tcp, udp, target, secret_at } = self;
        format!("{tcp} {udp} {target} {secret_at} {}", dir.display())
    }

    pub(super) fn from_text(text: &str) -> Stage {
        let mut words = text.splitn(5, ' ');
        let mut next = || words.next().unwrap();
        Stage {
            tcp: next().parse().unwrap(),
            udp: next().parse().unwrap(),
            target: next().parse().unwrap(),
            secret_at: next().parse().unwrap(),
            dir: next().into(),
        }
    }
}

/// The stage as the test itself has it.
pub(super) struct Host {
    pub(super) stage: Stage,
    dir: TempDir,
    tcp: TcpListener,
    udp: UdpSocket,
    streams: [UnixListener; 2],
    datagrams: [UnixDatagram; 2],
}

impl Host {
    pub(super) async fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let udp = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let stage = Stage {
            dir: dir.path().canonicalize().unwrap(),
            tcp: tcp.local_addr().unwrap().port(),
            udp: udp.local_addr().unwrap().port(),
            target: std::process::id() as i32,
            secret_at: (&raw const SECRET) as u64,
        };
        fs::write(stage.secret(), "secret").unwrap();
        fs::write(stage.readable(), "readable").unwrap();
        fs::create_dir_all(stage.theirs().join("empty")).unwrap();
        fs::write(stage.theirs().join("file"), "theirs").unwrap();
        fs::create_dir(stage.mine()).unwrap();
        fs::write(stage.mine().join("file"), "mine").unwrap();
        fs::copy("/bin/true", stage.mine().join("program")).unwrap();
        std::os::unix::fs::symlink("../secret", stage.mine().join("link")).unwrap();
        let named = |kind: &str| SocketAddr::from_abstract_name(stage.abstract_name(kind)).unwrap();
        let streams = [
            UnixListener::bind(stage.unix_stream()).unwrap(),
            UnixListener::bind_addr(&named("stream")).unwrap(),
        ];
        let datagrams = [
            UnixDatagram::bind(stage.unix_datagram()).unwrap(),
            UnixDatagram::bind_addr(&named("datagram")).unwrap(),
        ];
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        streams.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
        datagrams.iter().for_each(|datagram| datagram.set_nonblocking(true).unwrap());
        Host { stage, dir, tcp, udp, streams, datagrams }
    }

    /// All that an escape could have changed outside of `mine`.
    pub(super) fn look(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        look_at(self.dir.path(), &self.stage.mine(), &mut found);
        found
    }

    /// Whether anything has arrived at a socket that no sandbox gives access to.
    pub(super) fn heard_by_unix_socket(&self) -> bool {
        self.streams.iter().any(|stream| stream.accept().is_ok())
            || self.datagrams.iter().any(|datagram| datagram.recv(&mut [0; 8]).is_ok())
    }

    /// Whether anything has arrived by way of the network.
    pub(super) fn heard_by_network(&self) -> bool {
        let tcp = self.tcp.accept().is_ok();
        let udp = self.udp.recv(&mut [0; 8]).is_ok();
        tcp || udp
    }
}

fn look_at(path: &Path, but: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let meta = fs::symlink_metadata(path).unwrap();
    let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
    let text = format!("{:o} {} {} {times:?} {}", meta.mode(), meta.uid(), meta.gid(), meta.nlink());
    found.insert(path.to_owned(), text);
    if meta.is_dir() && path != but {
        for entry in fs::read_dir(path).unwrap() {
            look_at(&entry.unwrap().path(), but, found);
        }
    }
    if meta.is_file() {
        found.insert(path.join("content"), fs::read_to_string(path).unwrap());
    }
}
