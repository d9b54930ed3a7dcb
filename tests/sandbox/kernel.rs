//! Escapes by way of the kernel: its wide and its dangerous interfaces, and privileges.

use procession::StartMethod;

use super::{Escape, Outcome, Stage, c_path, check, escape};

both! { the_kernel_is_left_alone, the_kernel_is_there_without_a_sandbox }

async fn the_kernel_is_left_alone(method: StartMethod) {
    super::are_refused(method, ESCAPES).await;
}

async fn the_kernel_is_there_without_a_sandbox(method: StartMethod) {
    super::work_without_a_sandbox(method, ESCAPES).await;
}

pub(super) static ESCAPES: &[Escape] = &[
    escape("io_uring", |_| io_uring()).needs("io_uring"),
    escape("an older way to do the same", |_| {
        let mut context = 0usize;
        call(libc::SYS_io_setup, [1, &raw mut context as i64, 0])
    })
    .needs("asynchronous input and output"),
    escape("bpf", |_| bpf()).needs("bpf"),
    escape("perf", |_| perf()).needs("perf events"),
    escape("userfaultfd", |_| call(libc::SYS_userfaultfd, [1, 0, 0])).needs("userfaultfd"),
    escape("keyrings", |_| call(libc::SYS_keyctl, [0, -3, 1])).needs("keyrings"),
    escape("the kernel's log", |_| call(libc::SYS_syslog, [10, 0, 0])).needs("permission to read it"),
    escape("a shared memory segment", |_| {
        let id = identity(libc::SYS_shmget, [0, 4096, 0o600])?;
        call(libc::SYS_shmctl, [id, libc::IPC_RMID.into(), 0])
    }),
    escape("a semaphore", |_| {
        let id = identity(libc::SYS_semget, [0, 1, 0o600])?;
        call(libc::SYS_semctl, [id, 0, libc::IPC_RMID.into()])
    }),
    escape("a message queue", |_| {
        let id = identity(libc::SYS_msgget, [0, 0o600, 0])?;
        call(libc::SYS_msgctl, [id, libc::IPC_RMID.into(), 0])
    }),
    escape("a POSIX message queue", message_queue).needs("POSIX message queues"),
    escape("unshare", |_| call(libc::SYS_unshare, [libc::CLONE_FS.into(), 0, 0]))
        .needs("no other filter around it"),
    escape("setns", setns).needs("CAP_SYS_ADMIN"),
    escape("mount", mount).needs("CAP_SYS_ADMIN"),
    escape("mount by the newer call", |_| {
        const OPEN_TREE: libc::c_long = 428;
        const OPEN_TREE_CLONE: i64 = 1;
        call(OPEN_TREE, [libc::AT_FDCWD.into(), c"/".as_ptr() as i64, OPEN_TREE_CLONE])
    })
    .needs("CAP_SYS_ADMIN"),
    escape("chroot", |stage| {
        let path = c_path(stage.theirs());
        call(libc::SYS_chroot, [path.as_ptr() as i64, 0, 0])
    })
    .needs("CAP_SYS_CHROOT"),
    escape("the name of the machine", |_| {
        // SAFETY: a zeroed utsname is valid and is filled in.
        unsafe {
            let mut names: libc::utsname = std::mem::zeroed();
            check(libc::uname(&mut names))?;
            let length = libc::strlen(names.nodename.as_ptr());
            check(libc::sethostname(names.nodename.as_ptr(), length)) // as it is
        }
    })
    .needs("CAP_SYS_ADMIN"),
    escape("setuid", |_| call(libc::SYS_setuid, [65534, 0, 0])).needs("CAP_SETUID"),
    escape("setgid", |_| call(libc::SYS_setgid, [65534, 0, 0])).needs("CAP_SETGID"),
    escape("setresuid", |_| call(libc::SYS_setresuid, [0, 65534, 0])).needs("CAP_SETUID"),
    escape("setfsuid", |_| {
        call(libc::SYS_setfsuid, [65534, 0, 0])?;
        let now = identity(libc::SYS_setfsuid, [-1, 0, 0])?;
        if now == 65534 { Ok(()) } else { Err(libc::EPERM) }
    })
    .needs("CAP_SETUID"),
    escape("setgroups", |_| call(libc::SYS_setgroups, [0, 0, 0])).needs("CAP_SETGID"),
    escape("capset", |_| capset()),
    escape("raise limits", |_| raise_limits()).needs("CAP_SYS_RESOURCE"),
    escape("go first", |_| {
        // SAFETY: it takes no pointers.
        check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -5) })
    })
    .needs("CAP_SYS_NICE"),
    escape("a filter of its own", |_| {
        const STRICT: i64 = libc::SECCOMP_SET_MODE_STRICT as i64;
        call(libc::SYS_seccomp, [STRICT, 1, 0]).or_else(|error| match error {
            libc::EINVAL => Ok(()), // it was listened to
            error => Err(error),
        })
    }),
    escape("be traceable", |_| call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0])),
    escape("adopt orphans", |_| call(libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER.into(), 1, 0])),
    escape("type into a terminal", type_into_terminal).needs("a terminal and CAP_SYS_ADMIN"),
    escape("memory that no limit counts", |_| unlimited_memory()),
];

fn identity(number: libc::c_long, arguments: [i64; 3]) -> Result<i64, i32> {
    let [a, b, c] = arguments;
    // SAFETY: callers pass what these calls take, and no call here writes to memory.
    let result = unsafe { libc::syscall(number, a, b, c, 0, 0, 0) };
    check(result).map(|()| result)
}

fn call(number: libc::c_long, arguments: [i64; 3]) -> Outcome {
    identity(number, arguments).map(drop)
}

fn io_uring() -> Outcome {
    let parameters = [0u32; 30];
    call(libc::SYS_io_uring_setup, [1, parameters.as_ptr() as i64, 0])
}

fn bpf() -> Outcome {
    const MAP_CREATE: i64 = 0;
    const ARRAY: u32 = 2;
    let attributes = [ARRAY, 4, 4, 1]; // with sizes of a key, a value, and the map
    call(libc::SYS_bpf, [MAP_CREATE, attributes.as_ptr() as i64, size_of_val(&attributes) as i64])
}

fn perf() -> Outcome {
    const SOFTWARE: u32 = 1;
    const EXCLUDE_KERNEL: u64 = 1 << 5;
    let mut attributes = [0u64; 8];
    attributes[0] = u64::from(SOFTWARE) | (64 << 32); // a type, and the size of all
    attributes[5] = EXCLUDE_KERNEL;
    // SAFETY: that is a perf_event_attr of its first version.
    check(unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0) })
}

fn message_queue(stage: &Stage) -> Outcome {
    let name = std::ffi::CString::new(format!("/procession-{}", stage.tcp)).unwrap();
    let flags = libc::O_RDWR | libc::O_CREAT;
    let nothing = std::ptr::null::<libc::mq_attr>();
    // SAFETY: the name is a C string, and no attributes are given.
    unsafe {
        let opened = check(libc::mq_open(name.as_ptr(), flags, 0o600, nothing));
        libc::mq_unlink(name.as_ptr());
        opened
    }
}

fn setns(_: &Stage) -> Outcome {
    // SAFETY: the path is a C string; what is opened is closed with the process.
    let namespace = unsafe { libc::open(c"/proc/self/ns/uts".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    call(libc::SYS_setns, [namespace.into(), 0, 0])
}

fn mount(stage: &Stage) -> Outcome {
    let path = c_path(stage.theirs());
    let nothing = std::ptr::null();
    // SAFETY: the paths are C strings, and a bind takes neither type nor data.
    unsafe {
        check(libc::mount(path.as_ptr(), path.as_ptr(), nothing, libc::MS_BIND, nothing.cast()))?;
        check(libc::umount2(path.as_ptr(), libc::MNT_DETACH))
    }
}

/// Renounces nothing: only whether one may.
fn capset() -> Outcome {
    const VERSION: u32 = 0x2008_0522;
    let head = [VERSION, 0];
    let mut sets = [0u32; 6];
    // SAFETY: these are the structures of that version.
    unsafe {
        let got = check(libc::syscall(libc::SYS_capget, head.as_ptr(), sets.as_mut_ptr()));
        let set = check(libc::syscall(libc::SYS_capset, head.as_ptr(), sets.as_ptr()));
        set.and(got)
    }
}

/// The tests have it that there are no core dumps.
fn raise_limits() -> Outcome {
    let more = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: the structure is live.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &more) })
}

fn type_into_terminal(_: &Stage) -> Outcome {
    // SAFETY: the path is a C string, and each ioctl is given what it takes.
    unsafe {
        let terminal = libc::open(c"/dev/ptmx".as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        check(libc::ioctl(terminal, libc::TIOCSTI, c"x".as_ptr()))
    }
}

/// In files of memory that is not part of any process, nor in any file system.
fn unlimited_memory() -> Outcome {
    // SAFETY: the name is a C string; what is opened is closed with the process.
    unsafe {
        let file = libc::memfd_create(c"hoard".as_ptr(), 0);
        check(file)?;
        check(libc::posix_fallocate(file, 0, 1 << 20))
    }
}
