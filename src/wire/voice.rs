//! What tasks log, on its way to the program: spans, events and log records.
//!
//! A message is a head and then values, to the end: for spans and events each is the index of its field
//! and the value, for log records the key and the value.

use serde::{Deserialize, Serialize};

/// The longest message. A worker that sends a longer one is none.
pub(crate) const LONGEST: usize = 16 * 1024;

/// The most fields that a span or an event may have.
pub(crate) const MOST_FIELDS: usize = 32;

/// The most spans at a time that a worker tells of.
pub(crate) const MOST_SPANS: usize = 512;

/// The longest name, target, module path and the like.
pub(crate) const LONGEST_NAME: usize = 256;

/// The longest name of a field of a span or an event.
pub(crate) const LONGEST_FIELD: usize = 64;

/// The most causes of an error.
pub(crate) const MOST_CAUSES: usize = 8;

/// The beginning of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head<'a> {
    pub(crate) lost: Lost,
    /// Spans that are over.
    pub(crate) closed: Vec<u64>,
    #[serde(borrow)]
    pub(crate) what: What<'a>,
}

/// What came too fast, and was left out since the last message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lost {
    /// Events and log records.
    pub(crate) events: u64,
    /// Spans, and what was said of spans later.
    pub(crate) spans: u64,
}

impl Lost {
    pub(crate) fn is_none(self) -> bool {
        self == Lost::default()
    }

    /// The two together.
    pub(crate) fn and(self, more: Lost) -> Lost {
        let events = self.events.saturating_add(more.events);
        Lost { events, spans: self.spans.saturating_add(more.spans) }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum What<'a> {
    Nothing,
    Event {
        parent: Parent,
        #[serde(borrow)]
        site: Site<'a>,
    },
    Span {
        id: u64,
        parent: Parent,
        #[serde(borrow)]
        site: Site<'a>,
    },
    /// More fields of a span.
    Recorded {
        id: u64,
    },
    Follows {
        id: u64,
        from: Parent,
    },
    Log {
        parent: Parent,
        level: u8,
        target: &'a str,
        module: Option<&'a str>,
        file: Option<&'a str>,
        line: Option<u32>,
        message: &'a str,
    },
}

/// What something happened in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Parent {
    None,
    /// What the task was submitted in.
    Task,
    Span(u64),
}

/// What is known of a place in the program that makes spans or events.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Site<'a> {
    pub(crate) level: u8,
    pub(crate) name: &'a str,
    pub(crate) target: &'a str,
    pub(crate) module: Option<&'a str>,
    pub(crate) file: Option<&'a str>,
    pub(crate) line: Option<u32>,
    #[serde(borrow)]
    pub(crate) fields: Vec<&'a str>,
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Value<'a> {
    I64(i64),
    U64(u64),
    I128(i128),
    U128(u128),
    F64(f64),
    Bool(bool),
    Text(&'a str),
    /// As it shows itself for debugging.
    Shown(&'a str),
    /// An error and its causes.
    Error(#[serde(borrow)] Vec<&'a str>),
}

/// Takes a message apart; the values are in the rest. More spans than there can be are not over.
pub(crate) fn read_head(message: &[u8]) -> Option<(Head<'_>, &[u8])> {
    let (mut head, rest) = postcard::take_from_bytes::<Head<'_>>(message).ok()?;
    if head.closed.len() > 2 * MOST_SPANS {
        return None;
    }
    match &mut head.what {
        What::Event { site, .. } | What::Span { site, .. } if site.has_tricks() => return None,
        What::Event { site, .. } | What::Span { site, .. } => site.bound(),
        What::Log { target, module, file, .. } => {
            *target = cut(target, LONGEST_NAME);
            *module = module.map(|module| cut(module, LONGEST_NAME));
            *file = file.map(|file| cut(file, LONGEST_NAME));
        }
        What::Nothing | What::Recorded { .. } | What::Follows { .. } => {}
    }
    Some((head, rest))
}

impl Site<'_> {
    /// Whether there is something in its names for a terminal rather than for people. Subscribers print them as
    /// they are: those of a program are constants.
    fn has_tricks(&self) -> bool {
        let texts = [Some(self.name), Some(self.target), self.module, self.file];
        let mut texts = texts.into_iter().flatten().chain(self.fields.iter().copied());
        texts.any(|text| text.contains(char::is_control))
    }

    /// Cuts what is too long, as it stays in memory for good.
    fn bound(&mut self) {
        self.level = self.level.clamp(1, 5);
        self.name = cut(self.name, LONGEST_NAME);
        self.target = cut(self.target, LONGEST_NAME);
        self.module = self.module.map(|module| cut(module, LONGEST_NAME));
        self.file = self.file.map(|file| cut(file, LONGEST_NAME));
        self.fields.truncate(MOST_FIELDS);
        self.fields.iter_mut().for_each(|name| *name = cut(name, LONGEST_FIELD));
    }
}

/// The values of fields, by index, as far as they are any.
pub(crate) fn read_values(mut rest: &[u8]) -> Vec<(u8, Value<'_>)> {
    std::iter::from_fn(|| take(&mut rest)).take(MOST_FIELDS).collect()
}

/// The values of a log record, by key.
pub(crate) fn read_pairs(mut rest: &[u8]) -> Vec<(&str, Value<'_>)> {
    std::iter::from_fn(|| take(&mut rest)).take(MOST_FIELDS).collect()
}

fn take<'a, K: Deserialize<'a>>(rest: &mut &'a [u8]) -> Option<(K, Value<'a>)> {
    let ((key, mut value), left) = postcard::take_from_bytes::<(K, Value<'a>)>(rest).ok()?;
    if let Value::Error(causes) = &mut value {
        causes.truncate(MOST_CAUSES);
    }
    *rest = left;
    Some((key, value))
}

/// The beginning of a text, at most so many bytes long.
pub(crate) fn cut(text: &str, longest: usize) -> &str {
    &text[..text.floor_char_boundary(longest)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site<'a>() -> Site<'a> {
        let fields = vec!["message", "n"];
        let (module, file) = (Some("a::b"), Some("a/b.rs"));
        Site { level: 3, name: "event", target: "a", module, file, line: Some(7), fields }
    }

    #[test]
    fn what_is_written_is_read() {
        let what = What::Event { parent: Parent::Span(9), site: site() };
        let head = Head { lost: Lost { events: 3, spans: 1 }, closed: vec![4, 5], what };
        let values = [(0, Value::Shown("hello")), (1, Value::I128(-1)), (1, Value::Error(vec!["a", "b"]))];
        let mut message = postcard::to_stdvec(&head).unwrap();
        values
            .iter()
            .for_each(|value| message = postcard::to_extend(value, std::mem::take(&mut message)).unwrap());
        let (read, rest) = read_head(&message).unwrap();
        assert_eq!(read, head);
        assert_eq!(read_values(rest), values);
    }

    #[test]
    fn no_more_spans_are_over_than_there_can_be() {
        let of = |spans| Head { lost: Lost::default(), closed: vec![1; spans], what: What::Nothing };
        let is_read = |spans| read_head(&postcard::to_stdvec(&of(spans)).unwrap()).is_some();
        assert!(is_read(2 * MOST_SPANS) && !is_read(2 * MOST_SPANS + 1));
    }

    #[test]
    fn names_are_not_for_terminals() {
        let is_read = |site| {
            let what = What::Span { id: 1, parent: Parent::None, site };
            let head = Head { lost: Lost::default(), closed: vec![], what };
            read_head(&postcard::to_stdvec(&head).unwrap()).is_some()
        };
        let trick = "\x1b[2J";
        assert!(is_read(site()));
        assert!(!is_read(Site { name: trick, ..site() }) && !is_read(Site { target: trick, ..site() }));
        assert!(
            !is_read(Site { module: Some(trick), ..site() })
                && !is_read(Site { file: Some(trick), ..site() })
        );
        assert!(!is_read(Site { fields: vec!["message", trick], ..site() }));
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let (long, short) = ("ä".repeat(LONGEST_NAME), "f".repeat(100));
        let fields = vec![short.as_str(); MOST_FIELDS + 1];
        let site =
            Site { name: &long, target: &long, module: Some(&long), file: Some(&long), fields, ..site() };
        let head =
            Head { lost: Lost::default(), closed: vec![], what: What::Event { parent: Parent::None, site } };
        let message = postcard::to_stdvec(&head).unwrap();
        let Some((Head { what: What::Event { site, .. }, .. }, [])) = read_head(&message) else {
            panic!("it is not read");
        };
        assert_eq!((site.name.len(), site.target.len()), (LONGEST_NAME, LONGEST_NAME));
        assert_eq!((site.module.unwrap().len(), site.file.unwrap().len()), (LONGEST_NAME, LONGEST_NAME));
        assert_eq!((site.fields.len(), site.fields[0].len()), (MOST_FIELDS, LONGEST_FIELD));
    }
}
