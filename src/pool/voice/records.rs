//! Log records, as the program's logger is told of them.

use super::Said;
use crate::wire::voice::{Lost, Value, What, read_pairs};
use log::{Level, Metadata, Record};

impl Said {
    pub(super) fn tell_record(&self, what: &What<'_>, rest: &[u8]) {
        if let What::Log { parent, .. } = what {
            // A logger may make an event of it, which then belongs where the record does.
            self.around(*parent).within(|| tell(what, rest));
        }
    }
}

/// How much the program's logger wants to hear of.
pub(super) fn level() -> u8 {
    log::max_level() as u8
}

fn tell(what: &What<'_>, rest: &[u8]) {
    let What::Log { level, target, module, file, line, message, .. } = what else { return };
    let level = Level::iter().nth(usize::from(*level).saturating_sub(1)).unwrap_or(Level::Trace);
    let metadata = Metadata::builder().level(level).target(target).build();
    let logger = log::logger();
    if level > log::max_level() || !logger.enabled(&metadata) {
        return;
    }
    let pairs: Vec<_> =
        read_pairs(rest).into_iter().filter_map(|(key, value)| Some((key, told(&value)?))).collect();
    logger.log(
        &Record::builder()
            .metadata(metadata)
            .args(format_args!("{message}"))
            .module_path(*module)
            .file(*file)
            .line(*line)
            .key_values(&pairs)
            .build(),
    );
}

/// Of those values that records of a worker have.
fn told<'a>(value: &Value<'a>) -> Option<log::kv::Value<'a>> {
    match *value {
        Value::I64(value) => Some(value.into()),
        Value::U64(value) => Some(value.into()),
        Value::F64(value) => Some(value.into()),
        Value::Bool(value) => Some(value.into()),
        Value::Text(value) => Some(value.into()),
        _ => None,
    }
}

/// Tells how much is missing.
pub(super) fn tell_lost(lost: Lost) {
    let Lost { events, spans } = lost;
    log::warn!(
        target: "procession", dropped = events, dropped_spans = spans;
        "what a worker logs came too fast, and some of it was dropped: {events} records"
    );
}
