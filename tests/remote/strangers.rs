//! Whoever else connects to a pool, or is connected to it by mistake.

use super::common::{eventually, helping};
use super::stage::Stage;
use procession::{Launcher, PoolError, TaskError};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

ways! {
    a_wrong_token_is_turned_away: command command_tls;
    a_token_is_of_no_use_a_second_time: command;
    what_is_not_the_pool_is_told_no_token: command;
    an_address_that_leads_elsewhere_is_passed_over: command command_tls;
    strangers_get_nothing_and_hold_up_nobody: command command_tls;
    another_build_is_refused: command slurm;
    a_preamble_is_in_no_argument_and_no_environment: command;
}

#[test]
fn without_a_certificate_nobody_is_heard() {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    /// Somebody who does not care whom he talks to.
    #[derive(Debug)]
    struct Anybody;

    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }

    /// With a certificate that it has made itself, or with none.
    fn attempt(address: SocketAddr, with_one: bool) -> std::io::Result<usize> {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(std::sync::Arc::new(Anybody));
        let config = match with_one {
            false => config.with_no_client_auth(),
            true => {
                let own = rcgen::generate_simple_self_signed(["worker.procession.internal".into()]).unwrap();
                let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
                config.with_client_auth_cert(vec![own.cert.der().clone()], key.into()).unwrap()
            }
        };
        let name = "pool.procession.internal".try_into().unwrap();
        let session = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut stream = rustls::StreamOwned::new(session, TcpStream::connect(address)?);
        stream.write_all(&[0; 41])?;
        stream.read(&mut [0; 32])
    }

    super::stage::play(super::stage::Way::command_tls, async |stage| {
        let [port] = super::servers::free_ports();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let pool = stage.builder().launcher(stage.launcher().bind(address)).build().unwrap();
        assert_eq!(pool.submit(|| 5, ()).await.unwrap(), 5);
        for with_one in [false, true] {
            let attempt = tokio::task::spawn_blocking(move || attempt(address, with_one)).await.unwrap();
            let error = attempt.unwrap_err().to_string();
            assert!(error.contains("ertificate") || error.contains("UnknownCA"), "{error}");
        }
        pool.shutdown().await;
    });
}

/// A launcher that has its preamble changed on the way.
fn tampering(stage: &Stage, how: &str) -> Launcher {
    let own = std::env::current_exe().unwrap();
    let prefix = ["env", &format!("PROCESSION_TEST_HELPER={how}"), own.to_str().unwrap()]
        .map(str::to_owned)
        .into_iter()
        .chain(
            ["--exact", "strangers::tampers", "--ignored", "--nocapture", "--test-threads=1"].map(Into::into),
        );
    let launcher = Launcher::command(prefix).bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    launcher.encrypted(stage.way == super::stage::Way::command_tls)
}

/// The preamble is a mark of 8 bytes, a length of 4, then who it is for, what the pool answers and what
/// proves the worker, of 32 bytes each.
const ID: usize = 12;
const ANSWER: usize = ID + 32;
const TOKEN: usize = ANSWER + 32;

#[test]
#[ignore = "a program for the tests around it"]
fn tampers() {
    let Some(how) = helping() else { return };
    let mut start = [0; 12];
    std::io::stdin().read_exact(&mut start).unwrap();
    let length = u32::from_le_bytes(start[8..].try_into().unwrap()) as usize;
    let mut preamble = vec![0; length];
    std::io::stdin().read_exact(&mut preamble).unwrap();
    preamble.splice(..0, start);
    match how.as_str() {
        "token" => preamble[TOKEN + 31] ^= 1,
        "answer" => preamble[ANSWER] ^= 1,
        _ => {}
    }
    let words: Vec<String> = std::env::args().collect();
    let at = words.iter().rposition(|word| word == "env").unwrap();
    let run = || {
        let mut child =
            Command::new(&words[at]).args(&words[at + 1..]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(&preamble).unwrap();
        child
    };
    let mut steward = run();
    if how == "twice" {
        // By then the first one has been let in.
        let second = run().wait_with_output_of_end();
        eprintln!("the second one ended with {second}");
    }
    let mut stdin = steward.stdin.take().unwrap();
    std::thread::spawn(move || std::io::copy(&mut std::io::stdin(), &mut stdin));
    steward.wait().unwrap();
}

trait End {
    fn wait_with_output_of_end(self) -> String;
}

impl End for std::process::Child {
    fn wait_with_output_of_end(mut self) -> String {
        let stdin = self.stdin.take();
        let status = self.wait().unwrap();
        drop(stdin);
        status.to_string()
    }
}

async fn a_wrong_token_is_turned_away(stage: &mut Stage) {
    let launcher = tampering(stage, "token");
    let pool = stage.builder().workers(1).launcher(launcher).build().unwrap();
    let error = pool.submit(|| 5, ()).await.unwrap_err();
    assert_matches!(&error, TaskError::PoolBroken(PoolError::NotReady { .. }));
    pool.shutdown().await;
    // Nothing else is wrong with that way.
    let pool = stage.builder().workers(1).launcher(tampering(stage, "nothing")).build().unwrap();
    assert_eq!(pool.submit(|| 5, ()).await.unwrap(), 5);
    pool.shutdown().await;
}

async fn a_token_is_of_no_use_a_second_time(stage: &mut Stage) {
    let pool = stage.builder().workers(1).launcher(tampering(stage, "twice")).build().unwrap();
    // One of the two was let in, whichever was first, and it works.
    assert_eq!(pool.submit(|| 5, ()).await.unwrap(), 5);
    let stewards = || {
        let ours = super::common::descendants(std::process::id());
        ours.iter().filter(|process| process.name == "steward" && process.state != 'Z').count()
    };
    eventually("the other one has ended", || stewards() == 1).await;
    pool.shutdown().await;
}

/// Something else has taken the pool's port. The steward says who it is, and nothing more.
async fn what_is_not_the_pool_is_told_no_token(stage: &mut Stage) {
    let impostor = TcpListener::bind("127.0.0.1:0").unwrap();
    let launcher = stage.launcher().advertise(impostor.local_addr().unwrap().to_string());
    let pool = stage.builder().workers(1).launcher(launcher).build().unwrap();
    let heard = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = impostor.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut opening = [0; 41];
        stream.read_exact(&mut opening).unwrap();
        stream.write_all(&[7; 32]).unwrap();
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = stream.read_to_end(&mut rest);
        rest
    });
    let error = pool.submit(|| 5, ()).await.unwrap_err().to_string();
    assert!(error.contains("is not the pool") || error.contains("cannot reach"), "{error}");
    assert_eq!(heard.await.unwrap(), b"");
    pool.shutdown().await;
}

/// At the first address there is something else. The second is right.
async fn an_address_that_leads_elsewhere_is_passed_over(stage: &mut Stage) {
    let impostor = TcpListener::bind("127.0.0.1:0").unwrap();
    let [port] = super::servers::free_ports();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let elsewhere = impostor.local_addr().unwrap().to_string();
    let launcher = stage.launcher().bind(address).advertise(elsewhere).advertise(address.to_string());
    let pool = stage.builder().workers(1).launcher(launcher).build().unwrap();
    let heard = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = impostor.accept().unwrap();
        stream.write_all(&[7; 32]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_eq!(pool.submit(|| 5, ()).await.unwrap(), 5);
    heard.await.unwrap();
    pool.shutdown().await;
}

async fn strangers_get_nothing_and_hold_up_nobody(stage: &mut Stage) {
    let [port] = super::servers::free_ports();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let pool = stage.builder().launcher(stage.launcher().bind(address)).build().unwrap();
    // Some say nothing, some say what makes no sense, some what only looks like it.
    let strangers: Vec<_> = (0..100_u8)
        .map(|n| {
            let mut stream = TcpStream::connect(address).unwrap();
            let words = [
                &b""[..],
                b"GET / HTTP/1.1\r\n\r\n",
                &[n; 100],
                b"prcsn-1\n01234567890123456789012345678901\x01",
            ];
            let _ = stream.write_all(words[usize::from(n) % 4]);
            stream
        })
        .collect();
    assert_eq!(pool.submit(|| 5, ()).await.unwrap(), 5);
    let heard = tokio::task::spawn_blocking(move || {
        let mut heard = Vec::new();
        for (n, mut stream) in strangers.into_iter().enumerate().filter(|(n, _)| n % 4 == 3) {
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut words = Vec::new();
            let _ = stream.read_to_end(&mut words);
            // TLS says what is wrong in 7 bytes.
            words.truncate(words.len().saturating_sub(7));
            heard.push((n, words));
        }
        heard
    });
    assert!(heard.await.unwrap().iter().all(|(_, words)| words.is_empty()));
    pool.shutdown().await;
    assert!(TcpStream::connect(address).is_err(), "it still listens");
}

/// A copy of this program with another identity.
async fn another_build_is_refused(stage: &mut Stage) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    let mut bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    // The build-id is behind its name in a note of its own, if the linker wrote one.
    let note = [4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0];
    let at = bytes.windows(note.len()).position(|window| window == note);
    if let Some(at) = at {
        bytes[at + note.len()] ^= 0xff;
    }
    std::fs::write(&program, bytes).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    let pool = stage.builder().launcher(stage.launcher().program(&program)).build().unwrap();
    let error = pool.submit(|| 5, ()).await.unwrap_err();
    assert_matches!(error, TaskError::PoolBroken(PoolError::BuildMismatch));
    pool.shutdown().await;
}

async fn a_preamble_is_in_no_argument_and_no_environment(stage: &mut Stage) {
    let pool = stage.one_worker();
    let pid = pool.submit(std::process::id, ()).await.unwrap();
    let steward = super::common::parent_of(pid).unwrap();
    for pid in [pid, steward] {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let own = std::env::current_exe().unwrap();
        assert_eq!(String::from_utf8(arguments).unwrap().trim_end_matches('\0'), own.to_str().unwrap());
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let ours: Vec<_> =
            environment.split(|byte| *byte == 0).filter(|var| var.starts_with(b"PROCESSION_")).collect();
        let names: Vec<_> = ours.iter().map(|var| String::from_utf8_lossy(var)).collect();
        // What this program was started with itself is handed on.
        let is_ours = |var: &str| {
            let (name, value) = var.split_once('=').unwrap();
            std::env::var(name).is_ok_and(|own| own == value)
        };
        let is_expected = |var: &str| var == "PROCESSION_ROLE=steward" || is_ours(var);
        assert!(names.iter().all(|var| is_expected(var) || var.starts_with("PROCESSION_TEST")), "{names:?}");
    }
    pool.shutdown().await;
}
