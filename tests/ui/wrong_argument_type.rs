use procession::ProcessPool;

fn count_letters(word: String) -> usize {
    word.len()
}

fn work(pool: &ProcessPool) {
    pool.submit(count_letters, 7).detach();
}

fn main() {
    let _: fn(&ProcessPool) = work;
}
