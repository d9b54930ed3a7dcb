//! The logger of a worker.

use super::message::{Rest, name, text_of};
use super::{Kind, LOG, context, speak};
use crate::wire::voice::{Value, What, cut};
use log::kv::{Error, Key, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use std::sync::atomic::{AtomicU8, Ordering};

const UNTRIED: u8 = 0;
const OURS: u8 = 1;
const THE_PROGRAMS: u8 = 2;

/// Whose logger the worker has.
static OWNER: AtomicU8 = AtomicU8::new(UNTRIED);

pub(super) fn install() {
    let level = LOG.load(Ordering::Relaxed);
    if level > 0 && OWNER.load(Ordering::Relaxed) == UNTRIED {
        let owner = if log::set_logger(&Forwarder).is_ok() { OURS } else { THE_PROGRAMS };
        OWNER.store(owner, Ordering::Relaxed);
    }
    if OWNER.load(Ordering::Relaxed) == OURS {
        log::set_max_level(filter(level));
    }
}

fn filter(level: u8) -> LevelFilter {
    LevelFilter::iter().nth(level.into()).unwrap_or(LevelFilter::Trace)
}

struct Forwarder;

impl Log for Forwarder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= filter(LOG.load(Ordering::Relaxed))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut text = String::new();
        let text = &mut text;
        speak(Kind::Event, move |rest| {
            *text = text_of(*record.args(), rest.room());
            let message: &str = text;
            rest.set_aside(message.len());
            // What the program's own values do wrong is left out.
            let _ = record.key_values().visit(&mut Visitor(rest));
            What::Log {
                parent: context(),
                level: record.level() as u8,
                target: name(record.target()),
                module: record.module_path().map(name),
                file: record.file().map(name),
                line: record.line(),
                message,
            }
        });
    }

    fn flush(&self) {}
}

/// Writes keys and values down.
struct Visitor<'a>(&'a mut Rest);

impl<'kvs> VisitSource<'kvs> for Visitor<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: log::kv::Value<'kvs>) -> Result<(), Error> {
        let key = name(key.as_str());
        self.0.set_aside(key.len());
        if let Some(value) = value.to_i64() {
            self.0.add(key, &Value::I64(value));
        } else if let Some(value) = value.to_u64() {
            self.0.add(key, &Value::U64(value));
        } else if let Some(value) = value.to_f64() {
            self.0.add(key, &Value::F64(value));
        } else if let Some(value) = value.to_bool() {
            self.0.add(key, &Value::Bool(value));
        } else if let Some(value) = value.to_borrowed_str() {
            self.0.add(key, &Value::Text(cut(value, self.0.room())));
        } else {
            let text = text_of(format_args!("{value}"), self.0.room());
            self.0.add(key, &Value::Text(&text));
        }
        Ok(())
    }
}
