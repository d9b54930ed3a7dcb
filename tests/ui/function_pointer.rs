use procession::ProcessPool;

fn double(x: u64) -> u64 {
    x * 2
}

fn work(pool: &ProcessPool) {
    let pointer: fn(u64) -> u64 = double;
    pool.submit(pointer, 7).detach();
}

fn main() {
    let _: fn(&ProcessPool) = work;
}
