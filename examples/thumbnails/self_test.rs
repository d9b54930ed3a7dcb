//! Sends the service all samples, over HTTP and all at once, and shows what comes back.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, ensure};
use axum::http::Request;
use futures::future::try_join_all;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::samples::{SAMPLES, Sample};
use crate::say;

/// # Errors
/// When an answer is not the expected one.
pub(crate) async fn run(address: SocketAddr) -> anyhow::Result<()> {
    let right = try_join_all(SAMPLES.iter().map(|sample| send(address, sample))).await?;
    let wrong = right.iter().filter(|is_right| !**is_right).count();
    ensure!(wrong == 0, "{wrong} answers are not the expected ones");
    Ok(())
}

/// Whether the answer is the expected one.
async fn send(address: SocketAddr, sample: &Sample) -> anyhow::Result<bool> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::post(format!("http://{address}/thumbnail?width=96&height=96"));
    let start = Instant::now();
    let response = client.request(request.body(Full::new(sample.bytes.clone()))?).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.context("the answer breaks off")?.to_bytes();
    let gist = match serde_json::from_slice::<Value>(&body) {
        Ok(problem) => problem["detail"].as_str().unwrap_or_default().to_string(),
        Err(_) => format!("a thumbnail of {} bytes", body.len()),
    };
    say(&format!("{:>13}  {status}  {:>5} ms  {gist}", sample.name, start.elapsed().as_millis()));
    Ok(status == sample.status)
}
