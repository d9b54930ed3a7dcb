//! Where a task was when its time ran out.

use super::Shown;
use std::fmt;

/// Where a task was when its time ran out, as far as could be found out in a moment; see
/// [`Builder::timeout_reports`](crate::Builder::timeout_reports).
///
/// It shows as a text of several lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimeoutReport {
    pub(crate) state: Option<char>,
    pub(crate) kernel_function: Option<String>,
    pub(crate) kernel_stack: Option<String>,
    pub(crate) backtrace: Option<String>,
}

impl TimeoutReport {
    /// What the kernel says that the task's thread did, as a letter: `R` it ran, `S` it waited, `D`
    /// it waited and could not be interrupted (for a disk or a network file system), `T` it was
    /// stopped; others as `proc(5)` lists them.
    pub fn state(&self) -> Option<char> {
        self.state
    }

    /// The function of the kernel in which the thread waited; `None` if it did not wait, or the
    /// kernel does not tell.
    pub fn kernel_function(&self) -> Option<&str> {
        self.kernel_function.as_deref()
    }

    /// The functions of the kernel that it was in; only told to privileged programs, and not in state `D`.
    pub fn kernel_stack(&self) -> Option<&str> {
        self.kernel_stack.as_deref()
    }

    /// The functions of the program that it was in, innermost first. `None` if the worker did not
    /// manage to tell in time: when it was stuck in the kernel, or within the allocator.
    ///
    /// It is the worker's own account: hostile code can make it say anything.
    pub fn backtrace(&self) -> Option<&str> {
        self.backtrace.as_deref()
    }

    /// What the thread did, in a line.
    fn summary(&self) -> String {
        let doing = match self.state {
            Some('R') => "it was running",
            Some('S') => "it was waiting",
            Some('D') => "it was waiting, not to be interrupted",
            Some('T' | 't') => "it was stopped",
            _ => "what it did is not known",
        };
        match &self.kernel_function {
            Some(function) => format!("{doing}, in the kernel's `{function}`"),
            None => doing.to_string(),
        }
    }
}

impl fmt::Display for TimeoutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())?;
        for (title, text) in [("in the program", &self.backtrace), ("in the kernel", &self.kernel_stack)] {
            if let Some(text) = text {
                write!(f, "\n{title}:\n{}", Shown(text.trim_end()))?;
            }
        }
        Ok(())
    }
}

/// Cuts a backtrace that a worker's thread took of itself, when it was asked by a signal, down to
/// what concerns the task: from where the signal found it, to where the task was called.
pub(crate) fn cut(backtrace: &str, handler: &str) -> String {
    let starts =
        |line: &&str| line.trim_start().split_once(':').is_some_and(|(n, _)| n.parse::<u32>().is_ok());
    let mut frames: Vec<Vec<&str>> = Vec::new();
    for line in backtrace.lines() {
        match frames.last_mut() {
            Some(frame) if !starts(&line) => frame.push(line),
            _ => frames.push(vec![line]),
        }
    }
    let is_in = |frame: &Vec<&str>, function: &str| frame.first().is_some_and(|line| line.contains(function));
    // The handler's own frame, and that by which the kernel calls it.
    let first = frames.iter().rposition(|frame| is_in(frame, handler)).map_or(0, |at| at + 2);
    let end = frames.iter().position(|frame| is_in(frame, "procession::task::")).unwrap_or(frames.len());
    frames.get(first..end.max(first)).unwrap_or(&frames[..]).concat().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_is_cut_down_to_the_task() {
        let whole = "   0: std::backtrace::create\n             at /std:1\n   1: lib::on_question\n   \
                     2: <unknown>\n   3: app::spin\n             at src/main.rs:3\n   4: app::task\n   5: \
                     procession::task::function::run_single\n   6: start";
        let cut_down = cut(whole, "on_question");
        assert_eq!(cut_down, "   3: app::spin\n             at src/main.rs:3\n   4: app::task");
        assert_eq!(cut("nothing of the kind", "on_question"), "nothing of the kind");
        assert_eq!(cut("", "on_question"), "");
        assert_eq!(cut("   0: on_question", "on_question"), "   0: on_question");
    }

    #[test]
    fn a_report_shows_what_it_knows() {
        let report = TimeoutReport {
            state: Some('S'),
            kernel_function: Some("do_wait".into()),
            backtrace: Some("   3: app::spin\n".into()),
            kernel_stack: None,
        };
        let shown = report.to_string();
        assert_eq!(shown, "it was waiting, in the kernel's `do_wait`\nin the program:\n   3: app::spin");
        assert_eq!(TimeoutReport::default().to_string(), "what it did is not known");
    }
}
