//! Other ways into the kernel than the usual system calls.

use procession::{Builder, Sandbox};

use crate::{caged, errno};

both! { calls_of_later_kernels_are_unknown }

/// What each system call from this number on gives, which all architectures have in common since Linux
/// 5.1: an error, or a result.
fn call_each(first: i64, but: Vec<i64>) -> Vec<(i64, i64)> {
    let attempt = |number| {
        // SAFETY: no call takes that many wrong arguments, and all addresses are such that none is read or
        // written.
        let result = unsafe { libc::syscall(number, -1, -1, -1, -1, -1, -1) };
        (number, if result == -1 { i64::from(-errno()) } else { result })
    };
    (first..1024).filter(|number| !but.contains(number)).map(attempt).collect()
}

/// Those that are refused say so.
async fn calls_of_later_kernels_are_unknown(builder: Builder) {
    let allowed = vec![libc::SYS_close_range, libc::SYS_faccessat2];
    let Some(pool) = caged(builder, Sandbox::new()) else { return };
    let given = pool.submit(call_each, (libc::SYS_pidfd_send_signal, allowed)).await.unwrap();
    let [unknown, refused] = [libc::ENOSYS, libc::EPERM].map(|error| i64::from(-error));
    let not_stopped: Vec<_> =
        given.iter().filter(|(_, result)| ![unknown, refused].contains(result)).collect();
    assert!(not_stopped.is_empty(), "{not_stopped:?}");
    assert!(given.iter().filter(|(_, result)| *result == refused).count() < 16, "{given:?}");
    pool.shutdown().await;
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;

    use procession::{Builder, ExitCause, TaskError};

    use crate::common::{a_worker, died};
    use crate::{caged, errno};
    use procession::Sandbox;

    both! { numbers_of_another_abi_are_unknown, calls_of_another_architecture_end_the_worker }

    /// The number of `getpid` for 32-bit programs; it takes no arguments.
    const GETPID_32: i32 = 20;

    /// What those calls give that could do no harm: an error, or a result.
    fn by_other_numbers() -> Vec<(i64, i64)> {
        const X32: i64 = 1 << 30;
        const OF_ITS_OWN: std::ops::Range<i64> = 512..548;
        let calls = [libc::SYS_getpid, libc::SYS_getppid, libc::SYS_gettid, libc::SYS_ptrace, libc::SYS_fork];
        let calls = calls.into_iter().chain(OF_ITS_OWN).map(|number| X32 | number);
        let attempt = |number| {
            // SAFETY: with these arguments they read and write no memory; a fork would be seen.
            let result = unsafe { libc::syscall(number, -1, 0, 0, 0, 0, 0) };
            (number, if result == -1 { i64::from(-errno()) } else { result })
        };
        calls.map(attempt).collect()
    }

    async fn numbers_of_another_abi_are_unknown(builder: Builder) {
        let Some(pool) = caged(builder, Sandbox::new()) else { return };
        for (number, result) in pool.submit(by_other_numbers, ()).await.unwrap() {
            assert_eq!(result, i64::from(-libc::ENOSYS), "call {number:#x}");
        }
        pool.shutdown().await;
    }

    fn getpid_32() -> i32 {
        let result: i32;
        // SAFETY: the call takes no arguments and writes to no memory.
        unsafe {
            asm!(
                "int 0x80", inlateout("eax") GETPID_32 => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        result
    }

    async fn calls_of_another_architecture_end_the_worker(builder: Builder) {
        let free = builder.clone().workers(1).build().unwrap();
        match free.submit(getpid_32, ()).await {
            Ok(pid) => assert_eq!(pid as u32, a_worker(&free).await),
            Err(TaskError::WorkerDied(_)) => eprintln!("skipped: this kernel knows no 32-bit calls"),
            Err(error) => panic!("{error}"),
        }
        free.shutdown().await;
        let Some(pool) = caged(builder.workers(1), Sandbox::new()) else { return };
        let pid = a_worker(&pool).await;
        let exit = died(pool.submit(getpid_32, ()).await);
        assert_eq!(exit.pid(), pid);
        // Without such calls in the kernel, the instruction itself is a fault.
        assert!(matches!(exit.signal(), Some(libc::SIGSYS | libc::SIGSEGV)), "{exit:?}");
        assert_matches!(exit.cause(), ExitCause::Signalled);
        assert_ne!(a_worker(&pool).await, pid);
        pool.shutdown().await;
    }
}
