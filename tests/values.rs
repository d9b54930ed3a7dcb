//! Every shape and size of value that goes to a worker and back.

#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::collections::{BTreeMap, HashMap};

use common::Open;
use procession::Builder;
use proptest::strategy::{Strategy, ValueTree};
use serde::{Deserialize, Serialize};

both! {
    user_types,
    collections,
    numbers_at_their_limits,
    values_of_every_size,
    large_values_both_ways_at_once,
    any_value_comes_back_the_same,
}

/// Submits, and compares what comes back.
macro_rules! gives {
    ($pool:ident, $function:expr, $arguments:expr, $result:expr) => {
        assert_eq!($pool.submit($function, $arguments).await.unwrap(), $result)
    };
}

async fn user_types(builder: Builder) {
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Empty,
        Circle(f64),
        Named { name: String, inner: Box<Shape> },
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Unit;
    fn wrap(shape: Shape) -> (Shape, Option<Unit>) {
        let name = "ünï".to_owned();
        (Shape::Named { name, inner: Box::new(shape) }, Some(Unit))
    }
    let pool = builder.open().unwrap();
    for shape in [Shape::Empty, Shape::Circle(1.5)] {
        let wrapped = Shape::Named { name: "ünï".to_owned(), inner: Box::new(shape.clone()) };
        gives!(pool, wrap, shape, (wrapped, Some(Unit)));
    }
    pool.shutdown().await;
}

async fn collections(builder: Builder) {
    fn echo<T>(value: T) -> T {
        value
    }
    let pool = builder.open().unwrap();
    let map: HashMap<String, Vec<Option<i8>>> = [("a".to_owned(), vec![None, Some(-1)])].into();
    gives!(pool, echo, map.clone(), map);
    let tree: BTreeMap<(u8, char), String> = [((1, 'é'), "one".to_owned())].into();
    gives!(pool, echo, tree.clone(), tree);
    gives!(pool, echo, [[1u16; 4]; 2], [[1; 4]; 2]);
    gives!(pool, echo, Vec::<()>::from([(); 3]), vec![(); 3]);
    pool.shutdown().await;
}

async fn numbers_at_their_limits(builder: Builder) {
    let pool = builder.open().unwrap();
    gives!(pool, |x: u128, y: i128| (x, y), (u128::MAX, i128::MIN), (u128::MAX, i128::MIN));
    gives!(pool, |x: u64, y: i64| (x, y), (u64::MAX, i64::MIN), (u64::MAX, i64::MIN));
    gives!(pool, |x: f64| x.is_nan(), f64::NAN, true);
    gives!(pool, |x: char| x, char::MAX, char::MAX);
    pool.shutdown().await;
}

async fn values_of_every_size(builder: Builder) {
    fn invert(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        bytes
    }
    let pool = builder.open().unwrap();
    let (page, pipe) = (4096, 65_536);
    let sizes = [0, 1, page - 1, page, page + 1, pipe - 1, pipe, pipe + 1, 1 << 20, 8 << 20];
    for size in sizes {
        let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let inverted = pool.submit(invert, bytes.clone()).await.unwrap();
        assert!(inverted == invert(bytes), "{size} bytes");
    }
    pool.shutdown().await;
}

async fn any_value_comes_back_the_same(builder: Builder) {
    type Any = (String, Vec<i64>, Option<(bool, u8)>, Vec<String>, Result<u32, String>);
    fn echo<T>(value: T) -> T {
        value
    }
    let pool = builder.open().unwrap();
    let strategy = proptest::arbitrary::any::<Any>();
    let mut runner = proptest::test_runner::TestRunner::default();
    for _ in 0..100 {
        let value = strategy.new_tree(&mut runner).unwrap().current();
        gives!(pool, echo::<Any>, (value.clone(),), value);
    }
    pool.shutdown().await;
}

async fn large_values_both_ways_at_once(builder: Builder) {
    let pool = builder.open().unwrap();
    let bytes = |n: u8| vec![n; 2 << 20];
    let handles: Vec<_> = (0..16).map(|n| pool.submit(|v: Vec<u8>| v, bytes(n))).collect();
    for (n, handle) in (0..).zip(handles) {
        assert!(handle.await.unwrap() == bytes(n), "{n}");
    }
    pool.shutdown().await;
}
