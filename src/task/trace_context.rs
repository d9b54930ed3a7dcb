//! Where a task belongs in a distributed trace, as the W3C's Trace Context has it.

use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;
use std::str::FromStr;

/// The length of a `traceparent` of the version that there is; those of later ones may be longer.
const LENGTH: usize = 55;

/// The longest `traceparent` of a later version.
const LONGEST_PARENT: usize = 512;

/// The longest `tracestate`. Everybody must pass on 512 bytes.
const LONGEST_STATE: usize = 4096;

/// The most entries of a `tracestate`.
const MOST_ENTRIES: usize = 32;

/// Where a task belongs in a distributed trace: the values of the headers `traceparent` and `tracestate`
/// of the W3C's [Trace Context](https://www.w3.org/TR/trace-context/).
///
/// It goes along with a task ([`TaskBuilder::trace_context`], [`Builder::trace_context`]), which finds it
/// in [`TaskContext::trace_context`](crate::worker::TaskContext::trace_context). Nothing is made of it on
/// the way; it is for a tracer on each side, such as OpenTelemetry's.
///
/// ```
/// use procession::{ProcessPool, TraceContext, worker};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyhow::Result<()> {
/// let pool = ProcessPool::new()?;
/// let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "")?;
/// let trace_id = || worker::current()?.trace_context().map(|trace| trace.trace_id().to_string());
/// let seen = pool.task(trace_id, ()).trace_context(trace).await?;
/// assert_eq!(seen.unwrap(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// # pool.shutdown().await;
/// # Ok(())
/// # }
/// ```
///
/// [`TaskBuilder::trace_context`]: crate::TaskBuilder::trace_context
/// [`Builder::trace_context`]: crate::Builder::trace_context
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "(String, String)", into = "(String, String)")]
pub struct TraceContext {
    parent: String,
    state: String,
}

/// A `traceparent` or a `tracestate` that is none; says which, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContextError {
    header: &'static str,
    reason: &'static str,
}

impl fmt::Display for TraceContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a valid `{}`: {}", self.header, self.reason)
    }
}

impl Error for TraceContextError {}

impl TraceContext {
    /// Reads the values of both headers. Without a `tracestate`, that is an empty text.
    ///
    /// # Errors
    /// A [`TraceContextError`] where one of them is not as the specification has it. By that, a
    /// `tracestate` which is malformed is best left out: parse again with an empty one.
    pub fn parse(traceparent: &str, tracestate: &str) -> Result<TraceContext, TraceContextError> {
        let (parent, state) = (traceparent.trim_matches([' ', '\t']), tracestate.trim_matches([' ', '\t']));
        let wrong = |header| move |reason| TraceContextError { header, reason };
        check_parent(parent).map_err(wrong("traceparent"))?;
        check_state(state).map_err(wrong("tracestate"))?;
        Ok(TraceContext { parent: parent.into(), state: state.into() })
    }

    /// The value of the header `traceparent`.
    pub fn traceparent(&self) -> &str {
        &self.parent
    }

    /// The value of the header `tracestate`; empty if there is none.
    pub fn tracestate(&self) -> &str {
        &self.state
    }

    /// The number of the whole trace, as 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        &self.parent[3..35]
    }

    /// The number of the span around, as 16 hexadecimal digits.
    pub fn parent_id(&self) -> &str {
        &self.parent[36..52]
    }

    /// The flags of the trace.
    pub fn flags(&self) -> u8 {
        u8::from_str_radix(&self.parent[53..55], 16).unwrap_or(0)
    }

    /// Whether the caller may have recorded its part of the trace.
    pub fn sampled(&self) -> bool {
        self.flags() & 1 != 0
    }
}

/// The value of the header `traceparent` alone.
impl FromStr for TraceContext {
    type Err = TraceContextError;

    fn from_str(traceparent: &str) -> Result<TraceContext, TraceContextError> {
        TraceContext::parse(traceparent, "")
    }
}

impl TryFrom<(String, String)> for TraceContext {
    type Error = TraceContextError;

    fn try_from((traceparent, tracestate): (String, String)) -> Result<TraceContext, TraceContextError> {
        TraceContext::parse(&traceparent, &tracestate)
    }
}

impl From<TraceContext> for (String, String) {
    fn from(context: TraceContext) -> (String, String) {
        (context.parent, context.state)
    }
}

fn check_parent(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    if bytes.len() < LENGTH {
        return Err("it is shorter than 55 characters");
    }
    if bytes.len() > LONGEST_PARENT {
        return Err("it is longer than 512 characters");
    }
    if !text.is_ascii() {
        return Err("it has characters other than lower-case hexadecimal digits and dashes");
    }
    if [2, 35, 52].iter().any(|at| bytes[*at] != b'-') {
        return Err("it is not a version, a trace, a parent and flags with dashes between them");
    }
    let (version, trace, span, flags) = (&bytes[..2], &bytes[3..35], &bytes[36..52], &bytes[53..55]);
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if ![version, trace, span, flags].into_iter().all(is_hex) {
        return Err("it has characters other than lower-case hexadecimal digits and dashes");
    }
    let is_zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    match version {
        b"ff" => Err("there is no version ff"),
        b"00" if bytes.len() > LENGTH => Err("of version 00, it is longer than 55 characters"),
        _ if bytes.get(LENGTH).is_some_and(|byte| *byte != b'-') => Err("no dash follows the flags"),
        _ if is_zero(trace) => Err("the number of the trace is zero"),
        _ if is_zero(span) => Err("the number of the parent is zero"),
        _ => Ok(()),
    }
}

fn check_state(text: &str) -> Result<(), &'static str> {
    if text.len() > LONGEST_STATE {
        return Err("it is longer than 4096 bytes");
    }
    let entries = text.split(',').map(|entry| entry.trim_matches([' ', '\t']));
    let mut keys: Vec<&str> = Vec::new();
    for entry in entries.filter(|entry| !entry.is_empty()) {
        let (key, value) = entry.split_once('=').ok_or("an entry has no `=`")?;
        if !is_key(key) {
            return Err("a key is empty, too long, or has characters that it may not have");
        }
        let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'=';
        if value.is_empty() || value.len() > 256 || !value.bytes().all(is_plain) {
            return Err("a value is empty, too long, or has characters that it may not have");
        }
        if keys.contains(&key) {
            return Err("a key is there twice");
        }
        keys.push(key);
    }
    if keys.len() > MOST_ENTRIES { Err("it has more than 32 entries") } else { Ok(()) }
}

/// A name, or the name of a tenant, an `@`, and that of a system.
fn is_key(key: &str) -> bool {
    let is_name = |name: &str, longest: usize, may_begin: fn(u8) -> bool| {
        let is_rest = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
        name.len() <= longest && name.bytes().next().is_some_and(may_begin) && name.bytes().all(is_rest)
    };
    match key.split_once('@') {
        None => is_name(key, 256, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
        Some((tenant, system)) => {
            is_name(tenant, 241, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                && is_name(system, 14, |byte| byte.is_ascii_lowercase())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_valid_is_taken_apart() {
        let context =
            TraceContext::parse(PARENT, " congo=t61rcWkgMzE, tenant@rojo=00f067aa0ba902b7 ").unwrap();
        assert_eq!(context.traceparent(), PARENT);
        assert_eq!(context.tracestate(), "congo=t61rcWkgMzE, tenant@rojo=00f067aa0ba902b7");
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.parent_id(), "00f067aa0ba902b7");
        assert_eq!((context.flags(), context.sampled()), (1, true));
        let not_sampled = PARENT.replace("-01", "-02").parse::<TraceContext>().unwrap();
        assert_eq!((not_sampled.flags(), not_sampled.sampled(), not_sampled.tracestate()), (2, false, ""));
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        for (text, is_valid) in [
            (PARENT.replacen("00", "cc", 1), true),
            (PARENT.replacen("00", "cc", 1) + "-what", true),
            (PARENT.replacen("00", "cc", 1) + "what", false),
            (PARENT.to_string() + "-what", false),
        ] {
            assert_eq!(TraceContext::parse(&text, "").is_ok(), is_valid, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let parents = [
            (PARENT[..54].to_string(), "shorter"),
            ("x".repeat(600), "longer"),
            (PARENT.replace("4b", "4B"), "hexadecimal"),
            (PARENT.replace("4b", "4ü").replace("47", "4"), "hexadecimal"),
            (PARENT.replacen('-', "0", 1), "dashes"),
            (PARENT.replacen("00", "ff", 1), "version ff"),
            (PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)), "trace is zero"),
            (PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)), "parent is zero"),
        ];
        for (text, why) in parents {
            let error = TraceContext::parse(&text, "").unwrap_err().to_string();
            assert!(error.contains("traceparent") && error.contains(why), "{text}: {error}");
        }
        let states = [
            ("a".into(), "no `=`"),
            ("A=1".into(), "key"),
            ("a@B=1".into(), "key"),
            ("a=".into(), "value"),
            ("a=b=c".into(), "value"),
            ("a=1,b=2,a=3".into(), "twice"),
            ((0..33).map(|n| format!("k{n}=1,")).collect::<String>(), "32 entries"),
            ("a".repeat(5000), "4096"),
        ];
        for (text, why) in states {
            let error = TraceContext::parse(PARENT, &text).unwrap_err().to_string();
            assert!(error.contains("tracestate") && error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn it_travels_and_stays_valid() {
        let context = TraceContext::parse(PARENT, "a=1").unwrap();
        let bytes = postcard::to_stdvec(&context).unwrap();
        assert_eq!(postcard::from_bytes::<TraceContext>(&bytes).unwrap(), context);
        let bytes = postcard::to_stdvec(&("nothing", "a=1")).unwrap();
        assert!(postcard::from_bytes::<TraceContext>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(parent in "[0-9a-f-]{50,60}|.{0,60}", state in "([a-z@]{0,4}=?[a-z]{0,4},?){0,8}|.{0,40}") {
            if let Ok(context) = TraceContext::parse(&parent, &state) {
                prop_assert!(context.trace_id().len() == 32 && context.parent_id().len() == 16);
                let _ = (context.sampled(), context.tracestate());
            }
        }
    }
}
