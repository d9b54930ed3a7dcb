//! Noticing on the way down what the pool would not see: a stack overflow, or that a task has cut its
//! worker off.
//!
//! A worker is entered before the Rust runtime would have set up its own handler, so it has to
//! bring one, or a stack overflow would look like any other SIGSEGV.

use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// What is stored in the word given to [`watch_stack`] when the stack overflows.
pub(crate) const STACK_OVERFLOW: u64 = 0x5354_4b4f_5646;

/// What is stored there by [`end_cut_off`].
pub(crate) const CUT_OFF: u64 = 0x4355_545f_4f46;

static GUARD_START: AtomicUsize = AtomicUsize::new(0);
static GUARD_END: AtomicUsize = AtomicUsize::new(0);
static NOTE: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// Ignores SIGPIPE, as the Rust runtime does on its way into `main`.
pub(crate) fn ignore_sigpipe() {
    // SAFETY: setting a signal to be ignored installs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Ends a worker that has lost its way to the pool: that is gone, or a task has closed what is not its own.
pub(crate) fn end_cut_off() -> ! {
    leave(CUT_OFF);
    super::child::exit_now(1)
}

fn leave(words: u64) {
    // SAFETY: the pointer is null or came from a `&'static AtomicU64`.
    if let Some(note) = unsafe { NOTE.load(Ordering::Relaxed).as_ref() } {
        note.store(words, Ordering::Release);
    }
}

/// Watches the calling thread's stack: when it overflows, a note is stored and a line is written
/// to standard error before the process dies of the signal as it would have anyway.
///
/// Overflows of other threads end the process too, without the note.
pub(crate) fn watch_stack(note: Option<&'static AtomicU64>) {
    if let Some(note) = note {
        NOTE.store(std::ptr::from_ref(note).cast_mut(), Ordering::Relaxed);
    }
    let Some((start, end)) = stack_guard() else { return };
    GUARD_START.store(start, Ordering::Relaxed);
    GUARD_END.store(end, Ordering::Relaxed);
    install_alternate_stack();
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: a zeroed sigaction is valid storage; the handler has the SA_SIGINFO signature
        // and only does what is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// The addresses just beyond the calling thread's stack, where an overflow first hits.
fn stack_guard() -> Option<(usize, usize)> {
    let page = rustix::param::page_size();
    // SAFETY: pthread_getattr_np initialises the zeroed attributes for the calling thread, the
    // getters read them into live locals, and they are destroyed once.
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        if libc::pthread_getattr_np(libc::pthread_self(), &mut attributes) != 0 {
            return None;
        }
        let (mut start, mut size, mut guard) = (std::ptr::null_mut(), 0, 0);
        let got = libc::pthread_attr_getstack(&attributes, &mut start, &mut size);
        libc::pthread_attr_getguardsize(&attributes, &mut guard);
        libc::pthread_attr_destroy(&mut attributes);
        // C libraries differ in whether the guard lies below the start or just above it. Frames
        // are probed page by page, so an overflow cannot jump over the guard.
        let guard = guard.max(page);
        (got == 0).then_some((start as usize - guard, start as usize + guard))
    }
}

fn install_alternate_stack() {
    let size = libc::SIGSTKSZ.max(64 * 1024);
    let stack: &'static mut [u8] = Vec::leak(vec![0; size]);
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: size };
    // SAFETY: the memory was leaked, so it stays valid, and nothing else uses it.
    unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) };
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler, and for SIGSEGV and
    // SIGBUS it has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let guard = GUARD_START.load(Ordering::Relaxed)..GUARD_END.load(Ordering::Relaxed);
    if guard.contains(&address) {
        leave(STACK_OVERFLOW);
        super::fds::write_stderr(b"\nthe task has overflowed its stack\n");
    }
    // Back to the default: the faulting instruction runs again and ends the process.
    // SAFETY: setting a signal to its default installs no code; signal() is async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // A signal that somebody sent does not come again by itself.
    // SAFETY: siginfo is valid as above; raise is async-signal-safe.
    if unsafe { (*info).si_code } <= 0 {
        unsafe { libc::raise(signal) };
    }
}
