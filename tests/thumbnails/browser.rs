//! A headless Chromium, driven through chromedriver: a few calls of WebDriver (W3C) over HTTP.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use axum::http::Request;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::common::descendants;

/// With this in the environment, as `required`, a test does not pass for want of a browser.
const WANTED: &str = "PROCESSION_BROWSER";

const OPTIONS: [&str; 11] = [
    "--headless",
    "--no-sandbox", // root has none, and the page is our own
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1240,1270",
];

/// By the standard, the key of an element's reference.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub(crate) struct Browser {
    driver: Child,
    /// Of the driver's session.
    address: String,
    client: Client<HttpConnector, Full<Bytes>>,
    _home: TempDir,
}

impl Browser {
    /// None if there is no browser on this machine, which is said.
    pub(crate) async fn start() -> Option<Browser> {
        let (Some(chromium), Some(driver)) = (program("chromium"), program("chromedriver")) else {
            let missing = "there is no `chromium` or no `chromedriver` on this machine's PATH";
            assert!(std::env::var_os(WANTED).is_none_or(|word| word != "required"), "{missing}");
            eprintln!("skipped: {missing}");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        let mut driver = driver_of(&driver, home.path());
        let port = port(&mut driver).await;
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        let address = format!("http://127.0.0.1:{port}/session");
        let mut browser = Browser { driver, address, client, _home: home };
        browser.open_session(&chromium).await;
        Some(browser)
    }

    async fn open_session(&mut self, chromium: &Path) {
        let profile = format!("--user-data-dir={}", self._home.path().join("profile").display());
        let options: Vec<&str> = OPTIONS.into_iter().chain([&profile[..]]).collect();
        let wanted = json!({
            "goog:chromeOptions": { "binary": chromium, "args": options },
            "goog:loggingPrefs": { "browser": "ALL" },
            "timeouts": { "script": 60_000 },
        });
        let session = self.call("POST", "", json!({ "capabilities": { "alwaysMatch": wanted } })).await;
        self.address += &format!("/{}", session["sessionId"].as_str().expect("a session"));
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let request = Request::builder().method(method).uri(format!("{}{path}", self.address));
        let response = self.client.request(request.body(Full::from(body)).unwrap()).await.expect(path);
        let is_good = response.status().is_success();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let mut answer: Value = serde_json::from_slice(&bytes).unwrap();
        assert!(is_good, "{method} {path}: {answer:#}");
        answer["value"].take()
    }

    pub(crate) async fn open(&self, address: &str) {
        self.call("POST", "/url", json!({ "url": address })).await;
    }

    /// The path of calls for the one element of this CSS selector.
    async fn element(&self, selector: &str) -> String {
        let found =
            self.call("POST", "/element", json!({ "using": "css selector", "value": selector })).await;
        format!("/element/{}", found[ELEMENT].as_str().expect("an element"))
    }

    pub(crate) async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.call("POST", &format!("{element}/click"), json!({})).await;
    }

    /// Chooses a file, as its user would.
    pub(crate) async fn choose(&self, selector: &str, file: &Path) {
        let element = self.element(selector).await;
        self.call("POST", &format!("{element}/value"), json!({ "text": file })).await;
    }

    /// Waits until an expression of JavaScript is true of the page, and returns what it gives.
    pub(crate) async fn until(&self, expression: &str) -> Value {
        let script = format!(
            "return new Promise(done => {{
                const look = () => {{
                    const value = ({expression});
                    value ? done(value) : setTimeout(look, 20);
                }};
                look();
            }})"
        );
        self.call("POST", "/execute/sync", json!({ "script": script, "args": [] })).await
    }

    pub(crate) async fn text(&self, selector: &str) -> String {
        let element = self.element(selector).await;
        let text = self.call("GET", &format!("{element}/text"), Value::Null).await;
        text.as_str().unwrap().to_owned()
    }

    /// A PNG of what is in the window, in base64.
    pub(crate) async fn picture(&self) -> String {
        let text = self.call("GET", "/screenshot", Value::Null).await;
        text.as_str().unwrap().to_owned()
    }

    /// Closes it; what its scripts complained about.
    pub(crate) async fn close(mut self) -> Vec<String> {
        let log = self.call("POST", "/se/log", json!({ "type": "browser" })).await;
        let complaints = log.as_array().unwrap().iter().filter(|entry| entry["source"] == "javascript");
        let complaints = complaints.map(|entry| entry["message"].to_string()).collect();
        self.call("DELETE", "", Value::Null).await;
        let driver = self.driver.id().expect("it has not been awaited");
        kill_process(Pid::from_raw(driver as i32).unwrap(), Signal::TERM).unwrap();
        self.driver.wait().await.unwrap();
        complaints
    }
}

/// Where the test fails: the driver alone would leave its browser behind.
impl Drop for Browser {
    fn drop(&mut self) {
        let Some(driver) = self.driver.id() else { return };
        let below = descendants(driver).into_iter().map(|process| process.pid);
        for pid in below.chain([driver]) {
            let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
        }
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// What they keep in the home directory goes to a passing one.
fn driver_of(driver: &Path, home: &Path) -> Child {
    let mut command = Command::new(driver);
    command.arg("--port=0").env("HOME", home).env("XDG_CONFIG_HOME", home).env("XDG_CACHE_HOME", home);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn().expect("chromedriver starts")
}

async fn port(driver: &mut Child) -> u16 {
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    loop {
        let line = lines.next_line().await.unwrap().expect("the driver says its port");
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            return port.trim_end_matches('.').parse().expect(&line);
        }
    }
}
