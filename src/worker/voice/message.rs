//! The values of a message, which never get longer than there is room for.

#[cfg(feature = "tracing")]
use crate::wire::voice::MOST_CAUSES;
use crate::wire::voice::{LONGEST_NAME, MOST_FIELDS, Value};
use serde::Serialize;
#[cfg(feature = "tracing")]
use std::error::Error;
use std::fmt::{self, Write};

/// What is kept free for the head of the message, and for what is in front of each text.
const HEAD_ROOM: usize = 2048;
const VALUE_ROOM: usize = 48;

/// The part of a message behind its head.
pub(super) struct Rest {
    bytes: Vec<u8>,
    longest: usize,
    values: usize,
}

impl Rest {
    /// For a message of at most so many bytes.
    pub(super) fn new(longest: usize) -> Rest {
        Rest { bytes: Vec::new(), longest: longest.saturating_sub(HEAD_ROOM), values: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How long a text may be yet.
    pub(super) fn room(&self) -> usize {
        self.longest.saturating_sub(self.bytes.len() + VALUE_ROOM)
    }

    #[cfg(feature = "log")]
    /// What comes elsewhere in the message.
    pub(super) fn set_aside(&mut self, bytes: usize) {
        self.longest = self.longest.saturating_sub(bytes);
    }

    pub(super) fn add<K: Serialize>(&mut self, key: K, value: &Value<'_>) {
        if self.values < MOST_FIELDS && self.bytes.len() + VALUE_ROOM <= self.longest {
            self.values += 1;
            // Values consist of what postcard always encodes.
            let _ = postcard::to_io(&(key, value), &mut self.bytes);
        }
    }

    #[cfg(feature = "tracing")]
    pub(super) fn add_shown<K: Serialize>(&mut self, key: K, value: &dyn fmt::Debug) {
        let text = text_of(format_args!("{value:?}"), self.room());
        self.add(key, &Value::Shown(&text));
    }

    #[cfg(feature = "tracing")]
    pub(super) fn add_error<K: Serialize>(&mut self, key: K, error: &(dyn Error + 'static)) {
        let mut room = self.room();
        let mut texts = Vec::new();
        let mut next = Some(error);
        while let Some(error) = next.filter(|_| texts.len() < MOST_CAUSES) {
            let text = text_of(format_args!("{error}"), room);
            room = room.saturating_sub(text.len() + 4);
            texts.push(text);
            next = error.source();
        }
        self.add(key, &Value::Error(texts.iter().map(String::as_str).collect()));
    }
}

/// A text of at most so many bytes. No more of it is made than is taken.
pub(super) fn text_of(arguments: fmt::Arguments<'_>, longest: usize) -> String {
    let mut text = Cut { text: String::new(), longest };
    // An error says that there is no room, or is the value's own.
    let _ = text.write_fmt(arguments);
    text.text
}

struct Cut {
    text: String,
    longest: usize,
}

impl Write for Cut {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = self.longest - self.text.len();
        self.text.push_str(crate::wire::voice::cut(part, room));
        if part.len() <= room { Ok(()) } else { Err(fmt::Error) }
    }
}

/// A name, cut to what names may have.
pub(super) fn name(text: &str) -> &str {
    crate::wire::voice::cut(text, LONGEST_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(text_of(format_args!("{}{}", "äöü", "abc"), 100), "äöüabc");
        assert_eq!(text_of(format_args!("{}{}", "äöü", "abc"), 5), "äö");
        assert_eq!(text_of(format_args!("{}", "abc"), 0), "");
    }

    #[test]
    fn values_never_take_more_room_than_there_is() {
        let mut rest = Rest::new(HEAD_ROOM + 250);
        for n in 0..100_u8 {
            let text = "x".repeat(150);
            let text = crate::wire::voice::cut(&text, rest.room());
            rest.add(n, &Value::Text(text));
        }
        assert!(rest.bytes().len() <= 250, "{}", rest.bytes().len());
        assert!(crate::wire::voice::read_values(rest.bytes()).len() > 1);
    }
}
