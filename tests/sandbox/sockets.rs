//! Escapes over sockets.

use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

use procession::{Builder, StartMethod};

use super::Grant::Network;
use super::{Escape, Host, Outcome, Stage, attempt, caged, check, escape, generous, names, strict, told};

both! { nobody_is_reached, everybody_is_reached_without_a_sandbox, only_the_network_can_be_allowed }

async fn nobody_is_reached(method: StartMethod) {
    super::are_refused(method, ESCAPES).await;
}

async fn everybody_is_reached_without_a_sandbox(method: StartMethod) {
    super::work_without_a_sandbox(method, ESCAPES).await;
}

/// The same, seen from the other end.
async fn only_the_network_can_be_allowed(builder: Builder) {
    let host = Host::new().await;
    let all = names(ESCAPES, |_| true);
    let Some(pool) = caged(builder.clone(), strict(&host.stage)) else { return };
    pool.submit(attempt, (all.clone(), host.stage.clone())).await.unwrap();
    pool.shutdown().await;
    assert!(!host.heard_by_network() && !host.heard_by_unix_socket());

    let pool = caged(builder.clone(), generous(&host.stage)).unwrap();
    pool.submit(attempt, (all.clone(), host.stage.clone())).await.unwrap();
    pool.shutdown().await;
    assert!(host.heard_by_network() && !host.heard_by_unix_socket());

    let pool = builder.build().unwrap();
    pool.submit(attempt, (all, host.stage.clone())).await.unwrap();
    pool.shutdown().await;
    assert!(host.heard_by_network() && host.heard_by_unix_socket());
}

pub(super) static ESCAPES: &[Escape] = &[
    escape("connect by TCP", |stage| told(TcpStream::connect(("127.0.0.1", stage.tcp)))).granted_by(Network),
    escape("listen by TCP", |_| told(TcpListener::bind(("127.0.0.1", 0)))).granted_by(Network),
    escape("send by UDP", send_by_udp).granted_by(Network),
    escape("connect to a Unix socket", |stage| told(UnixStream::connect(stage.unix_stream()))),
    escape("connect to an abstract socket", connect_to_abstract),
    escape("listen on an abstract socket", |stage| {
        told(UnixListener::bind_addr(&named(stage, "mine").map_err(|_| libc::EIO)?))
    }),
    escape("send to a Unix socket", |stage| {
        told(UnixDatagram::unbound().and_then(|from| from.send_to(b"hello", stage.unix_datagram())))
    }),
    escape("send to a Unix socket from a pair", |stage| {
        told(UnixDatagram::pair().and_then(|(from, _to)| from.send_to(b"hello", stage.unix_datagram())))
    }),
    escape("send to an abstract socket from a pair", send_to_abstract),
    escape("send to a Unix socket from a raw pair", |stage| raw_pair(stage, libc::SOCK_RAW)),
    escape("send to a Unix socket from a pair that does not block", |stage| {
        raw_pair(stage, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK)
    }),
    escape("talk to the kernel", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    escape("speak a rare protocol", |_| socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE))
        .needs("UDP-Lite"),
    escape("speak the protocol below", |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP))
        .needs("CAP_NET_RAW"),
    escape("capture packets", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0)).needs("CAP_NET_RAW"),
    escape("use the kernel's ciphers", |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)).needs("AF_ALG"),
    escape("talk to the hypervisor", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)).needs("AF_VSOCK"),
];

fn named(stage: &Stage, kind: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(stage.abstract_name(kind))
}

fn send_by_udp(stage: &Stage) -> Outcome {
    let to = ("127.0.0.1", stage.udp);
    told(UdpSocket::bind(("127.0.0.1", 0)).and_then(|from| from.send_to(b"hello", to)))
}

fn connect_to_abstract(stage: &Stage) -> Outcome {
    told(named(stage, "stream").and_then(|address| UnixStream::connect_addr(&address)))
}

fn send_to_abstract(stage: &Stage) -> Outcome {
    let address = named(stage, "datagram").map_err(|_| libc::EIO)?;
    told(UnixDatagram::pair().and_then(|(from, _to)| from.send_to_addr(b"hello", &address)))
}

fn raw_pair(stage: &Stage, kind: i32) -> Outcome {
    use std::os::fd::{FromRawFd, OwnedFd};
    let mut fds = [0; 2];
    // SAFETY: there is room for two descriptors, which are then for us alone.
    let [from, _to] = unsafe {
        check(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()))?;
        fds.map(|fd| OwnedFd::from_raw_fd(fd))
    };
    told(UnixDatagram::from(from).send_to(b"hello", stage.unix_datagram()))
}

fn socket(family: i32, kind: i32, protocol: i32) -> Outcome {
    // SAFETY: it takes no pointers; what is opened is closed with the process.
    check(unsafe { libc::socket(family, kind, protocol) })
}
