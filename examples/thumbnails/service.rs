//! The service: its routes, and how an upload becomes a task.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::multipart::MultipartRejection;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{get, post};
use procession::ProcessPool;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::answer::Problem;
use crate::live;
use crate::options::Options;
use crate::samples::{SAMPLES, sample};
use crate::thumbnail::{Thumbnail, make};

/// The most bytes that an upload may have.
const MOST_BYTES: usize = 10 << 20;

/// As many uploads more than tasks may be on their way in.
const UPLOADS_AHEAD: usize = 64;

/// The longest side of a thumbnail.
const LONGEST_SIDE: u32 = 1024;

pub(crate) struct Service {
    pub(crate) pool: ProcessPool,
    /// As many uploads are read and kept at a time, those of tasks included.
    most_uploads: usize,
    uploads: Semaphore,
    /// How long a client may take to send one.
    patience: Duration,
    /// A new snapshot some times a second.
    pub(crate) live: watch::Receiver<String>,
    /// How many answers there were of each status.
    answers: Mutex<BTreeMap<u16, u64>>,
}

impl Service {
    pub(crate) fn new(pool: ProcessPool, options: &Options, live: watch::Receiver<String>) -> Arc<Service> {
        let most_uploads = options.workers + options.queue + UPLOADS_AHEAD;
        let uploads = Semaphore::new(most_uploads);
        let (patience, answers) = (options.upload, Mutex::default());
        Arc::new(Service { pool, most_uploads, uploads, patience, live, answers })
    }

    /// How many uploads are being read, wait or are in work.
    pub(crate) fn uploads(&self) -> usize {
        self.most_uploads - self.uploads.available_permits()
    }

    pub(crate) fn answers(&self) -> BTreeMap<u16, u64> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, status: StatusCode) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry(status.as_u16()).or_default() += 1;
    }

    /// If the client goes away this future is dropped, the task's handle with it, and so the task ends.
    async fn thumbnail(&self, size: Size, request: Request) -> Result<Thumbnail, Problem> {
        size.check()?;
        // Before the upload is read: what there is no room for should not take up memory.
        let _room = self.uploads.try_acquire().map_err(|_| Problem::overloaded())?;
        let upload = timeout(self.patience, read(request)).await.map_err(|_| too_slow())??;
        if upload.is_empty() {
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "no-image",
                "There is no image in the request.",
            ));
        }
        Ok(self.pool.submit(make, (upload, size.width, size.height)).await??)
    }
}

pub(crate) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/", get(Html(include_str!("page.html"))))
        .route("/thumbnail", post(thumbnail))
        .route("/samples", get(list_samples))
        .route("/samples/{name}", get(one_sample))
        .route("/stats", get(async |State(service): State<Arc<Service>>| Json(live::snapshot(&service))))
        .route("/events", get(live::events))
        .route("/healthz", get("ok\n")) // asks no worker: a busy service is a healthy one
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .with_state(service)
}

#[derive(Deserialize)]
struct Size {
    #[serde(default = "Size::usual")]
    width: u32,
    #[serde(default = "Size::usual")]
    height: u32,
}

impl Size {
    fn usual() -> u32 {
        256
    }

    fn check(&self) -> Result<(), Problem> {
        let allowed = 1..=LONGEST_SIDE;
        if allowed.contains(&self.width) && allowed.contains(&self.height) {
            return Ok(());
        }
        let detail = format!("`width` and `height` must be from 1 to {LONGEST_SIDE}.");
        Err(Problem::new(StatusCode::BAD_REQUEST, "bad-size", detail))
    }
}

async fn thumbnail(
    State(service): State<Arc<Service>>,
    size: Result<Query<Size>, QueryRejection>,
    request: Request,
) -> Response {
    let answer = match size {
        Ok(Query(size)) => service.thumbnail(size, request).await,
        Err(rejection) => Err(Problem::new(rejection.status(), "bad-size", rejection.body_text())),
    };
    let response = answer.into_response();
    service.count(response.status());
    response
}

/// The body as it is, or the first file of a form.
async fn read(request: Request) -> Result<Bytes, Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"multipart/form-data")) {
        return Ok(Bytes::from_request(request, &()).await?);
    }
    let mut form = Multipart::from_request(request, &()).await?;
    let bad_form = |error: axum::extract::multipart::MultipartError| {
        Problem::new(error.status(), "bad-upload", error.body_text())
    };
    while let Some(field) = form.next_field().await.map_err(bad_form)? {
        if field.file_name().is_some() {
            return field.bytes().await.map_err(bad_form);
        }
    }
    Ok(Bytes::new())
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Problem {
        Problem::new(rejection.status(), "bad-upload", rejection.body_text())
    }
}

impl From<MultipartRejection> for Problem {
    fn from(rejection: MultipartRejection) -> Problem {
        Problem::new(rejection.status(), "bad-upload", rejection.body_text())
    }
}

fn too_slow() -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "The upload took too long.")
}

async fn list_samples() -> Json<Vec<Value>> {
    let listed = SAMPLES.iter().map(|sample| {
        json!({ "name": sample.name, "about": sample.about, "status": sample.status, "bytes": sample.bytes.len() })
    });
    Json(listed.collect())
}

async fn one_sample(Path(name): Path<String>) -> Response {
    match sample(&name) {
        Some(sample) => sample.bytes.clone().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
