use procession::ProcessPool;

fn count_letters(word: &str) -> usize {
    word.len()
}

fn work(pool: &ProcessPool) {
    pool.submit(count_letters, "hello").detach();
}

fn main() {
    let _: fn(&ProcessPool) = work;
}
