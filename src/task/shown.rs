//! Texts of workers, as they are shown to people.

use std::fmt::{self, Write};

/// Shows a text without what may be meant to play tricks on a terminal. Lines stay lines.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_tricky = |c: char| c.is_control() && c != '\n' && c != '\t';
        let mut pieces = self.0.split(is_tricky);
        pieces.next().map_or(Ok(()), |first| f.write_str(first))?;
        pieces
            .try_for_each(|piece| f.write_char(char::REPLACEMENT_CHARACTER).and_then(|()| f.write_str(piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Fault, PanicReport, TaskError, TimeoutReport};
    use super::*;
    use crate::task::PoolError;

    #[test]
    fn lines_stay_and_tricks_do_not() {
        assert_eq!(Shown("").to_string(), "");
        assert_eq!(Shown("a\n\tb").to_string(), "a\n\tb");
        assert_eq!(Shown("\x1b[2Ja\r\u{9b}b\x07").to_string(), "\u{fffd}[2Ja\u{fffd}\u{fffd}b\u{fffd}");
    }

    #[test]
    fn no_error_shows_what_a_terminal_would_take_for_a_command() {
        let trick = || "\x1b]0;owned\x07\u{9b}2J".to_string();
        let panic = PanicReport { message: trick(), ..PanicReport::default() };
        let place = crate::task::PlaceReport { file: trick(), line: 1, column: 1 };
        let failure = super::super::fault::FailureReport { chain: vec![trick(), trick()], backtrace: None };
        let codec = super::super::fault::CodecReport {
            stage: super::super::CodecStage::EncodeResult,
            type_name: trick(),
            cause: trick(),
        };
        let errors = [
            Fault::Panicked(panic.clone()),
            Fault::Panicked(PanicReport { place, ..panic }),
            Fault::Failed(failure),
            Fault::Codec(codec),
        ];
        let mut shown = String::new();
        for error in errors.map(TaskError::from) {
            shown += &format!("{error} {error:#} {error:?} {error:#?}");
            let broken = PoolError::Initializer(Box::new(error));
            shown += &format!("{broken} {broken:?}");
        }
        for error in [
            PoolError::NotReady { reason: trick() },
            PoolError::NotConfined { reason: trick() },
            PoolError::Preload { reason: trick() },
        ] {
            shown += &format!("{error} {error:?}");
        }
        shown += &TimeoutReport { backtrace: Some(trick()), ..TimeoutReport::default() }.to_string();
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
        assert!(shown.contains("owned"));
    }
}
