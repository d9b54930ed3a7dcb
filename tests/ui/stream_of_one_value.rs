use procession::ProcessPool;

fn add_one(x: u64) -> u64 {
    x + 1
}

fn work(pool: &ProcessPool) {
    drop(pool.stream(add_one, 7));
}

fn main() {
    let _: fn(&ProcessPool) = work;
}
