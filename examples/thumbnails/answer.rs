//! What becomes of a request, as HTTP. `docs/service.md` argues for each status.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use procession::{ExitCause, TaskError, WorkerExit};
use serde_json::json;

use crate::thumbnail::{MOST_PIXELS, Refusal, Thumbnail};

/// When a client may try again that came at a bad time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const SIGKILL: i32 = 9;

/// Why there is no thumbnail: shown as `application/problem+json` (RFC 9457).
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    /// For programs: which of the problems it is.
    code: &'static str,
    /// For people.
    detail: String,
    /// What the pool knows of it, for whoever looks after the service.
    diagnosis: Option<String>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, code, detail: detail.into(), diagnosis: None }
    }

    pub(crate) fn overloaded() -> Problem {
        let detail = "The service has as much to do as it takes on. Try again in a moment.";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        match refusal {
            Refusal::UnknownFormat => {
                let detail = "This is no image in a format that the service knows: PNG, JPEG, GIF, PPMX.";
                Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unknown-format", detail)
            }
            Refusal::TooManyPixels { width, height } => {
                let most = MOST_PIXELS / 1_000_000;
                let detail = format!(
                    "An image of {width} x {height} pixels is too large: {most} million are allowed."
                );
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-many-pixels", detail)
            }
            Refusal::Broken(why) => {
                let detail = format!("The image is broken: {}", why.lines().next().unwrap_or_default());
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "broken-image", detail)
            }
        }
    }
}

impl From<TaskError> for Problem {
    fn from(error: TaskError) -> Problem {
        let (status, code, detail) = match &error {
            TaskError::Panicked(_) => (
                422,
                "decoder-panicked",
                "The decoder gave up on this image with a panic. Its worker goes on.",
            ),
            TaskError::WorkerDied(exit) => of_death(exit),
            TaskError::TimedOut { .. } => {
                (504, "timed-out", "Decoding took too long, so its worker was ended.")
            }
            TaskError::QueueFull { .. } => return Problem::overloaded(),
            TaskError::ShutDown => (503, "shutting-down", "The service is shutting down."),
            TaskError::PoolBroken(_) => (503, "no-workers", "The service cannot start workers."),
            _ => (500, "internal", "The service failed."),
        };
        let status = StatusCode::from_u16(status).expect("a status from this table");
        Problem { diagnosis: Some(error.to_string()), ..Problem::new(status, code, detail) }
    }
}

fn of_death(exit: &WorkerExit) -> (u16, &'static str, &'static str) {
    match exit.cause() {
        ExitCause::OutOfMemory => {
            (413, "out-of-memory", "Decoding takes more memory than a worker may have, so it was ended.")
        }
        ExitCause::StackOverflow => {
            (422, "stack-overflow", "The image is nested too deeply: its worker's stack overflowed.")
        }
        // Nothing that decoders do: a person has killed it, or the kernel, short of memory.
        ExitCause::Signalled if exit.signal() == Some(SIGKILL) => {
            (503, "worker-killed", "The worker was killed from outside. Try again.")
        }
        _ => (500, "worker-crashed", "The decoder crashed on this image, and its worker with it."),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "status": self.status.as_u16(),
            "title": self.status.canonical_reason(),
            "code": self.code,
            "detail": self.detail,
            "diagnosis": self.diagnosis,
        });
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER.as_secs().into());
        }
        response
    }
}

impl IntoResponse for Thumbnail {
    fn into_response(self) -> Response {
        let kind = if self.is_jpeg { "image/jpeg" } else { "image/png" };
        let (width, height) = self.original;
        let headers = [(header::CONTENT_TYPE, kind.to_string())];
        (headers, [("x-original-size", format!("{width}x{height}"))], self.bytes).into_response()
    }
}
