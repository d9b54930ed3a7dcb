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

/// Sets the environment, clearing it first if so asked; what has no value is removed.
#[cfg(feature = "remote")]
pub(crate) fn set_environment(clear: bool, variables: &[(std::ffi::OsString, Option<std::ffi::OsString>)]) {
    use std::os::unix::ffi::OsStrExt;
    let all = std::env::vars_os().map(|(name, _)| name).filter(|_| clear).collect::<Vec<_>>();
    // What cannot be the name of a variable, or its value, would make `std` panic.
    let is_name =
        |name: &std::ffi::OsStr| !name.is_empty() && !name.as_bytes().iter().any(|b| b"=\0".contains(b));
    let is_value = |value: &std::ffi::OsStr| !value.as_bytes().contains(&0);
    for name in all {
        // SAFETY: this is called before `main`, in a process with a single thread.
        unsafe { std::env::remove_var(name) };
    }
    for (name, value) in variables.iter().filter(|(name, _)| is_name(name)) {
        match value {
            // SAFETY: as above.
            Some(value) if is_value(value) => unsafe { std::env::set_var(name, value) },
            // SAFETY: as above.
            _ => unsafe { std::env::remove_var(name) },
        }
    }
}
