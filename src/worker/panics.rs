//! Keeping what a panic says on its way out of a task.

use crate::task::{Fault, PanicReport, PlaceReport, has_room_for_names, panic_message};
use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};

/// What stands in place of a backtrace that there is no memory for.
pub(crate) const NO_BACKTRACE: &str = "(for a backtrace there is too little memory)";

thread_local! {
    /// The last panic on this thread.
    static LAST: RefCell<Option<PanicReport>> = const { RefCell::new(None) };
}

/// Keeps each panic's report before the hook that was there does what it does (by default, print
/// the panic to standard error).
///
/// A hook that was there is not called where a backtrace is asked for and there is no memory for one: it
/// would not come back.
///
/// `last_words` is called for a panic that will end the process, because the program was built
/// with `panic = "abort"`.
pub(super) fn install_hook(last_words: fn(PanicReport)) {
    let previous = panic::take_hook();
    let asked = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"].into_iter().filter_map(std::env::var_os);
    let is_asked_for = asked.into_iter().any(|value| value != "0");
    panic::set_hook(Box::new(move |info| {
        let is_short = is_asked_for && !has_room_for_names();
        let report = report(info, !is_short);
        if cfg!(panic = "abort") {
            last_words(report);
        } else {
            LAST.with(|last| *last.borrow_mut() = Some(report));
        }
        if is_short {
            let text = format!("\n{info}\n{NO_BACKTRACE}\n");
            // With standard error closed there is nowhere to say it.
            let _ = std::io::stderr().write_all(text.as_bytes());
        } else {
            previous(info);
        }
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

fn report(info: &PanicHookInfo<'_>, has_room: bool) -> PanicReport {
    let backtrace = if has_room { Backtrace::capture() } else { Backtrace::disabled() };
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
