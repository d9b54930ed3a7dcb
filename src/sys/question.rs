//! Asking a worker, by a signal, where its task is.
//!
//! The question is a worker's death sentence: it writes its answer into shared memory and ends. So
//! the answer may be found by means that are not for a signal handler, such as memory from the
//! allocator: should the thread have held a lock that they need, it hangs, and is killed without an
//! answer a moment later, as it would have been without the question.

use super::child::ProcessFd;
use super::memory::{copy_in, words_for};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// The name of the signal's handler, as it stands in a backtrace.
pub(crate) const HANDLER: &str = "question::on_question";

/// Where the answer goes: its length in bytes, then the bytes.
static ANSWER: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());
static ANSWER_WORDS: AtomicUsize = AtomicUsize::new(0);

/// The thread that the question is about.
static THREAD: AtomicI32 = AtomicI32::new(0);

/// The signal: one that nothing else is likely to use.
fn signal() -> libc::c_int {
    libc::SIGRTMAX() - 1
}

/// Asks a process.
pub(crate) fn ask(process: &ProcessFd) {
    let (fd, info) = (process.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: the descriptor is open, and a null pointer is allowed for the signal's information.
    // The only failure, that the process is gone, needs no question any more.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal(), info, 0) };
}

/// Has questions about the calling thread answered in these words, of which there must be at least
/// two.
pub(crate) fn answer_in(words: &'static [AtomicU64]) {
    ANSWER_WORDS.store(words.len(), Ordering::Relaxed);
    ANSWER.store(words.as_ptr().cast_mut(), Ordering::Relaxed);
    THREAD.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    // SAFETY: a zeroed sigaction is valid storage; the handler has the signature of one without
    // SA_SIGINFO, and never returns into what it has interrupted unless it has done nothing but
    // pass the signal on.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_question as extern "C" fn(_) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal(), &action, std::ptr::null_mut());
    }
}

extern "C" fn on_question(signal: libc::c_int) {
    let thread = THREAD.load(Ordering::Relaxed);
    // SAFETY: these take no pointers, and concern this process.
    unsafe {
        if libc::gettid() != thread {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal);
            return;
        }
    }
    let text = std::backtrace::Backtrace::force_capture().to_string();
    answer(text.as_bytes());
    // SAFETY: this takes no pointers; the process ends by it, so nothing that was interrupted goes on.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    super::child::exit_now(1)
}

fn answer(text: &[u8]) {
    let words = ANSWER.load(Ordering::Relaxed);
    if words.is_null() {
        return;
    }
    // SAFETY: the two were stored from one `&'static` slice before the handler was installed.
    let words = unsafe { std::slice::from_raw_parts(words, ANSWER_WORDS.load(Ordering::Relaxed)) };
    let Some((length, room)) = words.split_first() else { return };
    let text = &text[..text.len().min(room.len() * size_of::<u64>())];
    copy_in(text, &room[..words_for(text.len())]);
    length.store(text.len() as u64, Ordering::Release);
}
