//! Keeping what a panic says on its way out of a task.

use crate::task::{Fault, PanicReport, PlaceReport, panic_message};
use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};

thread_local! {
    /// The last panic on this thread.
    static LAST: RefCell<Option<PanicReport>> = const { RefCell::new(None) };
}

/// Keeps each panic's report before the hook that was there does what it does (by default, print
/// the panic to standard error).
///
/// `last_words` is called for a panic that will end the process, because the program was built
/// with `panic = "abort"`.
pub(super) fn install_hook(last_words: fn(PanicReport)) {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let report = report(info);
        if cfg!(panic = "abort") {
            last_words(report);
        } else {
            LAST.with(|last| *last.borrow_mut() = Some(report));
        }
        previous(info);
    }));
}

/// Calls a function; a panic in it becomes a fault.
pub(super) fn catch(run: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
    // What the closure may leave broken is the task's own state, which nobody looks at again.
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(done) => done,
        Err(payload) => {
            let report = caught(&*payload);
            // Dropping a payload may panic in its turn. It is leaked rather than trusted.
            std::mem::forget(payload);
            Err(Fault::Panicked(report))
        }
    }
}

/// What the hook kept of this very panic. A task that has set a hook of its own leaves only the
/// message to be known.
fn caught(payload: &(dyn Any + Send)) -> PanicReport {
    let message = panic_message(payload);
    LAST.with(|last| last.borrow_mut().take()).filter(|report| report.message == message).unwrap_or_else(
        || PanicReport {
            message,
            place: PlaceReport { file: "unknown".into(), line: 0, column: 0 },
            backtrace: None,
            thread: std::thread::current().name().map(Into::into),
        },
    )
}

fn report(info: &PanicHookInfo<'_>) -> PanicReport {
    let backtrace = Backtrace::capture();
    PanicReport {
        message: info.payload_as_str().unwrap_or("a value that is no text").into(),
        place: info.location().map_or_else(PlaceReport::default, |place| PlaceReport {
            file: place.file().into(),
            line: place.line(),
            column: place.column(),
        }),
        backtrace: (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string()),
        thread: std::thread::current().name().map(Into::into),
    }
}
