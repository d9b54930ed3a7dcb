//! Running a function before `main`.

/// Registers a `fn()` to be run by the C runtime before `main`.
///
/// The function runs on the main thread, when libc and the allocator work but before the Rust
/// runtime has been set up: it must not unwind, and must not rely on what `std` does on the way
/// into `main` (SIGPIPE is at its default, the main thread has no name).
#[cfg(feature = "auto-init")]
macro_rules! before_main {
    ($function:path) => {
        const _: () = {
            extern "C" fn call() {
                let function: fn() = $function;
                function();
            }

            // SAFETY: `.init_array` holds pointers to functions that the C runtime calls with
            // (argc, argv, envp) and whose result it ignores; a function that takes no argument
            // may be called so under the C ABI of every Linux target. `#[used]` keeps the static
            // although nothing refers to it.
            #[allow(unsafe_code)]
            #[used]
            #[unsafe(link_section = ".init_array")]
            static BEFORE_MAIN: extern "C" fn() = call;
        };
    };
}
#[cfg(feature = "auto-init")]
pub(crate) use before_main;

/// Takes a variable out of the environment and returns its value.
pub(crate) fn take_env(name: &str) -> Option<std::ffi::OsString> {
    let value = std::env::var_os(name)?;
    // SAFETY: callers run before `main` or as its first statement, in a process that was started
    // to be a worker and has only this thread, so that nobody reads the environment meanwhile.
    unsafe { std::env::remove_var(name) };
    Some(value)
}
