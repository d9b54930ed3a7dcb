//! Arguments and results that do not make it: they fail to encode or to decode, or are too large.
//! The worker lives on in every case.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use common::{Open, a_worker};
use procession::{
    Builder,
    CodecStage::{self, DecodeArguments, DecodeResult, EncodeArguments, EncodeResult},
    TaskError,
};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

both! {
    arguments_that_do_not_encode,
    arguments_that_do_not_decode,
    a_result_that_does_not_encode,
    a_result_that_does_not_decode,
    a_panic_while_decoding_arguments_is_an_error_of_this_task,
    too_large_arguments_are_refused,
    a_too_large_result_is_refused,
    a_message_of_about_the_limit_passes,
}

#[derive(Debug)]
struct Unencodable;
impl Serialize for Unencodable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("will not be written"))
    }
}
impl<'de> Deserialize<'de> for Unencodable {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Ok(Unencodable)
    }
}

#[derive(Debug, Serialize)]
struct Undecodable;
impl<'de> Deserialize<'de> for Undecodable {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("will not be read"))
    }
}

fn expect_codec<T: std::fmt::Debug>(
    outcome: Result<T, TaskError>,
    stage: CodecStage,
    type_name: &str,
    cause: &str,
) {
    let Err(TaskError::Codec(error)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(error.stage(), stage);
    assert!(error.type_name().contains(type_name), "{error:?}");
    assert!(error.cause().contains(cause), "{error:?}");
    let shown = TaskError::Codec(error).to_string();
    assert!(shown.contains(type_name) && shown.contains(cause), "{shown}");
}

async fn arguments_that_do_not_encode(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let outcome = pool.submit(|_: Unencodable, _: u8| (), (Unencodable, 1)).await;
    expect_codec(outcome, EncodeArguments, "Unencodable", "will not be written");
    a_worker(&pool).await;
    pool.shutdown().await;
}

async fn arguments_that_do_not_decode(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let pid = a_worker(&pool).await;
    let outcome = pool.submit(|_: Undecodable| (), Undecodable).await;
    expect_codec(outcome, DecodeArguments, "Undecodable", "will not be read");
    assert_eq!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn a_result_that_does_not_encode(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let pid = a_worker(&pool).await;
    let outcome = pool.submit(|| Unencodable, ()).await;
    expect_codec(outcome, EncodeResult, "Unencodable", "will not be written");
    assert_eq!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn a_result_that_does_not_decode(builder: Builder) {
    let pool = builder.workers(1).open().unwrap();
    let pid = a_worker(&pool).await;
    let outcome = pool.submit(|| Undecodable, ()).await;
    expect_codec(outcome, DecodeResult, "Undecodable", "will not be read");
    assert_eq!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn a_panic_while_decoding_arguments_is_an_error_of_this_task(builder: Builder) {
    #[derive(Serialize)]
    struct Bomb;
    impl<'de> Deserialize<'de> for Bomb {
        fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            panic!("bomb")
        }
    }
    let pool = builder.workers(1).open().unwrap();
    let pid = a_worker(&pool).await;
    let outcome = pool.submit(|_: Bomb| (), Bomb).await;
    assert_matches!(outcome, Err(TaskError::Panicked(_) | TaskError::Codec(_)));
    assert_eq!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

const MIB: usize = 1 << 20;
const LIMIT: u64 = 1 << 20;

async fn too_large_arguments_are_refused(builder: Builder) {
    let pool = builder.workers(1).max_message_size(1 << 20).open().unwrap();
    let pid = a_worker(&pool).await;
    let outcome = pool.submit(|v: Vec<u8>| v.len(), vec![1; 2 * MIB]).await;
    assert_matches!(outcome, Err(TaskError::TooLarge { size, limit: LIMIT }) if size >= 2 * LIMIT);
    assert_eq!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn a_too_large_result_is_refused(builder: Builder) {
    let pool = builder.workers(1).max_message_size(1 << 20).open().unwrap();
    let pid = a_worker(&pool).await;
    let outcome = pool.submit(|n: usize| vec![1u8; n], 2 * MIB).await;
    assert_matches!(outcome, Err(TaskError::TooLarge { size, limit: LIMIT }) if size >= 2 * LIMIT);
    assert_eq!(a_worker(&pool).await, pid);
    pool.shutdown().await;
}

async fn a_message_of_about_the_limit_passes(builder: Builder) {
    let pool = builder.max_message_size(1 << 20).open().unwrap();
    let bytes = vec![1; MIB - 4096];
    assert_eq!(pool.submit(|v: Vec<u8>| v, bytes.clone()).await.unwrap(), bytes);
    pool.shutdown().await;
}
