//! The system calls that a sandbox allows.
//!
//! Three filters, of which the kernel lets the strictest have its way. The first knows what programs
//! call that compute, use files, time and threads; everything else is "not implemented", which is
//! what C libraries take as a hint to do without. The second refuses, as "not permitted", what would
//! reach beyond the process: always, or depending on the arguments. The third pretends.

use super::Allowed;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;

/// Filters that are ready to be put in place.
pub(super) struct Filters([BpfProgram; 3]);

impl Filters {
    /// Puts them in place, for the calling thread and those that it starts.
    pub(super) fn install(self) -> Result<(), String> {
        let explain = |error| format!("failed to filter system calls: {error}");
        self.0.iter().try_for_each(|filter| apply_filter(filter).map_err(explain))
    }
}

/// Whether system calls can be filtered here, or why not.
pub(super) fn check() -> Result<(), String> {
    architecture()?;
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the operation reads the u32 that the pointer, to a live local, leads to.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) } {
        0 => Ok(()),
        _ => Err(format!("this kernel cannot filter system calls: {}", std::io::Error::last_os_error())),
    }
}

fn architecture() -> Result<TargetArch, String> {
    std::env::consts::ARCH.try_into().map_err(|error: seccompiler::BackendError| error.to_string())
}

/// The filters for what a sandbox is to allow.
///
/// With `signals_are_scoped` the kernel sees to it that signals go nowhere but to processes in the
/// same sandbox.
pub(super) fn filters(allowed: &Allowed<'_>, signals_are_scoped: bool) -> Result<Filters, String> {
    let known = [KNOWN, LEGACY, NETWORK, PROCESSES, IGNORED, REFUSED, LEGACY_REFUSED];
    let known = known.into_iter().flatten().map(|call| (*call, Vec::new())).collect();
    let known = compile(known, SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow)?;
    let refused = refused(allowed, signals_are_scoped).map_err(|error| error.to_string())?;
    let refused = compile(refused, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32))?;
    let ignored = IGNORED.iter().map(|call| (*call, Vec::new())).collect();
    let ignored = compile(ignored, SeccompAction::Allow, SeccompAction::Errno(0))?;
    // In this order: of two that give an error the later decides which, and past the list of what is
    // known no more filters can be added.
    Ok(Filters([ignored, refused, known]))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, String> {
    let filter = SeccompFilter::new(rules, otherwise, matched, architecture()?);
    filter.and_then(BpfProgram::try_from).map_err(|error| format!("failed to filter system calls: {error}"))
}

/// What is refused although it is known.
fn refused(allowed: &Allowed<'_>, signals_are_scoped: bool) -> Result<Rules, seccompiler::BackendError> {
    let own = u64::from(std::process::id());
    let mut refused = Rules::new();
    let mut always = |calls: &[i64]| {
        refused.extend(calls.iter().map(|call| (*call, Vec::new())));
    };
    always(REFUSED);
    always(LEGACY_REFUSED);
    if !allowed.network {
        always(NETWORK);
    }
    if allowed.execute.is_empty() {
        always(PROCESSES);
    }
    if allowed.write.is_empty() {
        always(IGNORED);
    }
    let mut when = |call: i64, rules: Vec<Vec<SeccompCondition>>| -> Result<(), _> {
        let rules = rules.into_iter().map(SeccompRule::new).collect::<Result<Vec<_>, _>>()?;
        refused.insert(call, rules);
        Ok::<_, seccompiler::BackendError>(())
    };
    // Signals and limits are for the process itself, and signals for what it may start.
    if allowed.execute.is_empty() || !signals_are_scoped {
        for call in [libc::SYS_kill, libc::SYS_tgkill] {
            when(call, vec![vec![is_not(0, own)?]])?;
        }
    }
    when(libc::SYS_prlimit64, vec![none_of(0, &[0, own])?])?;
    when(libc::SYS_sched_setaffinity, vec![none_of(0, &[0, own])?])?;
    // Not into other namespaces, where a process would have all capabilities, nor as children of
    // who has started this process. Without programs: threads, but no processes.
    let mut clone =
        NEVER_CLONED.iter().map(|flag| Ok(vec![has(0, *flag as u64)?])).collect::<Result<Vec<_>, _>>()?;
    if allowed.execute.is_empty() {
        clone.push(vec![has_not(0, libc::CLONE_THREAD as u64)?]);
    }
    when(libc::SYS_clone, clone)?;
    // Opening a file for reading, and emptying it while at it. Landlock knows that as writing only
    // since Linux 6.2. Nor for neither reading nor writing, a third way that Linux has, of which
    // Landlock knows nothing: what is opened so can be locked, emptied and have its mode changed. Nor
    // making one that is executed as its owner.
    let (access, truncate) = (libc::O_ACCMODE as u64, libc::O_TRUNC as u64);
    let opening = |flags| {
        let emptied = vec![masked(flags, access | truncate, truncate)?];
        let mut rules = vec![emptied, vec![has(flags, access)?]];
        for (creating, lent) in
            [libc::O_CREAT, libc::O_TMPFILE].into_iter().flat_map(|how| LENT.map(|lent| (how, lent)))
        {
            rules.push(vec![has(flags, creating as u64)?, has(flags + 1, lent)?]);
        }
        Ok::<_, seccompiler::BackendError>(rules)
    };
    when(libc::SYS_openat, opening(2)?)?;
    #[cfg(target_arch = "x86_64")]
    when(libc::SYS_open, opening(1)?)?;
    #[cfg(target_arch = "x86_64")]
    when(libc::SYS_creat, LENT.into_iter().map(|lent| Ok(vec![has(1, lent)?])).collect::<Result<_, _>>()?)?;
    // Not what has a signal sent to whatever process is named.
    when(libc::SYS_fcntl, vec![none_of(1, FCNTL)?])?;
    // Not what types into the terminal.
    when(libc::SYS_ioctl, vec![none_of(1, IOCTL)?])?;
    when(libc::SYS_prctl, vec![none_of(0, PRCTL)?])?;
    // Streams between threads, which lead nowhere else. From a datagram socket of a pair one can
    // send to any other; for Unix sockets, raw is the same.
    let is_kind = |kind: i32| Ok::<_, seccompiler::BackendError>(vec![masked(1, 0xf, kind as u64)?]);
    let unix = vec![is_not(0, libc::AF_UNIX as u64)?];
    when(libc::SYS_socketpair, vec![unix, is_kind(libc::SOCK_DGRAM)?, is_kind(libc::SOCK_RAW)?])?;
    if allowed.network {
        // The kernel would load rarely used parts of itself for any other.
        let families = none_of(0, &[libc::AF_INET as u64, libc::AF_INET6 as u64])?;
        let mut sockets = vec![families, none_of(2, PROTOCOLS)?];
        let rare = (0..=0xf).filter(|kind| ![libc::SOCK_STREAM, libc::SOCK_DGRAM].contains(kind));
        for kind in rare {
            sockets.push(is_kind(kind)?);
        }
        when(libc::SYS_socket, sockets)?;
    }
    Ok(refused)
}

type Condition = Result<SeccompCondition, seccompiler::BackendError>;

// Arguments are compared as 32 bits: these are all `int` or `unsigned int`, of which the kernel
// ignores the other half, or flags that lie in the lower half.
fn compare(argument: u8, operator: SeccompCmpOp, value: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

fn is_not(argument: u8, value: u64) -> Condition {
    compare(argument, SeccompCmpOp::Ne, value)
}

fn none_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompCondition>, seccompiler::BackendError> {
    values.iter().map(|value| is_not(argument, *value)).collect()
}

fn masked(argument: u8, mask: u64, value: u64) -> Condition {
    compare(argument, SeccompCmpOp::MaskedEq(mask), value)
}

fn has_not(argument: u8, flag: u64) -> Condition {
    masked(argument, flag, 0)
}

fn has(argument: u8, flag: u64) -> Condition {
    masked(argument, flag, flag)
}

/// What lends whoever executes a file the rights of its owner, or of its group.
const LENT: [u64; 2] = [libc::S_ISUID as u64, libc::S_ISGID as u64];

/// The protocols that sockets may speak; 0 is what is usual for the kind.
const PROTOCOLS: &[u64] = &[
    0,
    libc::IPPROTO_TCP as u64,
    libc::IPPROTO_MPTCP as u64,
    libc::IPPROTO_UDP as u64,
    libc::IPPROTO_ICMP as u64,
    libc::IPPROTO_ICMPV6 as u64,
];

/// With any of these, nothing is cloned.
const NEVER_CLONED: &[i32] = &[
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_PARENT,
];

/// The operations on open files that are allowed.
const FCNTL: &[u64] = &[
    libc::F_DUPFD as u64,
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
    libc::F_GETLK as u64,
    libc::F_SETLK as u64,
    libc::F_SETLKW as u64,
    libc::F_OFD_GETLK as u64,
    libc::F_OFD_SETLK as u64,
    libc::F_OFD_SETLKW as u64,
    libc::F_GETPIPE_SZ as u64,
    libc::F_SETPIPE_SZ as u64,
    libc::F_ADD_SEALS as u64,
    libc::F_GET_SEALS as u64,
];

/// The operations on devices that are allowed: those that libraries try on any file.
#[allow(clippy::unnecessary_cast)] // C libraries differ in their type.
const IOCTL: &[u64] = &[
    libc::FIONREAD as u64,
    libc::FIONBIO as u64,
    libc::FIOCLEX as u64,
    libc::FIONCLEX as u64,
    libc::TCGETS as u64,
    libc::TIOCGWINSZ as u64,
];

/// The operations on the process that are allowed.
const PRCTL: &[u64] = &[
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_SET_TIMERSLACK as u64,
    libc::PR_GET_TIMERSLACK as u64,
    libc::PR_SET_THP_DISABLE as u64,
    libc::PR_SET_VMA as u64,
    libc::PR_SET_NO_NEW_PRIVS as u64,
];

/// What programs call that compute, use files, time and threads.
#[rustfmt::skip]
const KNOWN: &[i64] = &[
    // Open files.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64,
    libc::SYS_pwrite64, libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2,
    libc::SYS_close, libc::SYS_close_range, libc::SYS_lseek, libc::SYS_dup, libc::SYS_dup3,
    libc::SYS_pipe2, libc::SYS_fcntl, libc::SYS_ioctl, libc::SYS_flock, libc::SYS_ftruncate,
    libc::SYS_fallocate, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range,
    libc::SYS_fadvise64, libc::SYS_readahead, libc::SYS_copy_file_range, libc::SYS_sendfile,
    libc::SYS_splice, libc::SYS_fstat, libc::SYS_fstatfs,
    // Files by name, which Landlock watches over.
    libc::SYS_openat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_readlinkat,
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_getdents64, libc::SYS_getcwd, libc::SYS_chdir,
    libc::SYS_fchdir, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_renameat2, libc::SYS_linkat,
    libc::SYS_symlinkat, libc::SYS_umask,
    // Memory.
    libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise,
    libc::SYS_brk, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_mincore,
    libc::SYS_msync, libc::SYS_membarrier,
    // Threads, and the process itself.
    libc::SYS_clone, libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_get_robust_list,
    libc::SYS_set_tid_address, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_getpgid,
    libc::SYS_getsid, libc::SYS_rseq, libc::SYS_sched_yield, libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity, libc::SYS_sched_getparam, libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min, libc::SYS_getpriority,
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_restart_syscall, libc::SYS_prctl, libc::SYS_getuid,
    libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getgroups, libc::SYS_getresuid,
    libc::SYS_getresgid, libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrusage, libc::SYS_prlimit64,
    libc::SYS_times, libc::SYS_getcpu, libc::SYS_getrandom, libc::SYS_wait4, libc::SYS_waitid,
    // Signals.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait, libc::SYS_sigaltstack, libc::SYS_signalfd4,
    libc::SYS_kill, libc::SYS_tgkill,
    // Time.
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep,
    libc::SYS_gettimeofday, libc::SYS_timer_create, libc::SYS_timer_settime, libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun, libc::SYS_timer_delete, libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime, libc::SYS_getitimer, libc::SYS_setitimer,
    // Waiting for events.
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_ppoll,
    libc::SYS_pselect6, libc::SYS_eventfd2,
    // Connected sockets, of which there are none but pairs within the process.
    libc::SYS_socketpair, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg,
    libc::SYS_sendmmsg, libc::SYS_recvmmsg, libc::SYS_shutdown, libc::SYS_getsockopt,
    libc::SYS_setsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
];

/// The older forms of the same, where an architecture has them.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const LEGACY: &[i64] = &[
    libc::SYS_open, libc::SYS_creat, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access,
    libc::SYS_readlink, libc::SYS_poll, libc::SYS_select, libc::SYS_pipe, libc::SYS_dup2,
    libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_eventfd, libc::SYS_signalfd,
    libc::SYS_getdents, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename,
    libc::SYS_renameat, libc::SYS_link, libc::SYS_symlink, libc::SYS_alarm, libc::SYS_pause,
    libc::SYS_getpgrp, libc::SYS_getrlimit, libc::SYS_time, libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[i64] = &[];

/// What is refused of these.
#[cfg(target_arch = "x86_64")]
const LEGACY_REFUSED: &[i64] = &[libc::SYS_chown, libc::SYS_lchown, libc::SYS_utimes];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY_REFUSED: &[i64] = &[];

/// What leads out of the machine, or to other processes by way of it.
#[rustfmt::skip]
const NETWORK: &[i64] = &[
    libc::SYS_socket, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen, libc::SYS_accept,
    libc::SYS_accept4,
];

/// What makes processes of other programs. A fork is a `clone`, or else one of these.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const PROCESSES: &[i64] = &[
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_setpgid, libc::SYS_setsid, libc::SYS_fork,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const PROCESSES: &[i64] = &[libc::SYS_execve, libc::SYS_execveat, libc::SYS_setpgid, libc::SYS_setsid];

/// What is refused where nothing may be written, and otherwise pretends to have been done: it reaches
/// files that are not the task's, open for reading only as the program itself or by any path, but copying a
/// file asks for it, and so does unpacking an archive.
#[cfg(target_arch = "x86_64")]
const IGNORED: &[i64] = &[libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_chmod];
#[cfg(not(target_arch = "x86_64"))]
const IGNORED: &[i64] = &[libc::SYS_fchmod, libc::SYS_fchmodat];

/// What nobody needs who computes, and what is refused rather than unknown, for a clear error.
#[rustfmt::skip]
const REFUSED: &[i64] = &[
    // Other processes.
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_kcmp,
    libc::SYS_pidfd_open, libc::SYS_pidfd_getfd, libc::SYS_pidfd_send_signal, libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo, libc::SYS_setpriority, libc::SYS_ioprio_set,
    libc::SYS_sched_setscheduler, libc::SYS_sched_setparam, libc::SYS_process_madvise,
    // Memory that no limit counts, and what processes share by name.
    libc::SYS_memfd_create, libc::SYS_shmget, libc::SYS_shmat, libc::SYS_semget, libc::SYS_msgget, libc::SYS_mq_open,
    // What Landlock does not watch over.
    libc::SYS_truncate, libc::SYS_utimensat, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_mknodat,
    libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr, libc::SYS_removexattr,
    libc::SYS_lremovexattr, libc::SYS_fremovexattr, libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at, libc::SYS_inotify_init1, libc::SYS_fanotify_init,
    // Another view of the system, and other privileges.
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_unshare,
    libc::SYS_setns, libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setresuid, libc::SYS_setresgid,
    libc::SYS_setgroups, libc::SYS_capset,
    // The kernel itself.
    libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_keyctl, libc::SYS_add_key,
    libc::SYS_request_key, libc::SYS_syslog, libc::SYS_reboot,
];
