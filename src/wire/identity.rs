//! Which build of the program a process runs.

use crate::sys::image::Image;
use std::os::unix::fs::MetadataExt;

/// Bytes that are equal in two processes exactly if they run the same build: the linker's
/// build-id, or, where it wrote none, the identity of the executable file.
pub(crate) fn build_identity() -> Vec<u8> {
    if let Some(id) = Image::main().build_id() {
        return [b"id:", id].concat();
    }
    let file = std::fs::metadata("/proc/self/exe").map_or_else(
        |error| error.to_string(),
        |file| {
            format!("{}:{}:{}:{}:{}", file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec())
        },
    );
    [b"file:", file.as_bytes()].concat()
}
