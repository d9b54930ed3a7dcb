//! Escapes into new processes, and into those that there are.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;

use procession::StartMethod;

use super::Grant::Execute;
use super::stage::SECRET;
use super::{Escape, Outcome, Stage, c_path, check, errno, escape, told};

both! { no_process_is_made_or_reached, each_process_is_made_or_reached_without_a_sandbox }

async fn no_process_is_made_or_reached(method: StartMethod) {
    super::are_refused(method, ESCAPES).await;
}

async fn each_process_is_made_or_reached_without_a_sandbox(method: StartMethod) {
    super::work_without_a_sandbox(method, ESCAPES).await;
}

pub(super) static ESCAPES: &[Escape] = &[
    escape("exec", |_| exec("/bin/true")).granted_by(Execute),
    escape("exec another program", |_| exec("/bin/cat")),
    escape("execveat", execveat).granted_by(Execute),
    escape("execute what may be written", |stage| told(Command::new(stage.mine().join("program")).status())),
    escape("spawn", |_| told(Command::new("/bin/true").status())).granted_by(Execute),
    escape("spawn another program", |_| told(Command::new("/bin/cat").arg("/dev/null").status())),
    escape("fork", |_| fork()).granted_by(Execute),
    escape("fork by clone", |_| clone(libc::SIGCHLD)).granted_by(Execute),
    escape("fork by the older call", |_| fork_by_older_call()).granted_by(Execute),
    escape("vfork", |_| vfork()).granted_by(Execute),
    escape("fork by clone3", |_| clone3()).needs("clone3"),
    escape("fork into new namespaces", |_| clone(libc::SIGCHLD | libc::CLONE_NEWUSER | libc::CLONE_NEWNET))
        .needs("user namespaces"),
    escape("fork a sibling", |_| clone(libc::SIGCHLD | libc::CLONE_PARENT)),
    escape("a fork bomb", |_| fork_bomb()).granted_by(Execute),
    escape("a process group", |_| {
        // SAFETY: it takes no pointers.
        check(unsafe { libc::setpgid(0, 0) })
    })
    .granted_by(Execute),
    escape("ptrace", ptrace).needs("permission to trace"),
    escape("read memory", read_memory).needs("permission to trace"),
    escape("write memory", write_memory).needs("permission to trace"),
    escape("read memory as a file", read_memory_as_file).needs("permission to trace"),
    escape("read the environment", |stage| told(fs::read(proc_file(stage, "environ")))),
    escape("list descriptors", |stage| told(fs::read_dir(proc_file(stage, "fd")))),
    escape("read a link to a descriptor", |stage| told(fs::read_link(proc_file(stage, "fd/0"))))
        .needs("permission to trace"),
    escape("go to the root", |stage| told(fs::read_dir(proc_file(stage, "root"))))
        .needs("permission to trace"),
    escape("go to the directory", |stage| told(fs::metadata(proc_file(stage, "cwd/."))))
        .needs("permission to trace"),
    escape("take a descriptor", take_descriptor).needs("permission to trace"),
    escape("look for its locks", look_for_locks).needs("permission to trace"),
    escape("move its memory", |stage| {
        let nothing = 0usize;
        // SAFETY: it is given no pages.
        check(unsafe { libc::syscall(libc::SYS_move_pages, stage.target, 0, nothing, nothing, nothing, 0) })
    })
    .needs("a kernel for several nodes of memory"),
    escape("compare", compare).needs("kcmp"),
    escape("set limits", set_limits),
    escape("set the priority", set_priority),
    escape("set the scheduler", set_scheduler),
    escape("set the processors", set_affinity),
    escape("set the priority of I/O", set_io_priority),
    escape("renounce death with the parent", |_| survive_parent()),
];

fn proc_file(stage: &Stage, name: &str) -> String {
    format!("/proc/{}/{name}", stage.target)
}

fn exec(program: &str) -> Outcome {
    let (path, argument) = (c_path(program), c_path("/dev/null"));
    let arguments = [path.as_ptr(), argument.as_ptr(), std::ptr::null()];
    // SAFETY: the path is a C string, and the list of arguments ends in null.
    check(unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) })
}

fn execveat(_: &Stage) -> Outcome {
    let path = c_path("/bin/true");
    let arguments = [path.as_ptr(), std::ptr::null()];
    let (here, environment) = (libc::AT_FDCWD, [std::ptr::null::<libc::c_char>()]);
    // SAFETY: as above.
    check(unsafe {
        libc::syscall(libc::SYS_execveat, here, path.as_ptr(), arguments.as_ptr(), environment.as_ptr(), 0)
    })
}

/// In the new process ends it, and in the old one waits for that.
fn end_child(pid: i64) -> Outcome {
    check(pid)?;
    // SAFETY: ending takes no pointers, and waiting may be given none.
    unsafe {
        if pid == 0 {
            libc::_exit(0);
        }
        check(libc::waitpid(pid as i32, std::ptr::null_mut(), libc::__WALL))
    }
}

fn fork() -> Outcome {
    // SAFETY: the child does nothing but end.
    end_child(unsafe { libc::fork() }.into())
}

fn clone(flags: i32) -> Outcome {
    // SAFETY: without CLONE_VM this is a fork, and the child does nothing but end.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if flags & libc::CLONE_PARENT != 0 && pid > 0 {
        return Ok(()); // for its parent to reap
    }
    end_child(pid)
}

#[cfg(target_arch = "x86_64")]
fn fork_by_older_call() -> Outcome {
    // SAFETY: the child does nothing but end.
    end_child(unsafe { libc::syscall(libc::SYS_fork) })
}

#[cfg(not(target_arch = "x86_64"))]
fn fork_by_older_call() -> Outcome {
    fork()
}

fn vfork() -> Outcome {
    extern "C" fn end(_: *mut libc::c_void) -> libc::c_int {
        0
    }
    let mut stack = vec![0u64; 8192];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child has a stack of its own, and ends before this returns.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.len() - 16);
        libc::clone(end, top.cast(), flags, std::ptr::null_mut())
    };
    check(pid)?;
    end_child(pid.into())
}

fn clone3() -> Outcome {
    let mut arguments = [0u64; 11];
    arguments[4] = libc::SIGCHLD as u64;
    // SAFETY: that is a clone_args, which asks for a fork; the child does nothing but end.
    end_child(unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) })
}

fn fork_bomb() -> Outcome {
    (0..20).map(|_| fork()).fold(Err(libc::EPERM), Outcome::or)
}

fn ptrace(stage: &Stage) -> Outcome {
    let nothing = 0usize;
    // SAFETY: none of these reads or writes memory of this process.
    unsafe {
        check(libc::ptrace(libc::PTRACE_SEIZE, stage.target, nothing, nothing))?;
        check(libc::ptrace(libc::PTRACE_INTERRUPT, stage.target, nothing, nothing))?;
        check(libc::waitpid(stage.target, std::ptr::null_mut(), libc::__WALL))?;
        check(libc::ptrace(libc::PTRACE_DETACH, stage.target, nothing, nothing))
    }
}

/// The eight bytes at this address, here and in the process attacked.
fn here_and_there(here: &mut u64, stage: &Stage) -> [libc::iovec; 2] {
    let there = stage.secret_at as *mut libc::c_void;
    [std::ptr::from_mut(here).cast(), there].map(|iov_base| libc::iovec { iov_base, iov_len: 8 })
}

fn read_memory(stage: &Stage) -> Outcome {
    let mut read = 0;
    let [here, there] = here_and_there(&mut read, stage);
    // SAFETY: there is room for what is read.
    check(unsafe { libc::process_vm_readv(stage.target, &here, 1, &there, 1, 0) as i64 })?;
    if read == SECRET { Ok(()) } else { Err(libc::EIO) }
}

fn write_memory(stage: &Stage) -> Outcome {
    let mut nothing = 0;
    let [here, there] = here_and_there(&mut nothing, stage).map(|at| libc::iovec { iov_len: 0, ..at });
    let target = stage.target;
    // SAFETY: no byte is written.
    check(unsafe { libc::process_vm_writev(target, &here, 1, &there, 1, 0) as i64 })
}

fn read_memory_as_file(stage: &Stage) -> Outcome {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 8];
    let file = fs::File::open(proc_file(stage, "mem"));
    told(file.and_then(|file| file.read_exact_at(&mut bytes, stage.secret_at)))?;
    if u64::from_ne_bytes(bytes) == SECRET { Ok(()) } else { Err(libc::EIO) }
}

/// A pidfd, or -1 for what is tried next to fail too if nothing stops it first.
pub(super) fn pidfd(stage: &Stage) -> i32 {
    // SAFETY: it takes no pointers; what is opened is closed with the process.
    unsafe { libc::syscall(libc::SYS_pidfd_open, stage.target, 0) as i32 }
}

fn take_descriptor(stage: &Stage) -> Outcome {
    // SAFETY: it takes no pointers; what is taken is closed with the process.
    check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd(stage), 0, 0) })
}

fn look_for_locks(stage: &Stage) -> Outcome {
    let (mut head, mut length) = (0usize, 0usize);
    // SAFETY: there is room for both.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, stage.target, &raw mut head, &raw mut length) })
}

fn compare(stage: &Stage) -> Outcome {
    const FILES: i32 = 2;
    // SAFETY: it takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_kcmp, std::process::id(), stage.target, FILES, 0, 0) })
}

fn set_limits(stage: &Stage) -> Outcome {
    // As the tests have it anyway.
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the new limits are live, and the old are not asked for.
    check(unsafe { libc::prlimit(stage.target, libc::RLIMIT_CORE, &none, std::ptr::null_mut()) })
}

fn set_priority(stage: &Stage) -> Outcome {
    let who = stage.target as libc::id_t;
    // SAFETY: neither takes a pointer.
    unsafe {
        let priority = libc::getpriority(libc::PRIO_PROCESS, who);
        check(libc::setpriority(libc::PRIO_PROCESS, who, priority))
    }
}

fn set_scheduler(stage: &Stage) -> Outcome {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are live.
    check(unsafe { libc::sched_setscheduler(stage.target, libc::SCHED_OTHER, &parameters) })
}

fn set_affinity(stage: &Stage) -> Outcome {
    // SAFETY: a zeroed set is valid, and both calls are told its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of_val(&set);
        check(libc::sched_getaffinity(stage.target, size, &mut set))?;
        check(libc::sched_setaffinity(stage.target, size, &set))
    }
}

fn set_io_priority(stage: &Stage) -> Outcome {
    const PROCESS: i32 = 1;
    // SAFETY: it takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, stage.target, 0) })
}

fn survive_parent() -> Outcome {
    // SAFETY: it takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) })
}

#[test]
fn an_error_number_is_what_a_call_gave() {
    // SAFETY: no descriptor has that number.
    assert_eq!(check(unsafe { libc::close(-1) }), Err(libc::EBADF));
    assert_eq!(errno(), libc::EBADF);
    assert!(check(std::io::stdin().as_raw_fd()).is_ok());
}
