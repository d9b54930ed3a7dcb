//! Drives the page of `examples/thumbnails` in a headless Chromium. Where there is none the tests say so and
//! pass, unless `PROCESSION_BROWSER=required`.

#![cfg(all(target_os = "linux", feature = "auto-init"))]

#[path = "thumbnails/browser.rs"]
mod browser;
mod common;
#[path = "thumbnails/service.rs"]
mod service;

use std::process::Stdio;

use browser::Browser;
use common::run;
use service::Service;
use service::samples::sample;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

#[test]
fn the_page_shows_thumbnails_explanations_and_the_pool() {
    run(async {
        let Some(browser) = Browser::start().await else { return };
        let service = Service::start(&["--workers", "2", "--timeout-ms", "8000"]).await;
        browser.open(&service.address).await;
        browser.until("document.querySelector('#link.on')").await;

        // A file, chosen as a user does.
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sunset.jpg");
        std::fs::write(&file, &sample("photo.jpg").unwrap().bytes).unwrap();
        browser.choose("#file", &file).await;
        browser.until("document.querySelector('#result img')?.naturalWidth").await;
        let size = "(image => `${image.naturalWidth} x ${image.naturalHeight}`)(document.querySelector('#result img'))";
        assert_eq!(browser.until(size).await, "300 x 200");
        assert!(browser.text("#result").await.starts_with("sunset.jpg\n480x320, now "));

        // What is hostile is explained.
        for (name, status, explanation) in [
            ("aborts.ppmx", 500, "The decoder crashed on this image"),
            ("panics.ppmx", 422, "The decoder gave up on this image with a panic"),
            ("expands.png", 413, "Decoding takes more memory than a worker may have"),
            ("noise.bin", 415, "This is no image in a format that the service knows"),
        ] {
            press(&browser, name).await;
            browser.until(&format!("document.querySelector('#result').dataset.status == '{status}'")).await;
            let text = browser.text("#result").await;
            assert!(text.starts_with(&status.to_string()) && text.contains(explanation), "{name}: {text}");
        }

        // The pool, while a task runs that never ends, and afterwards.
        press(&browser, "endless.ppmx").await;
        let busy =
            "[...document.querySelectorAll('#workers tr')].find(row => row.cells[1].innerText == 'busy')";
        let task = browser.until(&format!("({busy})?.cells[2].innerText")).await;
        assert!(task.as_str().unwrap().starts_with("task "), "{task}");
        browser.until("document.querySelector('#running').innerText == '1'").await;
        browser.until("document.querySelector('#timed_out').innerText == '1'").await;
        browser.until("document.querySelector('#result').dataset.status == '504'").await;
        browser.until("document.querySelector('#workers_died').innerText == '3'").await;
        browser.until("document.querySelector('#times').rows[1].cells[1].innerText == '6'").await;
        let answers = browser.text("#answers").await;
        for each in ["200 × 1", "413 × 1", "415 × 1", "422 × 1", "500 × 1", "504 × 1"] {
            assert!(answers.contains(each), "{answers}");
        }

        // And good ones are served as before, by new workers.
        press(&browser, "picture.png").await;
        browser.until("document.querySelector('#result img')?.alt == 'thumbnail of picture.png'").await;
        browser.until("document.querySelector('#succeeded').innerText == '3'").await;
        service.end().await;
        browser.until("!document.querySelector('#link.on')").await;
        assert_eq!(browser.close().await, [] as [&str; 0]);
    });
}

#[test]
fn a_burst_from_the_page_fills_the_queue_and_passes() {
    run(async {
        let Some(browser) = Browser::start().await else { return };
        let service = Service::start(&["--workers", "1", "--queue", "0", "--timeout-ms", "60000"]).await;
        browser.open(&service.address).await;
        browser.click("#burst").await;
        let counts =
            "[...document.querySelectorAll('#answers span')].map(part => part.innerText.split(' × '))";
        // Each of the 60 has its answer, and some were refused.
        let all = format!("({counts}).reduce((sum, [, count]) => sum + +count, 0) == 60 && ({counts})");
        let counts = browser.until(&all).await;
        let statuses: Vec<_> = counts.as_array().unwrap().iter().map(|pair| pair[0].clone()).collect();
        assert_eq!(statuses, ["200", "503"], "{counts}");
        service.end().await;
        assert_eq!(browser.close().await, [] as [&str; 0]);
    });
}

/// Takes the picture for the documentation: `cargo test --release --test thumbnails_page -- --ignored`.
#[test]
#[ignore = "makes docs/thumbnails.png anew"]
fn picture() {
    run(async {
        let browser = Browser::start().await.expect("a browser");
        let service = Service::start(&["--timeout-ms", "1000"]).await;
        browser.open(&service.address).await;
        press(&browser, "endless.ppmx").await;
        browser.until("document.querySelector('#result').dataset.status == '504'").await;
        browser.click("#load").await;
        browser.until("+document.querySelector('#succeeded').innerText.replace(',', '') > 3000").await;
        press(&browser, "aborts.ppmx").await;
        browser.until("document.querySelector('#result').dataset.status == '500'").await;
        browser.until("document.querySelector('#running').innerText == '2'").await;
        save(&browser.picture().await, "docs/thumbnails.png").await;
        browser.click("#load").await;
        browser.close().await;
        service.end().await;
    });
}

/// Decodes base64 into a file.
async fn save(text: &str, path: &str) {
    let file = std::fs::File::create(path).unwrap();
    let mut decoder = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(file).spawn().unwrap();
    decoder.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    assert!(decoder.wait().await.unwrap().success());
}

async fn press(browser: &Browser, sample: &str) {
    browser.until(&format!("document.getElementById('sample-{sample}')")).await;
    browser.click(&format!("[id='sample-{sample}']")).await;
}
