//! Three servers that keep each task three times.

use std::time::Duration;

use procession::ProcessPool;
use procession::nats::{Agent, Queue};

use crate::common::{self, Ledger, Meeting, attend, note};
use crate::server::Server;
use crate::servers::free_ports;

const SERVERS: usize = 3;

/// What a server of a cluster is told, beside where it keeps its data.
fn config(n: usize, routes: [u16; SERVERS]) -> String {
    let others: Vec<String> = routes.iter().map(|port| format!("nats-route://127.0.0.1:{port}")).collect();
    format!(
        "server_name: s{n}
         cluster {{ name: three, listen: \"127.0.0.1:{}\", routes: [{}] }}",
        routes[n],
        others.join(", ")
    )
}

/// Three servers; none if there are none on this machine.
async fn start() -> Option<Vec<Server>> {
    let routes = free_ports();
    let mut servers = Vec::new();
    for n in 0..SERVERS {
        servers.push(Server::start_with(&config(n, routes)).await?);
    }
    Some(servers)
}

fn queue(servers: &[Server]) -> Queue {
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    Queue::at(urls.join(",")).name("stage").replicas(SERVERS).ack_wait(Duration::from_secs(10))
}

/// Which of the servers leads the stream of tasks.
async fn leader(servers: &[Server]) -> usize {
    let url = servers[0].url();
    let client = async_nats::connect(url).await.unwrap();
    let context = async_nats::jetstream::new(client.clone());
    let stream = context.get_stream("procession-stage").await.unwrap();
    let info = stream.cached_info();
    assert_eq!(info.config.num_replicas, SERVERS);
    let name = info.cluster.as_ref().unwrap().leader.clone().unwrap();
    crate::server::close(client).await;
    name.strip_prefix('s').unwrap().parse().unwrap()
}

fn noted(ledger: String, n: u32, place: Option<String>) -> u32 {
    note(&ledger, n);
    if let Some(place) = place {
        attend(&place, "task");
    }
    n
}

#[test]
fn one_of_three_servers_may_go() {
    common::run(async {
        let Some(mut servers) = start().await else { return };
        let agent = Agent::start(queue(&servers), ProcessPool::builder().workers(2)).await.unwrap();
        let pool = ProcessPool::builder().nats(queue(&servers)).build().unwrap();
        let (ledger, meeting) = (Ledger::new(), Meeting::new());
        // Two that run while the server dies that leads, and others that wait.
        let submit = |n: u32, place: Option<String>| pool.submit(noted, (ledger.place(), n, place));
        let mut handles: Vec<_> = (0..2).map(|n| submit(n, Some(meeting.place()))).collect();
        let guests = meeting.all(2).await;
        handles.extend((2..40).map(|n| submit(n, None)));
        let one = leader(&servers).await;
        servers[one].kill().await;
        drop(guests);
        handles.extend((40..60).map(|n| submit(n, None)));
        for (n, handle) in handles.into_iter().enumerate() {
            assert_eq!(handle.await.unwrap(), n as u32);
        }
        let mut lines: Vec<u32> = ledger.lines().iter().map(|line| line.parse().unwrap()).collect();
        lines.sort_unstable();
        assert_eq!(lines, (0..60).collect::<Vec<_>>());
        // It comes back, and has missed nothing that matters.
        servers[one].run().await;
        assert_eq!(pool.submit(|n: u8| n, 1).await.unwrap(), 1);
        pool.shutdown().await;
        agent.shutdown().await;
        for server in &mut servers {
            server.kill().await;
        }
    });
}
