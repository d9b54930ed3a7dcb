use procession::ProcessPool;

struct Plain(u64);

fn unwrap(plain: Plain) -> u64 {
    plain.0
}

fn work(pool: &ProcessPool) {
    pool.submit(unwrap, Plain(7)).detach();
}

fn main() {
    let _: fn(&ProcessPool) = work;
}
