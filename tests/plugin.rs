//! A function that is not in the program's main image.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

#[test]
fn a_task_of_a_plugin_is_refused_with_a_typed_error() {
    let plugin = common::built_program("plugin", "libprocession_plugin.so");
    let plugin = CString::new(plugin.as_os_str().as_bytes()).unwrap();
    // Never unloaded: it leaves thread-local values behind.
    // SAFETY: both names end with a nul, and the function has this type.
    let submit_a_task: extern "C" fn() -> i32 = unsafe {
        let library = libc::dlopen(plugin.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null());
        let symbol = libc::dlsym(library, c"submit_a_task_of_this_plugin".as_ptr());
        assert!(!symbol.is_null());
        std::mem::transmute(symbol)
    };
    common::alone(|| {
        let _ = submit_a_task(); // which lets its own copy of the runtime set itself up
    });
    common::alone(|| assert_eq!(submit_a_task(), 0));
}
