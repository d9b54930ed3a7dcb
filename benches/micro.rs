//! The inner parts one by one, so that a regression can be found:
//! `cargo bench --bench micro --features internals`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use procession::internals;
use std::hint::black_box;

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    group.bench_function("three small fields", |bencher| {
        bencher.iter(|| internals::codec_small(black_box(7)))
    });
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function("1 MiB of bytes", |bencher| {
        bencher.iter_batched(|| vec![1u8; 1 << 20], internals::codec_bytes, BatchSize::LargeInput);
    });
    group.finish();
}

fn wire(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    let mut out = Vec::new();
    group.bench_function("head of a reply", |bencher| {
        bencher.iter(|| internals::frame_head(black_box(7), &mut out))
    });
    let mut ring = internals::Ring::new().expect("shared memory");
    for size in [16, 1024, 16 * 1024] {
        let record = vec![1; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("ring, there and back, {size} bytes"), |bencher| {
            bencher.iter(|| assert!(ring.round_trip(black_box(&record))));
        });
    }
    group.finish();
}

fn scheduler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    for tasks in [1, 1000, 100_000] {
        group.throughput(Throughput::Elements(tasks));
        group.bench_function(format!("{tasks} tasks queued and answered"), |bencher| {
            bencher.iter(|| assert_eq!(internals::scheduler(black_box(tasks)), tasks));
        });
    }
    group.finish();
}

fn handle(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let pool = procession::ProcessPool::builder()
        .workers(1)
        .runtime(runtime.handle().clone())
        .build()
        .expect("a pool");
    let mut group = criterion.benchmark_group("handle");
    group.bench_function("one task there and back", |bencher| {
        bencher.iter(|| runtime.block_on(pool.submit(|n: u64| n, black_box(7))).expect("an answer"));
    });
    // The only worker is kept busy, so that the tasks wait.
    let busy = pool.submit(std::thread::park, ());
    group.bench_function("submitted and dropped while it waits", |bencher| {
        bencher.iter(|| drop(pool.submit(|n: u64| n, black_box(7))));
    });
    group.finish();
    drop(busy);
    runtime.block_on(pool.shutdown_now());
}

criterion_group!(benches, codec, wire, scheduler, handle);
criterion_main!(benches);
