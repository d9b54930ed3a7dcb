use procession::ProcessPool;

fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn work(pool: &ProcessPool) {
    pool.submit(add, (1, 2, 3)).detach();
}

fn main() {
    let _: fn(&ProcessPool) = work;
}
