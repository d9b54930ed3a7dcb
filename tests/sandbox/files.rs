//! Escapes to files.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use procession::StartMethod;

use super::{Escape, Outcome, Stage, c_path, check, escape, told};

both! { no_file_is_reached, each_file_is_reached_without_a_sandbox }

async fn no_file_is_reached(method: StartMethod) {
    super::are_refused(method, ESCAPES).await;
}

async fn each_file_is_reached_without_a_sandbox(method: StartMethod) {
    super::work_without_a_sandbox(method, ESCAPES).await;
}

pub(super) static ESCAPES: &[Escape] = &[
    escape("open for reading", |stage| open(stage.secret(), libc::O_RDONLY)),
    escape("open for writing", |stage| open(stage.secret(), libc::O_WRONLY)),
    escape("open for reading and writing", |stage| open(stage.secret(), libc::O_RDWR)),
    escape("open for appending", |stage| open(stage.secret(), libc::O_WRONLY | libc::O_APPEND)),
    escape("open for neither", |stage| open(stage.secret(), libc::O_ACCMODE)),
    escape("open a readable file for writing", |stage| open(stage.readable(), libc::O_WRONLY)),
    escape("open through a link", |stage| open(stage.mine().join("link"), libc::O_RDONLY)),
    escape("open from a directory", open_from_directory),
    escape("open by the older call", open_by_older_call),
    escape("open by the newer call", open_by_newer_call).needs("openat2"),
    escape("open by a handle", open_by_handle).needs("CAP_DAC_READ_SEARCH"),
    escape("open the memory", |_| open("/proc/self/mem", libc::O_RDWR)),
    escape("open the environment", |_| open("/proc/self/environ", libc::O_RDONLY)),
    escape("open for reading and empty", |stage| open(stage.readable(), libc::O_RDONLY | libc::O_TRUNC)),
    escape("open for neither and empty", |stage| open(stage.secret(), libc::O_ACCMODE | libc::O_TRUNC)),
    escape("truncate", |stage| truncate(&stage.readable())),
    escape("truncate what is not readable", |stage| truncate(&stage.secret())),
    escape("create", |stage| open(stage.theirs().join("new"), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL)),
    escape("create without a name", |stage| open(stage.theirs(), libc::O_WRONLY | libc::O_TMPFILE))
        .needs("a file system with O_TMPFILE"),
    escape("create what runs as its owner", |stage| create_lent(stage, libc::O_CREAT, 0o4711)),
    escape("create what runs as its group", |stage| create_lent(stage, libc::O_CREAT, 0o2711)),
    escape("create what runs as its owner, without a name", |stage| {
        create_lent(stage, libc::O_TMPFILE, 0o4711)
    })
    .needs("a file system with O_TMPFILE"),
    escape("create what runs as its owner by the older call", create_lent_by_older_call),
    escape("open again for writing", |stage| open_again(readable(stage)?.as_fd(), libc::O_WRONLY)),
    escape("open what is only named", |stage| {
        open_again(open_fd(stage.secret(), libc::O_PATH)?.as_fd(), libc::O_RDONLY)
    }),
    escape("hold back who writes", |stage| {
        // SAFETY: it takes no pointers.
        check(unsafe { libc::fcntl(readable(stage)?.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) })
    })
    .needs("a file system with leases"),
    escape("be told of changes", be_told_of_changes).needs("dnotify"),
    escape("create shared memory", create_shared_memory).needs("/dev/shm"),
    escape("create a directory", |stage| told(fs::create_dir(stage.theirs().join("new")))),
    escape("create a pipe", create_pipe),
    escape("create a link", |stage| told(std::os::unix::fs::symlink("file", stage.theirs().join("new")))),
    escape("link out", |stage| told(fs::hard_link(stage.readable(), stage.theirs().join("new")))),
    escape("link in", |stage| told(fs::hard_link(stage.secret(), stage.mine().join("new")))),
    escape("link in what is readable", |stage| {
        told(fs::hard_link(stage.readable(), stage.mine().join("new")))
    }),
    escape("remove", |stage| told(fs::remove_file(stage.secret()))),
    escape("remove what is readable", |stage| told(fs::remove_file(stage.readable()))),
    escape("remove a directory", |stage| told(fs::remove_dir(stage.theirs().join("empty")))),
    escape("rename", |stage| told(fs::rename(stage.secret(), stage.theirs().join("new")))),
    escape("rename in", |stage| told(fs::rename(stage.secret(), stage.mine().join("new")))),
    escape("rename out", |stage| told(fs::rename(stage.mine().join("file"), stage.theirs().join("new")))),
    escape("exchange", exchange).needs("a file system with RENAME_EXCHANGE"),
    escape("list", |stage| told(fs::read_dir(stage.theirs()))),
    escape("list the root", |_| told(fs::read_dir("/"))),
    escape("watch", watch),
    escape("chmod", |stage| set_mode(&stage.readable())),
    escape("chmod what is not readable", |stage| set_mode(&stage.secret())),
    escape("chmod by the newer call", set_mode_by_newer_call).needs("fchmodat2"),
    escape("fchmod", |stage| set_mode_of_open(stage, 0o640)),
    escape("fchmod to set the user", |stage| set_mode_of_open(stage, 0o4711)),
    escape("fchmod to set the group", |stage| set_mode_of_open(stage, 0o2711)),
    escape("fchmod without access", set_mode_of_opened_for_neither),
    escape("chown", |stage| told(std::os::unix::fs::lchown(stage.readable(), Some(own_uid()), None))),
    escape("fchown", |stage| told(std::os::unix::fs::fchown(readable(stage)?, Some(own_uid()), None))),
    escape("setxattr", set_attribute).needs("a file system with user attributes"),
    escape("fsetxattr", set_attribute_of_open).needs("a file system with user attributes"),
    escape("utimes", |stage| set_times(&stage.readable())),
    escape("utimes of what is not readable", |stage| set_times(&stage.secret())),
    escape("futimes", |stage| told(readable(stage)?.set_modified(std::time::SystemTime::UNIX_EPOCH))),
];

fn open_fd(path: impl AsRef<Path>, flags: i32) -> Result<OwnedFd, i32> {
    // SAFETY: the path is a C string; a descriptor that is opened is for us alone.
    unsafe {
        let fd = libc::open(c_path(path).as_ptr(), flags | libc::O_CLOEXEC, 0o600);
        check(fd).map(|()| OwnedFd::from_raw_fd(fd))
    }
}

pub(super) fn open(path: impl AsRef<Path>, flags: i32) -> Outcome {
    open_fd(path, flags).map(drop)
}

fn readable(stage: &Stage) -> Result<File, i32> {
    open_fd(stage.readable(), libc::O_RDONLY).map(File::from)
}

fn own_uid() -> u32 {
    // SAFETY: it has no preconditions.
    unsafe { libc::geteuid() }
}

fn open_from_directory(stage: &Stage) -> Outcome {
    let directory = open_fd(stage.theirs(), libc::O_PATH)?;
    // SAFETY: the path is a C string; what is opened is closed with the process.
    check(unsafe { libc::openat(directory.as_raw_fd(), c"../secret".as_ptr(), libc::O_RDONLY) })
}

#[cfg(target_arch = "x86_64")]
fn open_by_older_call(stage: &Stage) -> Outcome {
    let path = c_path(stage.readable());
    let flags = libc::O_RDONLY | libc::O_TRUNC;
    // SAFETY: the path is a C string; what is opened is closed with the process.
    check(unsafe { libc::syscall(libc::SYS_open, path.as_ptr(), flags, 0) })
}

#[cfg(not(target_arch = "x86_64"))]
fn open_by_older_call(stage: &Stage) -> Outcome {
    open(stage.secret(), libc::O_RDONLY)
}

fn open_by_newer_call(stage: &Stage) -> Outcome {
    let how = [libc::O_RDONLY as u64, 0, 0];
    let path = c_path(stage.secret());
    // SAFETY: the path is a C string, and `how` has the three words of an open_how.
    check(unsafe {
        libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), &raw const how, size_of_val(&how))
    })
}

fn open_by_handle(stage: &Stage) -> Outcome {
    #[repr(C)]
    struct Handle {
        head: libc::file_handle,
        bytes: [u8; 128],
    }
    // SAFETY: zeroed handles are valid; the call fills in at most as many bytes as it is told of.
    unsafe {
        let mut handle: Handle = std::mem::zeroed();
        handle.head.handle_bytes = 128;
        let (path, mut mount) = (c_path(stage.secret()), 0);
        let named = libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        );
        let directory = open_fd(stage.theirs(), libc::O_RDONLY).ok();
        let directory = directory.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let opened = libc::syscall(libc::SYS_open_by_handle_at, directory, &raw const handle, libc::O_RDONLY);
        let refused = check(opened);
        check(named).and(refused)
    }
}

fn truncate(path: &Path) -> Outcome {
    // SAFETY: the path is a C string.
    check(unsafe { libc::truncate(c_path(path).as_ptr(), 0) })
}

fn create_shared_memory(stage: &Stage) -> Outcome {
    let name = CString::new(format!("/procession-test-{}", stage.tcp)).unwrap();
    // SAFETY: the name is a C string; what is opened is closed with the process.
    unsafe {
        let opened = check(libc::shm_open(name.as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600));
        libc::shm_unlink(name.as_ptr());
        opened
    }
}

/// Makes a file of this mode in a directory that may be writable, or finds that it was made without.
fn create_lent(stage: &Stage, how: i32, mode: u32) -> Outcome {
    let path = match how {
        libc::O_CREAT => stage.mine().join(format!("lent-{mode:o}")),
        _ => stage.mine(),
    };
    // SAFETY: the path is a C string; a descriptor that is opened is for us alone.
    let file = unsafe {
        let fd = libc::open(c_path(path).as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC | how, mode);
        check(fd).map(|()| File::from_raw_fd(fd))?
    };
    expect_mode(&file, mode)
}

fn create_lent_by_older_call(stage: &Stage) -> Outcome {
    // SAFETY: the path is a C string; a descriptor that is opened is for us alone.
    let file = unsafe {
        let fd = libc::creat(c_path(stage.mine().join("lent")).as_ptr(), 0o6711);
        check(fd).map(|()| File::from_raw_fd(fd))?
    };
    expect_mode(&file, 0o6711)
}

/// Opens the same file once more, in another way.
fn open_again(file: BorrowedFd<'_>, flags: i32) -> Outcome {
    open(format!("/proc/self/fd/{}", file.as_raw_fd()), flags)
}

fn be_told_of_changes(stage: &Stage) -> Outcome {
    const F_NOTIFY: i32 = 1026;
    const DN_CREATE: i32 = 4;
    let directory = open_fd(stage.mine(), libc::O_RDONLY | libc::O_DIRECTORY)?;
    // SAFETY: it takes no pointers.
    check(unsafe { libc::fcntl(directory.as_raw_fd(), F_NOTIFY, DN_CREATE) })
}

fn create_pipe(stage: &Stage) -> Outcome {
    // SAFETY: the path is a C string.
    check(unsafe { libc::mkfifo(c_path(stage.theirs().join("new")).as_ptr(), 0o600) })
}

fn exchange(stage: &Stage) -> Outcome {
    let (one, other) = (c_path(stage.secret()), c_path(stage.mine().join("file")));
    let (here, flags) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
    // SAFETY: the paths are C strings.
    check(unsafe { libc::syscall(libc::SYS_renameat2, here, one.as_ptr(), here, other.as_ptr(), flags) })
}

fn watch(stage: &Stage) -> Outcome {
    // SAFETY: the path is a C string; what is opened is closed with the process.
    unsafe {
        let watcher = libc::inotify_init1(0);
        check(watcher)?;
        check(libc::inotify_add_watch(watcher, c_path(stage.secret()).as_ptr(), libc::IN_ACCESS))
    }
}

fn set_mode(path: &Path) -> Outcome {
    // SAFETY: the path is a C string.
    check(unsafe { libc::chmod(c_path(path).as_ptr(), 0o640) })?;
    // Who may write is told that it is done.
    let is_done = fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o7777 == 0o640);
    if is_done { Ok(()) } else { Err(libc::EPERM) }
}

fn set_mode_by_newer_call(stage: &Stage) -> Outcome {
    const FCHMODAT2: libc::c_long = 452;
    let file = open_fd(stage.secret(), libc::O_PATH)?;
    // SAFETY: the path is a C string.
    check(unsafe { libc::syscall(FCHMODAT2, file.as_raw_fd(), c"".as_ptr(), 0o640, libc::AT_EMPTY_PATH) })
}

fn set_mode_of_open(stage: &Stage, mode: u32) -> Outcome {
    let file = readable(stage)?;
    // SAFETY: the descriptor is open.
    check(unsafe { libc::fchmod(file.as_raw_fd(), mode) })?;
    // Who may write is told that it is done.
    expect_mode(&file, mode)
}

fn expect_mode(file: &File, mode: u32) -> Outcome {
    let is_it = file.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o7777 == mode);
    if is_it { Ok(()) } else { Err(libc::EPERM) }
}

fn set_mode_of_opened_for_neither(stage: &Stage) -> Outcome {
    let file = open_fd(stage.secret(), libc::O_ACCMODE)?;
    // SAFETY: the descriptor is open.
    check(unsafe { libc::fchmod(file.as_raw_fd(), 0o640) })
}

fn set_attribute(stage: &Stage) -> Outcome {
    let path = c_path(stage.readable());
    // SAFETY: path and name are C strings, and the value has one byte.
    check(unsafe { libc::setxattr(path.as_ptr(), c"user.mark".as_ptr(), c"x".as_ptr().cast(), 1, 0) })
}

fn set_attribute_of_open(stage: &Stage) -> Outcome {
    let file = readable(stage)?;
    let name = c"user.mark".as_ptr();
    // SAFETY: the name is a C string, and the value has one byte.
    check(unsafe { libc::fsetxattr(file.as_raw_fd(), name, c"x".as_ptr().cast(), 1, 0) })
}

fn set_times(path: &Path) -> Outcome {
    let times = [libc::timeval { tv_sec: 0, tv_usec: 0 }; 2];
    // SAFETY: the path is a C string, and there are two times.
    check(unsafe { libc::utimes(c_path(path).as_ptr(), times.as_ptr()) })
}
