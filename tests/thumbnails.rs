//! Drives `examples/thumbnails` over HTTP, as its clients do, the hostile ones included.
//!
//! As with the other examples, `cargo test` builds it before it runs this file, and
//! `cargo test --test thumbnails` does not.

#![cfg(all(target_os = "linux", feature = "auto-init"))]

mod common;
#[path = "thumbnails/service.rs"]
mod service;

use std::io::Cursor;
use std::process::Stdio;

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::BodyExt;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use common::{descendants, example, run};
use service::samples::{SAMPLES, sample, zeros_in_full};
use service::{Answer, Service};

/// So long that no good image runs into it, however busy the machine is.
const PATIENT: [&str; 2] = ["--timeout-ms", "60000"];

fn bytes(name: &str) -> Bytes {
    sample(name).expect(name).bytes.clone()
}

/// The thumbnail that a good sample must have, made here.
fn expected(upload: &[u8]) -> Vec<u8> {
    let small = image::load_from_memory(upload).unwrap().thumbnail(96, 80);
    let mut bytes = Cursor::new(Vec::new());
    if upload.starts_with(&[0xff, 0xd8]) {
        small.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 85)).unwrap();
    } else {
        small.write_to(&mut bytes, ImageFormat::Png).unwrap();
    }
    bytes.into_inner()
}

#[track_caller]
fn assert_thumbnail(answer: &Answer, kind: &str, bytes: &[u8]) {
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert_eq!(answer.header("content-type"), kind);
    assert!(answer.body == bytes, "{} bytes, but other ones", answer.body.len());
}

#[test]
fn each_hostile_file_gets_its_answer_and_the_good_ones_beside_it_are_served() {
    run(async {
        let service = Service::start(&[&PATIENT[..], &["--workers", "3", "--queue", "1000"]].concat()).await;
        let endless = tokio::spawn(service.thumbnail(bytes("endless.ppmx"))); // beside all the others
        service.until("running", |tasks| tasks == 1).await;
        let [jpeg, png] = ["photo.jpg", "picture.png"].map(bytes);
        let (small_jpeg, small_png) = (expected(&jpeg), expected(&png));
        let good = async {
            for _ in 0..15 {
                let answers = tokio::join!(service.thumbnail(jpeg.clone()), service.thumbnail(png.clone()));
                assert_thumbnail(&answers.0, "image/jpeg", &small_jpeg);
                assert_thumbnail(&answers.1, "image/png", &small_png);
            }
        };
        let hostile = async {
            for (name, code) in [
                ("half.png", "broken-image"),
                ("start.jpg", "broken-image"),
                ("noise.bin", "unknown-format"),
                ("claims.png", "too-many-pixels"),
                ("expands.png", "out-of-memory"),
                ("grows.ppmx", "out-of-memory"),
                ("panics.ppmx", "decoder-panicked"),
                ("nests.ppmx", "stack-overflow"),
                ("aborts.ppmx", "worker-crashed"),
            ] {
                let answer = service.thumbnail(bytes(name)).await;
                assert_eq!(answer.problem(sample(name).unwrap().status), code, "{name}");
            }
        };
        tokio::join!(good, hostile);

        // What there is to know of the crashed ones, for people.
        let problem = service.thumbnail(bytes("aborts.ppmx")).await.json();
        let diagnosis = problem["diagnosis"].as_str().unwrap();
        assert!(diagnosis.contains("SIGABRT") && diagnosis.contains("assertion"), "{diagnosis}");
        let problem = service.thumbnail(bytes("panics.ppmx")).await.json();
        assert!(problem["diagnosis"].as_str().unwrap().contains("before the first pixel"), "{problem}");

        let stats = service.get("/stats").await.json();
        assert_eq!(stats["running"], 1);
        // Two ran out of memory, one out of stack, one crashed twice.
        assert_eq!(stats["workers_died"], 5);
        assert_eq!(stats["answers"]["200"], 30);
        assert_eq!(
            stats["answers"].as_object().unwrap().values().filter_map(|n| n.as_u64()).sum::<u64>(),
            41
        );
        endless.abort();
        service.end().await;
    });
}

#[test]
fn an_endless_task_is_ended_by_its_time() {
    run(async {
        let service = Service::start(&["--timeout-ms", "300"]).await;
        let answer = service.thumbnail(bytes("endless.ppmx")).await;
        assert_eq!(answer.problem(sample("endless.ppmx").unwrap().status), "timed-out");
        assert_eq!(service.stat("timed_out").await, 1);
        service.end().await;
    });
}

#[test]
fn all_samples_are_what_they_claim_to_be() {
    run(async {
        let service = Service::start(&PATIENT).await;
        let listed = service.get("/samples").await.json();
        assert_eq!(listed.as_array().unwrap().len(), SAMPLES.len());
        for sample in SAMPLES.iter() {
            let sent = service.get(&format!("/samples/{}", sample.name)).await;
            assert!(sent.body == sample.bytes, "{}", sample.name);
        }
        // The bomb is made as this one, of which all pixels are there.
        let whole = image::load_from_memory(&zeros_in_full(300, 200)).unwrap();
        assert!(whole == DynamicImage::new_rgba8(300, 200));
        assert!(bytes("expands.png") == zeros_in_full(10_000, 9_000));
        let flag = service.thumbnail(bytes("flag.ppmx")).await;
        assert_eq!(flag.header("x-original-size"), "64x64");
        let pixels = image::load_from_memory(&flag.body).unwrap().into_rgb8();
        assert_eq!([pixels.get_pixel(0, 0).0, pixels.get_pixel(63, 63).0], [[228, 3, 3], [0, 128, 38]]);
        assert_eq!(service.get("/samples/none").await.status, 404);
        service.end().await;
    });
}

#[test]
fn the_documentation_has_the_status_of_each_sample() {
    let text = std::fs::read_to_string("docs/service.md").unwrap();
    for sample in SAMPLES.iter() {
        let row = text.lines().find(|line| line.starts_with(&format!("| `{}` |", sample.name)));
        let status = row.and_then(|row| row.split(" | ").nth(2));
        assert_eq!(status, Some(&*sample.status.to_string()), "{}", sample.name);
    }
}

#[test]
fn bad_requests_are_told_apart_before_any_task_is_made_of_them() {
    run(async {
        let service = Service::start(&PATIENT).await;
        let png = bytes("picture.png");
        let post = |query: &str| service.post(&format!("/thumbnail{query}"), "image/png", png.clone());
        for query in ["?width=0", "?height=1025", "?width=-1", "?width=wide"] {
            assert_eq!(post(query).await.problem(400), "bad-size", "{query}");
        }
        assert_eq!(service.thumbnail("").await.problem(400), "no-image");
        assert_eq!(service.thumbnail(vec![0; (10 << 20) + 1]).await.problem(413), "bad-upload");
        assert_eq!(service.get("/thumbnail").await.status, 405);
        assert_eq!(service.stat("submitted").await, 0);
        // The largest upload is none of these: it is only no image.
        assert_eq!(service.thumbnail(vec![0; 10 << 20]).await.problem(415), "unknown-format");
        // Without a size there is a usual one.
        let usual = post("").await;
        assert_eq!(image::load_from_memory(&usual.body).unwrap().width(), 256);
        assert_eq!(service.stat("submitted").await, 2);
        service.end().await;
    });
}

#[test]
fn a_form_is_read_as_well() {
    run(async {
        let service = Service::start(&PATIENT).await;
        let png = bytes("picture.png");
        let form = |head: &str| {
            let start = format!("--limit\r\ncontent-disposition: form-data; {head}\r\n\r\n");
            Bytes::from([start.as_bytes(), &png, b"\r\n--limit--\r\n"].concat())
        };
        let post =
            |body| service.post("/thumbnail?width=96&height=80", "multipart/form-data; boundary=limit", body);
        let answer = post(form("name=image; filename=a.png")).await;
        assert_thumbnail(&answer, "image/png", &expected(&png));
        assert_eq!(post(form("name=text")).await.problem(400), "no-image");
        assert_eq!(post(Bytes::from_static(b"--limit\r\n")).await.problem(400), "bad-upload");
        service.end().await;
    });
}

#[test]
fn a_full_queue_is_503_with_a_time_to_come_back_and_clients_that_go_away_make_room() {
    run(async {
        let service = Service::start(&[&PATIENT[..], &["--workers", "2", "--queue", "3"]].concat()).await;
        let endless = bytes("endless.ppmx");
        let stuck: Vec<_> = (0..5).map(|_| tokio::spawn(service.thumbnail(endless.clone()))).collect();
        service.until("submitted", |tasks| tasks == 5).await;
        service.until("running", |tasks| tasks == 2).await;

        for refused in join_all((0..10).map(|_| service.thumbnail(bytes("photo.jpg")))).await {
            assert_eq!(refused.problem(503), "overloaded");
            assert_eq!(refused.header("retry-after"), "1");
        }
        assert_eq!(service.get("/healthz").await.body, "ok\n", "busy is healthy");
        assert_eq!(service.stat("submitted").await, 5);

        stuck.iter().for_each(|client| client.abort());
        service.until("cancelled", |tasks| tasks == 5).await;
        let png = bytes("picture.png");
        assert_thumbnail(&service.thumbnail(png.clone()).await, "image/png", &expected(&png));
        service.end().await;
    });
}

#[test]
fn a_worker_that_is_killed_from_outside_is_no_fault_of_the_file() {
    run(async {
        let service = Service::start(&PATIENT).await;
        let stuck = tokio::spawn(service.thumbnail(bytes("endless.ppmx")));
        service.until("running", |tasks| tasks == 1).await;
        let stats = service.get("/stats").await.json();
        let busy = stats["workers"].as_array().unwrap().iter().find(|worker| !worker["task"].is_null());
        let pid = busy.expect("a busy worker")["pid"].as_i64().unwrap();
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        let answer = stuck.await.unwrap();
        assert_eq!(answer.problem(503), "worker-killed");
        assert_eq!(answer.header("retry-after"), "1");
        service.end().await;
    });
}

#[test]
fn an_upload_that_stops_is_given_up() {
    run(async {
        let service = Service::start(&["--upload-ms", "100"]).await;
        let mut client = slow_upload(&service).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains(r#""code":"too-slow""#), "{answer}");
        service.end().await;
    });
}

#[test]
fn uploads_that_do_not_come_in_are_counted_and_make_room_when_they_go() {
    run(async {
        let options = ["--workers", "1", "--queue", "0", "--upload-ms", "120000", "--timeout-ms", "60000"];
        let service = Service::start(&options).await;
        let slow = join_all((0..65).map(|_| slow_upload(&service))).await;
        let png = bytes("picture.png");
        service.until("uploads", |uploads| uploads == 65).await;
        assert_eq!(service.thumbnail(png.clone()).await.problem(503), "overloaded");
        assert_eq!(service.stat("submitted").await, 0, "no task is in the way");
        drop(slow);
        service.until("uploads", |uploads| uploads == 0).await;
        assert_thumbnail(&service.thumbnail(png.clone()).await, "image/png", &expected(&png));
        service.end().await;
    });
}

/// A request that says that there is more to come, and leaves it at that.
async fn slow_upload(service: &Service) -> TcpStream {
    let mut stream = TcpStream::connect(service.address.strip_prefix("http://").unwrap()).await.unwrap();
    let start =
        b"POST /thumbnail HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-length: 100\r\n\r\nPPMX";
    stream.write_all(start).await.unwrap();
    stream
}

#[test]
fn events_tell_of_the_pool_until_the_service_ends() {
    run(async {
        let service = Service::start(&PATIENT).await;
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new());
        let request = axum::http::Request::get(format!("{}/events", service.address));
        let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
        let response = client.build_http().request(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = response.into_body();

        service.thumbnail(bytes("photo.jpg")).await;
        let mut seen = 0;
        while seen == 0 {
            let frame = stream.frame().await.expect("it goes on").unwrap().into_data().unwrap();
            let text = str::from_utf8(&frame).unwrap();
            let data = text.strip_prefix("data: ").and_then(|text| text.strip_suffix("\n\n")).expect(text);
            let pool: serde_json::Value = serde_json::from_str(data).unwrap();
            assert!(pool["workers"][0]["pid"].as_u64().is_some_and(|pid| pid > 0), "{pool}");
            seen = pool["succeeded"].as_u64().unwrap();
        }
        assert_eq!(seen, 1);
        service.end().await; // which it does although there is somebody to listen
        while let Some(Ok(_)) = stream.frame().await {}
    });
}

#[test]
fn when_told_to_end_it_answers_what_it_has_accepted() {
    run(async {
        let options = ["--workers", "1", "--queue", "1000", "--grace-ms", "60000"];
        let mut service = Service::start(&[&PATIENT[..], &options].concat()).await;
        // Nothing else is done until the first is given up, after the signal.
        let first = tokio::spawn(service.thumbnail(bytes("endless.ppmx")));
        service.until("running", |tasks| tasks == 1).await;
        let png = bytes("picture.png");
        let others: Vec<_> = (0..8).map(|_| tokio::spawn(service.thumbnail(png.clone()))).collect();
        service.until("submitted", |tasks| tasks == 9).await;

        let workers = descendants(service.pid());
        assert!(workers.len() >= 2, "a fork server and a worker: {workers:?}");
        service.signal(Signal::TERM);
        let line = service.line().await.unwrap();
        assert!(line.starts_with("ending: "), "{line}");
        let address = service.address.strip_prefix("http://").unwrap().to_owned();
        // The listener is closed right after that line.
        while TcpStream::connect(&address).await.is_ok() {}

        first.abort();
        let small = expected(&png);
        for answer in join_all(others).await {
            assert_thumbnail(&answer.unwrap(), "image/png", &small);
        }
        assert_eq!(service.line().await, None, "it has not run out of patience");
        service.ended().await;
        for worker in workers {
            assert!(!common::is_alive(worker.pid), "left behind: {worker:?}");
        }
    });
}

#[test]
fn what_is_not_done_when_the_time_to_end_is_over_is_answered_all_the_same() {
    run(async {
        let mut service = Service::start(&[&PATIENT[..], &["--grace-ms", "100"]].concat()).await;
        let stuck = tokio::spawn(service.thumbnail(bytes("endless.ppmx")));
        service.until("running", |tasks| tasks == 1).await;
        service.signal(Signal::TERM);
        assert!(service.line().await.unwrap().starts_with("ending: "));
        assert_eq!(service.line().await.unwrap(), "out of patience");
        assert_eq!(stuck.await.unwrap().problem(503), "shutting-down");
        service.ended().await;
    });
}

#[test]
fn a_second_signal_ends_it_at_once_and_what_is_left_is_answered() {
    run(async {
        let mut service = Service::start(&PATIENT).await;
        let stuck = tokio::spawn(service.thumbnail(bytes("endless.ppmx")));
        service.until("running", |tasks| tasks == 1).await;
        service.signal(Signal::INT);
        assert!(service.line().await.unwrap().starts_with("ending: "));
        service.signal(Signal::TERM);
        assert_eq!(service.line().await.unwrap(), "ending at once");
        let answer = stuck.await.unwrap();
        assert_eq!(answer.problem(503), "shutting-down");
        assert_eq!(answer.header("retry-after"), "1");
        service.ended().await;
    });
}

#[test]
fn it_tests_itself() {
    run(async {
        let mut command = Command::new(example("thumbnails"));
        command.args(["--self-test", "--timeout-ms", "15000"]);
        let output = command.stdin(Stdio::null()).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.lines().count(), SAMPLES.len(), "{said}");
        for sample in SAMPLES.iter() {
            let line = said.lines().find(|line| line.contains(sample.name)).expect(sample.name);
            assert!(line.contains(&format!("  {}  ", sample.status)), "{line}");
        }
    });
}

#[test]
fn nonsense_on_the_command_line_is_refused() {
    run(async {
        for arguments in [&["--prot", "1"][..], &["--port"], &["--port", "65536"], &["--workers", "0"]] {
            let output = Command::new(example("thumbnails")).args(arguments).output().await.unwrap();
            assert!(!output.status.success(), "{arguments:?}");
            assert!(!output.stderr.is_empty());
        }
    });
}
