//! The example `thumbnails` as a process, and a client of it.

#![allow(dead_code, unreachable_pub)] // each test binary uses a part of this

use std::process::Stdio;

use axum::http::{HeaderMap, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::common::example;

#[path = "../../examples/thumbnails/samples.rs"]
pub mod samples;

/// A service that runs.
pub struct Service {
    pub child: Child,
    pub address: String,
    lines: Lines<BufReader<ChildStdout>>,
    client: Client<HttpConnector, Full<Bytes>>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Service {
    /// Starts it on a free port, and waits until it listens.
    pub async fn start(options: &[&str]) -> Service {
        let mut command = Command::new(example("thumbnails"));
        command.args(["--port", "0"]).args(options).kill_on_drop(true);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("it says where it listens");
        let address = line.strip_prefix("listening on ").expect(&line).to_owned();
        // Each request on a connection of its own, so that none is left open.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Service { child, address, lines, client }
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it has not been awaited")
    }

    pub async fn get(&self, path: &str) -> Answer {
        let request = Request::get(format!("{}{path}", self.address)).body(Full::default()).unwrap();
        received(self.client.request(request).await.expect("an answer")).await
    }

    /// Asks for a thumbnail; to be awaited, or dropped to go away.
    pub fn thumbnail<B: Into<Bytes>>(&self, upload: B) -> impl Future<Output = Answer> + Send + use<B> {
        self.post("/thumbnail?width=96&height=80", "application/octet-stream", upload)
    }

    pub fn post<B: Into<Bytes>>(
        &self,
        path: &str,
        kind: &str,
        body: B,
    ) -> impl Future<Output = Answer> + Send + use<B> {
        let request = Request::post(format!("{}{path}", self.address)).header("content-type", kind);
        let answer = self.client.request(request.body(Full::new(body.into())).unwrap());
        async { received(answer.await.expect("an answer")).await }
    }

    /// The number of that name in the statistics.
    pub async fn stat(&self, name: &str) -> u64 {
        let stats = self.get("/stats").await.json();
        stats[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {stats}"))
    }

    /// Waits until a number of the statistics is as expected.
    pub async fn until(&self, name: &str, holds: impl Fn(u64) -> bool) {
        let start = std::time::Instant::now();
        while !holds(self.stat(name).await) {
            assert!(start.elapsed().as_secs() < 60, "never: {name} as expected");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid() as i32).unwrap(), signal).unwrap();
    }

    /// The next line that it prints; none when it has ended.
    pub async fn line(&mut self) -> Option<String> {
        self.lines.next_line().await.unwrap()
    }

    /// Waits for its end, which must be a good one.
    pub async fn ended(mut self) {
        let status = self.child.wait().await.unwrap();
        assert!(status.success(), "{status}");
    }

    /// Tells it to end, and waits for that.
    pub async fn end(self) {
        self.signal(Signal::TERM);
        self.ended().await;
    }
}

async fn received(response: Response<impl http_body_util::BodyExt<Data = Bytes>>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = BodyExt::collect(body).await.ok().expect("the answer is complete").to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The code of a problem, after a look at the rest of it.
    #[track_caller]
    pub fn problem(&self, status: u16) -> String {
        let problem = self.json();
        assert_eq!(self.status.as_u16(), status, "{problem}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem["status"], status);
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
        problem["code"].as_str().expect("a code").to_owned()
    }
}
