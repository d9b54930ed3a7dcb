//! Bytes through memory that two processes share, with nothing of a pool around them: what moving
//! them costs at least.
//!
//! This side copies them in and sends the length through a pipe; the other process wakes, and
//! either answers at once (what is there is the answer) or first copies them out, as a task that
//! owns its argument must, and its result in; then this side copies them out. All memory is used
//! again and again, so that no pages are faulted in.
#![allow(unsafe_code)]

use super::roles::Partner;
use anyhow::ensure;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The other process: answers until there is no more to answer.
pub(crate) fn answer(path: &Path, room: usize, copies: bool) -> io::Result<()> {
    let memory = Memory::map(File::options().read(true).write(true).open(path)?, 2 * room)?;
    let mut requests = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut answers = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut own = vec![0; room];
    let mut length = [0; 8];
    while requests.read(&mut length)? == length.len() {
        if copies {
            let bytes = &mut own[..usize::from_le_bytes(length)];
            memory.copy_out(0, bytes);
            memory.copy_in(room, bytes);
        }
        answers.write_all(&length)?;
    }
    Ok(())
}

/// An echo through shared memory.
#[derive(Debug)]
pub(crate) struct SharedEcho {
    partner: Partner,
    memory: Memory,
    room: usize,
    copies: bool,
}

impl SharedEcho {
    /// One for up to `room` bytes; `copies` tells whether the other process takes them out and in
    /// again. Must be called within a runtime.
    pub(crate) fn start(room: usize, copies: bool) -> anyhow::Result<SharedEcho> {
        let file = memfd_create("peers", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, 2 * room as u64)?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let partner = Partner::start(&format!("shared-echo {path} {room} {copies}"))?;
        Ok(SharedEcho { partner, memory: Memory::map(file, 2 * room)?, room, copies })
    }

    /// Sends bytes there and back, into the same memory.
    pub(crate) async fn bytes(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        ensure!(bytes.len() <= self.room, "there is room for {} bytes", self.room);
        self.memory.copy_in(0, bytes);
        self.partner.requests.write_all(&bytes.len().to_le_bytes()).await?;
        let mut length = [0; 8];
        self.partner.answers.read_exact(&mut length).await?;
        self.memory.copy_out(if self.copies { self.room } else { 0 }, bytes);
        Ok(())
    }
}

/// Memory shared with another process, of which only one at a time uses it.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    length: usize,
    _file: OwnedFd,
}

// SAFETY: it is memory that nobody else in this process has a pointer to.
unsafe impl Send for Memory {}

impl Memory {
    fn map(file: impl Into<OwnedFd>, length: usize) -> io::Result<Memory> {
        let file = file.into();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the system chooses the place, so that nothing is mapped over.
        let start = unsafe { mmap(ptr::null_mut(), length, access, MapFlags::SHARED, &file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Memory { start, length, _file: file })
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.length && bytes.len() <= self.length - at);
        // SAFETY: within the mapping, as just checked, which no reference points into. The other
        // process does not touch it while it is this one's turn.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(at), bytes.len()) }
    }

    fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        assert!(at <= self.length && bytes.len() <= self.length - at);
        // SAFETY: as for `copy_in`.
        unsafe { ptr::copy_nonoverlapping(self.start.as_ptr().add(at), bytes.as_mut_ptr(), bytes.len()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody has a pointer into it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
