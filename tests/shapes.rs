//! Every shape of function that a pool takes; `values.rs` has the values that go there and back.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::ops::Add;
use std::time::Duration;

use common::{Meeting, Open, attend_async, panicked};
use procession::{Builder, ProcessPool};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

both! {
    a_task_runs_in_another_process,
    functions_of_zero_to_eight_arguments,
    a_single_argument_may_stand_alone_or_in_a_tuple,
    a_tuple_may_be_the_single_argument,
    closures_with_annotated_parameters,
    closures_without_annotations,
    functions_that_return_nothing,
    functions_of_the_standard_library,
    functions_with_equal_bodies_are_told_apart_by_type,
    generic_functions,
    a_pool_in_a_generic_function,
    async_functions,
    async_closures,
    closures_that_return_async_blocks,
    async_tasks_have_timers_and_io,
    anyhow_results_are_flattened,
    results_of_their_own_come_back_whole,
    closures_that_only_panic,
    a_handle_may_be_sent_to_another_task,
}

/// Submits, and compares what comes back.
macro_rules! gives {
    ($pool:ident, $function:expr, $arguments:expr, $result:expr) => {
        assert_eq!($pool.submit($function, $arguments).await.unwrap(), $result)
    };
}

async fn a_task_runs_in_another_process(builder: Builder) {
    let pool = builder.open().unwrap();
    let pid = pool.submit(std::process::id, ()).await.unwrap();
    assert_ne!(pid, std::process::id());
    assert!(!procession::worker::is_worker());
    gives!(pool, procession::worker::is_worker, (), true);
    pool.shutdown().await;
}

fn nought() -> Vec<u8> {
    vec![]
}
fn one(a: u8) -> Vec<u8> {
    vec![a]
}
fn two(a: u8, b: u8) -> Vec<u8> {
    vec![a, b]
}
fn three(a: u8, b: u8, c: u8) -> Vec<u8> {
    vec![a, b, c]
}
fn four(a: u8, b: u8, c: u8, d: u8) -> Vec<u8> {
    vec![a, b, c, d]
}
fn five(a: u8, b: u8, c: u8, d: u8, e: u8) -> Vec<u8> {
    vec![a, b, c, d, e]
}
fn six(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8) -> Vec<u8> {
    vec![a, b, c, d, e, f]
}
fn seven(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8) -> Vec<u8> {
    vec![a, b, c, d, e, f, g]
}
#[allow(clippy::too_many_arguments)]
fn eight(a: u8, b: u16, c: char, d: bool, e: String, f: f32, g: Option<u8>, h: (i8, i8)) -> String {
    format!("{a} {b} {c} {d} {e} {f} {g:?} {h:?}")
}

async fn functions_of_zero_to_eight_arguments(builder: Builder) {
    let pool = builder.open().unwrap();
    gives!(pool, nought, (), Vec::<u8>::new());
    gives!(pool, one, 1, vec![1]);
    gives!(pool, two, (1, 2), vec![1, 2]);
    gives!(pool, three, (1, 2, 3), vec![1, 2, 3]);
    gives!(pool, four, (1, 2, 3, 4), vec![1, 2, 3, 4]);
    gives!(pool, five, (1, 2, 3, 4, 5), vec![1, 2, 3, 4, 5]);
    gives!(pool, six, (1, 2, 3, 4, 5, 6), vec![1, 2, 3, 4, 5, 6]);
    gives!(pool, seven, (1, 2, 3, 4, 5, 6, 7), vec![1, 2, 3, 4, 5, 6, 7]);
    let arguments = (1, 2, 'c', true, "e".to_owned(), 0.5, Some(7), (8, -8));
    gives!(pool, eight, arguments, "1 2 c true e 0.5 Some(7) (8, -8)");
    pool.shutdown().await;
}

async fn a_single_argument_may_stand_alone_or_in_a_tuple(builder: Builder) {
    fn count_letters(word: String) -> usize {
        word.len()
    }
    let pool = builder.open().unwrap();
    gives!(pool, count_letters, "hello".to_string(), 5);
    gives!(pool, count_letters, ("hello".to_string(),), 5);
    pool.shutdown().await;
}

async fn a_tuple_may_be_the_single_argument(builder: Builder) {
    fn difference(pair: (u32, u32)) -> u32 {
        pair.0 - pair.1
    }
    fn unit(_: ()) -> u8 {
        1
    }
    let pool = builder.open().unwrap();
    gives!(pool, difference, (44, 2), 42);
    gives!(pool, difference, ((44, 2),), 42);
    gives!(pool, |(a, b): (u8, u8)| a - b, (3, 2), 1);
    gives!(pool, unit, (), 1);
    gives!(pool, |(): ()| 2u8, (), 2);
    pool.shutdown().await;
}

async fn closures_with_annotated_parameters(builder: Builder) {
    let pool = builder.open().unwrap();
    gives!(pool, || 1u8, (), 1);
    gives!(pool, |x: u64| x + 1, 1, 2);
    gives!(pool, |x: u64, y: u64| x * y, (6, 7), 42);
    gives!(pool, |word: String, n: usize| word.repeat(n), ("ab".to_owned(), 2), "abab");
    gives!(pool, |v: Vec<u8>| v.len(), vec![1, 2], 2);
    gives!(pool, move |x: u8| x, 9, 9);
    pool.shutdown().await;
}

async fn closures_without_annotations(builder: Builder) {
    let pool = builder.open().unwrap();
    gives!(pool, |x| x + 1, 1u64, 2);
    gives!(pool, |x, y| x * y, (6u64, 7u64), 42);
    gives!(pool, |word| word.len(), "hello".to_string(), 5);
    gives!(pool, |(a, b)| a - b, (3u8, 2u8), 1);
    pool.shutdown().await;
}

async fn functions_that_return_nothing(builder: Builder) {
    let pool = builder.open().unwrap();
    gives!(pool, || (), (), ());
    gives!(pool, |_: u8| {}, 1, ());
    gives!(pool, drop::<String>, "x".to_owned(), ());
    pool.shutdown().await;
}

async fn functions_of_the_standard_library(builder: Builder) {
    let pool = builder.open().unwrap();
    gives!(pool, u64::pow, (2, 10), 1024);
    gives!(pool, i64::abs, -3, 3);
    gives!(pool, String::into_bytes, "ab".to_owned(), b"ab".to_vec());
    gives!(pool, f64::max, (1.0, 2.0), 2.0);
    pool.shutdown().await;
}

async fn functions_with_equal_bodies_are_told_apart_by_type(builder: Builder) {
    fn as_signed(x: i32) -> i32 {
        x
    }
    fn as_unsigned(x: u32) -> u32 {
        x
    }
    fn the_same_again(x: i32) -> i32 {
        x
    }
    let pool = builder.open().unwrap();
    gives!(pool, as_signed, -1, -1);
    gives!(pool, as_unsigned, u32::MAX, u32::MAX);
    gives!(pool, the_same_again, i32::MIN, i32::MIN);
    pool.shutdown().await;
}

fn sum<T: Add<Output = T>>(a: T, b: T) -> T {
    a + b
}

async fn generic_functions(builder: Builder) {
    let pool = builder.open().unwrap();
    gives!(pool, sum::<u8>, (1, 2), 3);
    gives!(pool, sum::<i64>, (-1, -2), -3);
    gives!(pool, sum::<f32>, (0.5, 0.25), 0.75);
    pool.shutdown().await;
}

async fn a_pool_in_a_generic_function(builder: Builder) {
    async fn through<T>(pool: &ProcessPool, value: T) -> T
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        pool.submit(|value: T| value, value).await.unwrap()
    }
    let pool = builder.open().unwrap();
    assert_eq!(through(&pool, 7u8).await, 7);
    assert_eq!(through(&pool, "seven".to_owned()).await, "seven");
    pool.shutdown().await;
}

async fn async_functions(builder: Builder) {
    async fn greet(name: String) -> String {
        tokio::task::yield_now().await;
        format!("hello {name}")
    }
    async fn add(a: u8, b: u8) -> anyhow::Result<u8> {
        Ok(a + b)
    }
    async fn nothing() {}
    let pool = builder.open().unwrap();
    gives!(pool, greet, "you".to_owned(), "hello you");
    gives!(pool, add, (1, 2), 3);
    gives!(pool, nothing, (), ());
    pool.shutdown().await;
}

async fn async_closures(builder: Builder) {
    let pool = builder.open().unwrap();
    gives!(pool, async || 1u8, (), 1);
    gives!(pool, async |x: u8| x + 1, 1, 2);
    gives!(pool, async |x: u8, y: u8| x + y, (1, 2), 3);
    gives!(pool, async |word: String| anyhow::Ok(word.len()), "abc".to_owned(), 3);
    pool.shutdown().await;
}

async fn closures_that_return_async_blocks(builder: Builder) {
    let pool = builder.open().unwrap();
    gives!(pool, || async { 1u8 }, (), 1);
    gives!(pool, |x: u8| async move { x + 1 }, 1, 2);
    gives!(pool, |x: u8, y: u8| async move { x + y }, (1, 2), 3);
    pool.shutdown().await;
}

async fn async_tasks_have_timers_and_io(builder: Builder) {
    async fn wait_and_meet(place: String) -> bool {
        let start = tokio::time::Instant::now();
        tokio::time::sleep(Duration::from_millis(20)).await;
        attend_async(&place, "async").await;
        start.elapsed() >= Duration::from_millis(20)
    }
    let pool = builder.open().unwrap();
    let meeting = Meeting::new();
    let task = pool.submit(wait_and_meet, meeting.place());
    drop(meeting.next().await);
    assert!(task.await.unwrap());
    pool.shutdown().await;
}

async fn anyhow_results_are_flattened(builder: Builder) {
    fn parse(text: String) -> anyhow::Result<i32> {
        Ok(text.parse()?)
    }
    let pool = builder.open().unwrap();
    gives!(pool, parse, "-5".to_owned(), -5);
    gives!(pool, |x: u8| -> anyhow::Result<u8> { Ok(x) }, 1, 1);
    gives!(pool, || anyhow::Ok(()), (), ());
    assert_matches!(pool.submit(parse, "five".to_owned()).await, Err(procession::TaskError::Failed(_)));
    pool.shutdown().await;
}

async fn results_of_their_own_come_back_whole(builder: Builder) {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Odd(u32);
    fn half(x: u32) -> Result<u32, Odd> {
        if x.is_multiple_of(2) { Ok(x / 2) } else { Err(Odd(x)) }
    }
    async fn half_later(x: u32) -> Result<u32, Odd> {
        half(x)
    }
    let pool = builder.open().unwrap();
    gives!(pool, half, 4, Ok(2));
    gives!(pool, half, 5, Err(Odd(5)));
    gives!(pool, half_later, 7, Err(Odd(7)));
    pool.shutdown().await;
}

async fn closures_that_only_panic(builder: Builder) {
    let pool = builder.open().unwrap();
    assert_eq!(panicked(pool.submit(|| panic!("one"), ()).await).message(), "one");
    assert_eq!(panicked(pool.submit(|_: u32| panic!("two"), 1).await).message(), "two");
    let typed = pool.submit(|| -> u32 { panic!("three") }, ()).await;
    assert_eq!(panicked(typed).message(), "three");
    assert!(panicked(pool.submit(|| unimplemented!(), ()).await).message().contains("not implemented"));
    pool.shutdown().await;
}

async fn a_handle_may_be_sent_to_another_task(builder: Builder) {
    fn assert_shape<T: Future + Send + Unpin + 'static>(handle: T) -> T {
        handle
    }
    let pool = builder.open().unwrap();
    let handle = assert_shape(pool.submit(one, 5));
    assert_eq!(tokio::spawn(handle).await.unwrap().unwrap(), vec![5]);
    pool.shutdown().await;
}
