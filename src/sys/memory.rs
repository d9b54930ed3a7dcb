//! Memory that two processes share.

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// A mapping of 64-bit words that both sides of a worker's link write to at will.
///
/// It is only ever looked at through atomics, so whatever the other side writes is a value that
/// may be wrong but never undefined behaviour.
#[derive(Debug)]
pub(crate) struct SharedWords {
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread, and all access to it is atomic.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Makes a sealed memory file of `count` words and maps it. Memory is used only for what is
    /// written to.
    ///
    /// The seals fix the file's size: the other side cannot cut it short, which would turn an
    /// access to it into SIGBUS.
    pub(crate) fn create(count: usize) -> io::Result<(SharedWords, OwnedFd)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(c"procession", flags)?;
        rustix::fs::ftruncate(&file, (count * size_of::<u64>()) as u64)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok((Self::map(file.as_fd(), count)?, file))
    }

    /// Maps `count` words of a file that the other side made; its size is checked.
    pub(crate) fn open(file: BorrowedFd<'_>, count: usize) -> io::Result<SharedWords> {
        let size = rustix::fs::fstat(file)?.st_size;
        if size < (count * size_of::<u64>()) as i64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the shared memory is too small"));
        }
        Self::map(file, count)
    }

    fn map(file: BorrowedFd<'_>, count: usize) -> io::Result<SharedWords> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                count * size_of::<u64>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(SharedWords { start, count })
    }

    /// The words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `count` words long, and lives as long as `self`.
        // Other processes change it meanwhile, which atomics allow.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping that `map` made, and no borrow of it outlives `self`.
        // Unmapping can only fail for wrong arguments.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.count * size_of::<u64>()) };
    }
}

/// A word of it, for copying. A trait, so that what copies can be run in a model checker too.
pub(crate) trait Copied {
    fn read(&self) -> u64;
    fn write(&self, value: u64);
}

macro_rules! copied {
    ($atomic:ty) => {
        impl Copied for $atomic {
            fn read(&self) -> u64 {
                self.load(Ordering::Relaxed)
            }

            fn write(&self, value: u64) {
                self.store(value, Ordering::Relaxed);
            }
        }
    };
}

copied!(AtomicU64);
#[cfg(test)]
copied!(loom::sync::atomic::AtomicU64);

/// How many words hold so many bytes.
pub(crate) fn words_for(bytes: usize) -> usize {
    bytes.div_ceil(size_of::<u64>())
}

/// Copies bytes into words; there must be [`words_for`] them.
pub(crate) fn copy_in<W: Copied>(bytes: &[u8], words: &[W]) {
    let (whole, rest) = bytes.as_chunks::<8>();
    for (word, bytes) in words.iter().zip(whole) {
        word.write(u64::from_ne_bytes(*bytes));
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        words[whole.len()].write(u64::from_ne_bytes(last));
    }
}

/// Appends so many bytes out of words to `out`; there must be [`words_for`] them.
pub(crate) fn copy_out<W: Copied>(words: &[W], bytes: usize, out: &mut Vec<u8>) {
    out.reserve(bytes);
    let (blocks, rest) = words[..bytes / 8].as_chunks::<8>();
    for block in blocks {
        let mut copy = [0; 64];
        for (bytes, word) in copy.as_chunks_mut::<8>().0.iter_mut().zip(block) {
            *bytes = word.read().to_ne_bytes();
        }
        out.extend_from_slice(&copy);
    }
    for word in rest {
        out.extend_from_slice(&word.read().to_ne_bytes());
    }
    let left = bytes % 8;
    if left > 0 {
        let last = words[bytes / 8].read().to_ne_bytes();
        out.extend_from_slice(&last[..left]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::SeqCst;

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls")]
    fn both_mappings_see_one_memory() {
        let (ours, file) = SharedWords::create(512).unwrap();
        let theirs = SharedWords::open(file.as_fd(), 512).unwrap();
        ours.words()[511].store(7, SeqCst);
        assert_eq!(theirs.words()[511].load(SeqCst), 7);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls")]
    fn a_file_that_is_too_small_is_refused_and_a_sealed_one_cannot_be_cut() {
        let (_ours, file) = SharedWords::create(512).unwrap();
        assert!(SharedWords::open(file.as_fd(), 513).is_err());
        assert!(rustix::fs::ftruncate(&file, 8).is_err());
    }

    #[test]
    fn bytes_of_every_length_survive_the_way_through_words() {
        let words: Vec<AtomicU64> = (0..40).map(|_| AtomicU64::new(u64::MAX)).collect();
        for length in 0..300 {
            let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
            copy_in(&bytes, &words[..words_for(bytes.len())]);
            let mut out = b"ahead".to_vec();
            copy_out(&words, bytes.len(), &mut out);
            assert_eq!(out[5..], bytes);
        }
    }
}
