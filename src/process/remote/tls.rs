//! Encryption: each pool is an authority of its own, and both ends show a certificate of it.

use super::speech::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// What the pool is called in its certificate: who connects looks for just that.
const POOL: &str = "pool.procession.internal";

/// What a worker is called.
const WORKER: &str = "worker.procession.internal";

/// Vouches for the pool and its workers, and for nobody else.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl Authority {
    pub(super) fn new() -> io::Result<Authority> {
        let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "procession");
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(io::Error::other)?;
        let own = issue(&issuer, POOL, ExtendedKeyUsagePurpose::ServerAuth)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(
            roots(issuer.der().to_vec())?.into(),
            provider.clone(),
        );
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier.build().map_err(io::Error::other)?)
            .with_single_cert(vec![CertificateDer::from(own.certificate)], key_of(own.key))
            .map_err(io::Error::other)?;
        Ok(Authority { issuer, acceptor: Arc::new(config).into() })
    }

    /// What a worker needs to prove itself, and to know the pool.
    pub(super) fn identity(&self) -> io::Result<Identity> {
        issue(&self.issuer, WORKER, ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(super) async fn accept(
        &self,
        stream: tokio::net::TcpStream,
    ) -> io::Result<tokio_rustls::server::TlsStream<tokio::net::TcpStream>> {
        self.acceptor.accept(stream).await
    }
}

fn issue(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
) -> io::Result<Identity> {
    let mut params = CertificateParams::new(vec![name.to_string()]).map_err(io::Error::other)?;
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = params.signed_by(&key, issuer).map_err(io::Error::other)?;
    Ok(Identity {
        authority: issuer.der().to_vec(),
        certificate: certificate.der().to_vec(),
        key: key.serialize_der(),
    })
}

fn roots(authority: Vec<u8>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority)).map_err(io::Error::other)?;
    Ok(roots)
}

fn key_of(key: Vec<u8>) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key).into()
}

/// A worker's end, which blocks until told otherwise.
pub(in crate::process) struct FarStream {
    socket: TcpStream,
    session: ClientConnection,
}

impl FarStream {
    /// Connects, and makes sure that it is the pool.
    pub(in crate::process) fn open(mut socket: TcpStream, identity: &Identity) -> io::Result<FarStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots(identity.authority.clone())?)
            .with_client_auth_cert(
                vec![CertificateDer::from(identity.certificate.clone())],
                key_of(identity.key.clone()),
            )
            .map_err(io::Error::other)?;
        let name = ServerName::try_from(POOL).map_err(io::Error::other)?;
        let mut session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(FarStream { socket, session })
    }

    pub(in crate::process) fn stop_blocking(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket)?;
        }
        self.socket.set_nonblocking(true)
    }

    /// Sends what is encrypted already; true when nothing is left.
    pub(in crate::process) fn pass_on(&mut self) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    pub(in crate::process) fn wants_write(&self) -> bool {
        self.session.wants_write()
    }
}

impl Read for FarStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(bytes) {
                // A peer that hangs up without a word is gone all the same.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            if self.session.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            self.session.process_new_packets().map_err(io::Error::other)?;
        }
    }
}

impl Write for FarStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nothing is taken while there is much that was not passed on.
        if !self.pass_on()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = self.session.writer().write(bytes)?;
        self.pass_on()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on().map(drop)
    }
}

impl AsFd for FarStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
