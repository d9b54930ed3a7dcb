//! What a task costs that goes through a queue on a NATS server, beside what the same way costs bare.
//!
//! The program starts a `nats-server` of its own on loopback, and itself as agents. It compares, in one run
//! and by turns:
//!
//! * `bare`: a message published to a work-queue stream and confirmed, pulled by another process, which
//!   publishes a reply of the same size and acknowledges the message. No process pool, nothing else.
//! * `task`: a task of a pool, run by a worker of an agent.
//!
//! Then how throughput grows with agents, and what the server has to do for each task.
//!
//! ```text
//! cargo bench --features nats --bench nats            # a minute or two
//! cargo bench --features nats --bench nats -- --quick
//! cargo bench --features nats --bench nats -- --namespaces    # as root: each agent has a network of its own
//! ```

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, consumer::pull, stream};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use procession::ProcessPool;
use procession::nats::{Agent, Queue};

/// Bytes there and back.
const PAYLOAD: usize = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match words[..] {
        ["agent", url, workers] => runtime.block_on(agent(url, workers.parse().unwrap())),
        ["bare", url] => runtime.block_on(bare_agent(url)),
        _ => runtime.block_on(compare(words.contains(&"--quick"), words.contains(&"--namespaces"))),
    }
}

async fn agent(url: &str, workers: usize) {
    let agent = Agent::start(Queue::at(url), ProcessPool::builder().workers(workers)).await.unwrap();
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    end.recv().await;
    agent.shutdown().await;
}

/// What one would write without this crate.
async fn bare_agent(url: &str) {
    let client = async_nats::connect(url).await.unwrap();
    let context = jetstream::new(client.clone());
    let stream = context.get_stream("bare").await.unwrap();
    let config = pull::Config { durable_name: Some("bare".into()), ..pull::Config::default() };
    let consumer = stream.create_consumer(config).await.unwrap();
    // One after another, as one worker would have them.
    let mut messages = consumer.stream().max_messages_per_batch(1).messages().await.unwrap();
    while let Some(Ok(message)) = messages.next().await {
        let reply = message.headers.as_ref().unwrap().get("Reply").unwrap().to_string();
        client.publish(reply, message.payload.clone()).await.unwrap();
        message.ack().await.unwrap();
    }
}

/// A process that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn myself(arguments: &[&str]) -> Process {
    started(Command::new(std::env::current_exe().unwrap()).args(arguments))
}

fn started(command: &mut Command) -> Process {
    Process(command.stdin(Stdio::null()).spawn().unwrap())
}

/// Network namespaces that reach each other, and this one, over a bridge: machines as far as the network is
/// concerned. Removed when dropped.
struct Network(usize);

/// This machine's address on the bridge.
const GATEWAY: &str = "10.203.0.1";

impl Network {
    fn new(namespaces: usize) -> Network {
        let network = Network(namespaces);
        ip("link add procession type bridge");
        ip(&format!("addr add {GATEWAY}/24 dev procession"));
        ip("link set procession up");
        for n in 0..namespaces {
            ip(&format!("netns add procession{n}"));
            ip(&format!("link add procession{n} type veth peer name eth0 netns procession{n}"));
            ip(&format!("link set procession{n} master procession up"));
            ip(&format!("-n procession{n} addr add 10.203.0.{}/24 dev eth0", n + 2));
            ip(&format!("-n procession{n} link set eth0 up"));
        }
        network
    }

    /// This program, in one of them.
    fn myself(&self, namespace: usize, arguments: &[&str]) -> Process {
        assert!(namespace < self.0);
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &format!("procession{namespace}")])
            .arg(std::env::current_exe().unwrap());
        started(command.args(arguments))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // As far as it has come to be.
        for n in 0..self.0 {
            let _ = Command::new("ip").args(["netns", "del", &format!("procession{n}")]).status();
        }
        let _ = Command::new("ip").args(["link", "del", "procession"]).status();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("`ip`, of iproute2");
    assert!(status.success(), "`ip {arguments}` needs to be run as root");
}

struct Server {
    process: Process,
    url: String,
    _dir: tempfile::TempDir,
}

/// A server that listens at this address.
fn server(address: &str) -> Option<Server> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let program = places.map(|place| place.join("nats-server")).find(|program| program.is_file())?;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let process = Command::new(program)
        .args(["-js", "-sd", dir.path().to_str().unwrap(), "-a", address, "-p", "-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let process = Process(process);
    loop {
        let text = std::fs::read_to_string(&log).unwrap();
        if text.contains("Server is ready") {
            let place = text.lines().find_map(|line| line.split("client connections on ").nth(1));
            let url = format!("nats://{}", place.unwrap().trim());
            return Some(Server { process, url, _dir: dir });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processor time that a process has used.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

struct Bare {
    context: jetstream::Context,
    inbox: String,
    replies: async_nats::Subscriber,
}

impl Bare {
    async fn new(url: &str) -> Bare {
        let client = async_nats::connect(url).await.unwrap();
        let context = jetstream::new(client.clone());
        let config = stream::Config {
            name: "bare".into(),
            subjects: vec!["bare.tasks".into()],
            retention: stream::RetentionPolicy::WorkQueue,
            ..stream::Config::default()
        };
        context.create_stream(config).await.unwrap();
        let inbox = client.new_inbox();
        let replies = client.subscribe(inbox.clone()).await.unwrap();
        Bare { context, inbox, replies }
    }

    async fn publish(&self) -> jetstream::context::PublishAckFuture {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Reply", self.inbox.as_str());
        let publish = self.context.publish_with_headers("bare.tasks", headers, vec![7; PAYLOAD].into());
        publish.await.unwrap()
    }

    /// One after another: how long each took.
    async fn latencies(&mut self, count: usize) -> Vec<Duration> {
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            let confirmed = self.publish().await;
            self.replies.next().await.unwrap();
            times.push(start.elapsed());
            confirmed.await.unwrap();
        }
        times
    }

    /// Many in flight: how many a second.
    async fn throughput(&mut self, count: usize, in_flight: usize) -> f64 {
        let start = Instant::now();
        let (mut sent, mut received) = (0, 0);
        let mut confirmations = FuturesUnordered::new();
        while received < count {
            while sent < count && sent - received < in_flight {
                confirmations.push(self.publish().await.into_future());
                sent += 1;
            }
            tokio::select! {
                Some(_) = self.replies.next() => received += 1,
                Some(confirmed) = confirmations.next() => drop(confirmed.unwrap()),
            }
        }
        count as f64 / start.elapsed().as_secs_f64()
    }
}

async fn task_latencies(pool: &ProcessPool, count: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        pool.submit(|bytes: Vec<u8>| bytes, vec![7; PAYLOAD]).await.unwrap();
        times.push(start.elapsed());
    }
    times
}

async fn task_throughput(pool: &ProcessPool, count: usize, in_flight: usize, sleep: Duration) -> f64 {
    let work = |bytes: Vec<u8>, sleep: Duration| {
        if sleep > Duration::ZERO {
            std::thread::sleep(sleep);
        }
        bytes
    };
    let start = Instant::now();
    let mut open = FuturesUnordered::new();
    let mut sent = 0;
    let mut done = 0;
    while done < count {
        while sent < count && open.len() < in_flight {
            open.push(pool.submit(work, (vec![7; PAYLOAD], sleep)));
            sent += 1;
        }
        open.next().await.unwrap().unwrap();
        done += 1;
    }
    count as f64 / start.elapsed().as_secs_f64()
}

fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}

/// A pool that has met so many agents.
async fn pool_with(url: &str, workers: usize) -> ProcessPool {
    let pool = ProcessPool::builder().nats(Queue::at(url)).build().unwrap();
    pool.warm_up().await.unwrap();
    // Each has its workers started by tasks that keep them for a moment.
    let pids = || pool.workers().len();
    while pids() < workers {
        task_throughput(&pool, 4 * workers, 4 * workers, Duration::from_millis(20)).await;
    }
    pool
}

async fn compare(is_quick: bool, has_namespaces: bool) {
    let network = has_namespaces.then(|| Network::new(4));
    let machine = |n: usize, arguments: &[&str]| match &network {
        Some(network) => network.myself(n, arguments),
        None => myself(arguments),
    };
    let Some(server) = server(if has_namespaces { GATEWAY } else { "127.0.0.1" }) else {
        println!("skipped: there is no `nats-server` (Debian: apt-get install nats-server)");
        return;
    };
    let (rounds, singles, many) = if is_quick { (3, 300, 3000) } else { (9, 1000, 10_000) };
    println!(
        "one agent with one worker, {PAYLOAD} bytes there and back, medians of {rounds} rounds by turns:"
    );
    let mut bare = Bare::new(&server.url).await;
    let bare_process = machine(0, &["bare", &server.url]);
    let agent = machine(0, &["agent", &server.url, "1"]);
    let pool = pool_with(&server.url, 1).await;
    bare.latencies(50).await;
    let (mut alone, mut together) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for _ in 0..rounds {
        alone.0.push(median(bare.latencies(singles).await));
        alone.1.push(median(task_latencies(&pool, singles).await));
        together.0.push(bare.throughput(many, 64).await);
        together.1.push(task_throughput(&pool, many, 64, Duration::ZERO).await);
    }
    let ratio = |a: f64, b: f64| format!("{:.2}", a / b);
    let (bare_time, task_time) = (median(alone.0), median(alone.1));
    println!(
        "  one at a time: bare {bare_time:.1?}, task {task_time:.1?}, {} x",
        ratio(task_time.as_secs_f64(), bare_time.as_secs_f64())
    );
    let (bare_rate, task_rate) = (median(together.0), median(together.1));
    println!(
        "  64 in flight: bare {bare_rate:.0}/s, task {task_rate:.0}/s, {} x",
        ratio(bare_rate, task_rate)
    );
    drop((bare, bare_process));

    let pid = server.process.0.id();
    let before = (processor_time(pid), pool.stats().submitted());
    task_throughput(&pool, many * 2, 64, Duration::ZERO).await;
    let used = processor_time(pid) - before.0;
    let tasks = (pool.stats().submitted() - before.1) as f64;
    println!("  the server's processor time: {:.1} us a task", used.as_secs_f64() * 1e6 / tasks);
    drop(agent);
    tokio::time::sleep(Duration::from_secs(1)).await;
    pool.shutdown().await;

    println!("agents of two workers each, tasks a second: doing nothing (64 in flight), sleeping 10 ms:");
    for agents in 1..=4 {
        let processes: Vec<_> = (0..agents).map(|n| machine(n, &["agent", &server.url, "2"])).collect();
        let pool = pool_with(&server.url, 2 * agents).await;
        let nothing = task_throughput(&pool, many / 2, 64, Duration::ZERO).await;
        let sleeping = task_throughput(&pool, 300 * agents, 64, Duration::from_millis(10)).await;
        println!("  {agents}: {nothing:.0}, {sleeping:.0}");
        pool.shutdown().await;
        drop(processes);
        // Until the server has noticed that they are gone, tasks would be on the way to them.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    let idle: Vec<_> = (0..4).map(|n| machine(n, &["agent", &server.url, "2"])).collect();
    let pool = pool_with(&server.url, 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = processor_time(pid);
    let time = Duration::from_secs(if is_quick { 5 } else { 20 });
    tokio::time::sleep(time).await;
    let used = processor_time(pid) - before;
    println!(
        "four idle agents and a pool: {:.2} % of a processor for the server",
        100.0 * used.as_secs_f64() / time.as_secs_f64()
    );
    pool.shutdown().await;
    drop(idle);
}
