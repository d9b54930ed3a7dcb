use procession::ProcessPool;

fn work(pool: &ProcessPool, factor: u64) {
    pool.submit(move |x: u64| x * factor, 7).detach();
}

fn main() {
    let _: fn(&ProcessPool, u64) = work;
}
