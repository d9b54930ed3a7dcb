//! Credentials, permissions and TLS.

use std::path::Path;
use std::process::Command;

use procession::nats::{Agent, ConnectOptions, Queue};
use procession::{PoolError, ProcessPool, TaskError};

use crate::common;
use crate::server::{Server, close};

fn user(name: &str) -> ConnectOptions {
    ConnectOptions::with_user_and_password(name.into(), "secret".into())
}

#[test]
fn who_is_refused_is_told_and_who_is_known_is_let_in() {
    common::run(async {
        let config = "authorization { user: service, password: secret }";
        let Some(mut server) = Server::start_with(config).await else { return };
        let queue = |name: &str| Queue::at(server.url()).options(user(name));
        let refused = ProcessPool::builder().nats(queue("guest")).build().unwrap();
        let error = refused.submit(|n: u8| n, 1).await.unwrap_err();
        assert_matches!(error, TaskError::PoolBroken(PoolError::Queue { .. }));
        assert_matches!(refused.warm_up().await, Err(PoolError::Queue { .. }));
        refused.shutdown().await;
        let error = Agent::start(queue("guest"), ProcessPool::builder()).await.map(drop).unwrap_err();
        assert_matches!(error, PoolError::Queue { .. });
        let agent = Agent::start(queue("service"), ProcessPool::builder().workers(1)).await.unwrap();
        let pool = ProcessPool::builder().nats(queue("service")).build().unwrap();
        assert_eq!(pool.submit(|n: u8| n, 1).await.unwrap(), 1);
        pool.shutdown().await;
        agent.shutdown().await;
        server.kill().await;
    });
}

/// The permissions that the documentation gives, for a queue `images`.
fn permissions() -> String {
    let docs = include_str!("../../docs/distributed_agents.md");
    let start = docs.find("service = {").expect("it has permissions");
    let block = &docs[start..];
    let block = &block[..block.find("```").expect("which end")];
    let (service, agent) = block.split_once("agent = {").unwrap();
    let service = service.strip_prefix("service = ").unwrap();
    format!(
        "authorization {{ users = [
            {{user: operator, password: secret}},
            {{user: service, password: secret, permissions: {service}}},
            {{user: agent, password: secret, permissions: {{{agent}}},
        ] }}"
    )
}

#[test]
fn the_permissions_that_the_documentation_gives_are_enough_and_no_more() {
    common::run(async {
        let Some(mut server) = Server::start_with(&permissions()).await else { return };
        server.operator = user("operator");
        let queue = |name: &str| Queue::at(server.url()).name("images").options(user(name));
        let pool = ProcessPool::builder().nats(queue("service")).queue_capacity(100).build().unwrap();
        let early = pool.submit(|n: u8| n, 0);
        let agent = Agent::start(queue("agent"), ProcessPool::builder().workers(1)).await.unwrap();
        assert_eq!(early.await.unwrap(), 0);
        assert_eq!(pool.submit(|bytes: Vec<u8>| bytes, vec![7; 1 << 20]).await.unwrap(), vec![7; 1 << 20]);
        assert_matches!(pool.reserve().await.map(drop), Ok(()));
        common::died(pool.submit(|| std::process::abort(), ()).await);
        drop(pool.submit(|| std::thread::sleep(std::time::Duration::from_secs(600)), ()));
        assert_eq!(pool.submit(|n: u8| n, 1).await.unwrap(), 1);
        pool.shutdown().await;
        agent.shutdown().await;
        server.expect_empty().await;
        // An agent that was taken over cannot have others run anything, nor touch another queue.
        let client = user("agent").connect(server.url()).await.unwrap();
        let context = async_nats::jetstream::new(client.clone());
        for subject in ["procession.images.task.x.normal", "procession.other.to.x"] {
            let sent = context.publish(subject.to_owned(), "x".into()).await.unwrap().await;
            assert!(sent.is_err());
        }
        close(client).await;
        server.kill().await;
    });
}

fn openssl(dir: &Path, arguments: &str) -> bool {
    let done = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output();
    done.is_ok_and(|output| output.status.success())
}

/// An authority, `ca.pem`, and certificates by it of a server and a client, each with its key.
fn certificates() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    let request = |name: &str| {
        format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}")
    };
    let sign = |name: &str| {
        format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out {name}.pem"
        )
    };
    let steps = [
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca".to_owned(),
        request("server"),
        sign("server"),
        request("client"),
        sign("client"),
    ];
    if steps.iter().all(|step| openssl(dir.path(), step)) {
        return Some(dir);
    }
    assert!(std::env::var_os("PROCESSION_NATS_REQUIRED").is_none(), "openssl makes no certificate");
    println!("skipped: there is no `openssl` to make a certificate with");
    None
}

/// A server with such a certificate, and with more in its settings of TLS.
async fn server_with(certificates: &Path, more: &str) -> Option<Server> {
    let at = |name: &str| certificates.join(name).display().to_string();
    let (cert, key) = (at("server.pem"), at("server.key"));
    Server::start_with(&format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\"\n {more} }}")).await
}

async fn expect_refused(server: &Server, options: ConnectOptions) {
    let stranger = Queue::at(server.url()).options(options);
    let error = Agent::start(stranger, ProcessPool::builder()).await.map(drop).unwrap_err();
    assert_matches!(error, PoolError::Queue { .. });
}

async fn expect_use(server: &Server, options: ConnectOptions) {
    let queue = Queue::at(server.url()).options(options);
    let agent = Agent::start(queue.clone(), ProcessPool::builder().workers(1)).await.unwrap();
    let pool = ProcessPool::builder().nats(queue).build().unwrap();
    assert_eq!(pool.submit(|n: u8| n, 1).await.unwrap(), 1);
    pool.shutdown().await;
    agent.shutdown().await;
}

#[test]
fn through_tls() {
    common::run(async {
        let Some(dir) = certificates() else { return };
        let Some(mut server) = server_with(dir.path(), "").await else { return };
        let options = ConnectOptions::new().require_tls(true);
        expect_use(&server, options.clone().add_root_certificates(dir.path().join("ca.pem"))).await;
        // Without the authority's certificate the server is not believed.
        expect_refused(&server, options).await;
        server.kill().await;
    });
}

#[test]
fn with_certificates_of_both_sides() {
    common::run(async {
        let Some(dir) = certificates() else { return };
        let at = |name: &str| dir.path().join(name);
        let more = format!("ca_file: \"{}\", verify: true", at("ca.pem").display());
        let Some(mut server) = server_with(dir.path(), &more).await else { return };
        let options = ConnectOptions::new().require_tls(true).add_root_certificates(at("ca.pem"));
        let known = options.clone().add_client_certificate(at("client.pem"), at("client.key"));
        expect_use(&server, known).await;
        expect_refused(&server, options).await;
        server.kill().await;
    });
}

/// Messages as they were seen, cut short or with some bytes changed, to whoever listens.
#[test]
fn garbage_ends_neither_a_caller_nor_an_agent() {
    crate::stage::play(async |stage| {
        use futures::StreamExt;
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let client = async_nats::connect(stage.server.url()).await.unwrap();
        let mut all = client.subscribe("procession.stage.>").await.unwrap();
        client.flush().await.unwrap();
        for n in 0..5_u64 {
            assert_eq!(pool.submit(|n: u64| n, n).await.unwrap(), n);
            common::panicked(pool.submit(|| panic!("no"), ()).await);
        }
        let mut seen = Vec::new();
        while seen.len() < 30
            && let Some(message) = all.next().await
        {
            seen.push(message);
        }
        drop(all);
        let meeting = common::Meeting::new();
        let open = pool.submit(|place: String| common::attend(&place, "task"), meeting.place());
        let guest = meeting.next().await;
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..3000 {
            let message = &seen[random.usize(..seen.len())];
            let mut bytes = message.payload.to_vec();
            // Where a task continues is not for others to say; the documentation tells why.
            let is_task = message.subject.contains(".task.");
            if is_task || random.bool() {
                bytes.truncate(random.usize(..=bytes.len() / 2));
            } else {
                for _ in 0..random.usize(1..4) {
                    let at = random.usize(..bytes.len().max(1));
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = random.u8(..);
                    }
                }
            }
            let subject = message.subject.clone();
            match message.headers.clone() {
                Some(headers) => client.publish_with_headers(subject, headers, bytes.into()).await.unwrap(),
                None => client.publish(subject, bytes.into()).await.unwrap(),
            }
        }
        close(client).await;
        // What agents seem to have told of themselves is looked at, too.
        let seen_workers = pool.workers().len();
        assert!(pool.stats().workers() >= seen_workers.min(1));
        drop(guest);
        let _ = open.await;
        assert_eq!(pool.submit(|n: u64| n, 9).await.unwrap(), 9);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}
