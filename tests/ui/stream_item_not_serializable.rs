use procession::ProcessPool;

struct Plain(#[allow(dead_code)] u64);

fn plains(n: u64) -> impl Iterator<Item = Plain> {
    (0..n).map(Plain)
}

fn work(pool: &ProcessPool) {
    drop(pool.stream(plains, 7));
}

fn main() {
    let _: fn(&ProcessPool) = work;
}
