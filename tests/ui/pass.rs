use procession::ProcessPool;

fn work(pool: &ProcessPool) {
    pool.submit(|x: u64, y: u64| x * y, (6, 7)).detach();
}

fn main() {
    let _: fn(&ProcessPool) = work;
}
