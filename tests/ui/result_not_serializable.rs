use procession::ProcessPool;

struct Plain(#[allow(dead_code)] u64);

fn wrap(x: u64) -> Plain {
    Plain(x)
}

fn work(pool: &ProcessPool) {
    pool.submit(wrap, 7).detach();
}

fn main() {
    let _: fn(&ProcessPool) = work;
}
