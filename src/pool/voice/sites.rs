//! The places in the program that spans and events come from, as metadata that lives for ever.
//!
//! A worker says of each span and event where it comes from. There is one site for each such place in the
//! whole process, and a limit to how many there are. What comes from further places gets a site that
//! says so, and has the rest as fields.

use crate::wire::voice::Site as Described;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use tracing_core::callsite::{Callsite, Identifier};
use tracing_core::field::{Field, FieldSet, Value};
use tracing_core::metadata::Kind;
use tracing_core::subscriber::Interest;
use tracing_core::{Level, Metadata};

/// The most sites: with names as long as can be, they take up some 12 MiB.
const MOST: usize = 2048;

/// The fields of spans and events of which there is no site.
const GENERIC: [&str; 6] =
    ["message", "worker.name", "worker.target", "worker.file", "worker.line", "worker.fields"];

/// A place that spans or events come from.
pub(super) struct Site {
    metadata: OnceLock<Metadata<'static>>,
    fields: OnceLock<Vec<Field>>,
    /// It stands for many places.
    pub(super) is_generic: bool,
}

impl Callsite for Site {
    fn set_interest(&self, _: Interest) {
        // The subscriber is asked each time: which one that is depends on the task.
    }

    fn metadata(&self) -> &Metadata<'static> {
        self.metadata.get().expect("it is set before anybody sees the site")
    }
}

#[derive(Default)]
struct Sites {
    known: HashMap<u64, Vec<&'static Site>>,
    count: usize,
    generic: HashMap<(u8, bool), &'static Site>,
}

static SITES: LazyLock<(RandomState, Mutex<Sites>)> = LazyLock::new(Default::default);

/// Finds the site of a span or an event, or makes it.
pub(super) fn find(described: &Described<'_>, is_span: bool) -> &'static Site {
    let (state, sites) = &*SITES;
    let hash = state.hash_one((described, is_span));
    let is_it = |site: &&&Site| site.is(described, is_span);
    let mut sites = sites.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(site) = sites.known.get(&hash).and_then(|those| those.iter().find(is_it)) {
        return site;
    }
    let site = if sites.count < MOST {
        sites.count += 1;
        let site = Site::make(described, is_span, false);
        sites.known.entry(hash).or_default().push(site);
        site
    } else if let Some(site) = sites.generic.get(&(described.level, is_span)) {
        return site;
    } else {
        let name = if is_span { "span in a worker" } else { "event in a worker" };
        let fields = GENERIC.to_vec();
        let level = described.level;
        let generic =
            Described { level, name, target: "procession", module: None, file: None, line: None, fields };
        let site = Site::make(&generic, is_span, true);
        sites.generic.insert((described.level, is_span), site);
        site
    };
    drop(sites);
    // Asks subscribers what they think of it, so under no lock.
    tracing_core::callsite::register(site);
    site
}

impl Site {
    fn make(described: &Described<'_>, is_span: bool, is_generic: bool) -> &'static Site {
        let site: &'static Site =
            Box::leak(Box::new(Site { metadata: OnceLock::new(), fields: OnceLock::new(), is_generic }));
        let names: Vec<&'static str> = described.fields.iter().map(|name| keep(name)).collect();
        let metadata = Metadata::new(
            keep(described.name),
            keep(described.target),
            level(described.level),
            described.file.map(keep),
            described.line,
            described.module.map(keep),
            FieldSet::new(names.leak(), Identifier(site)),
            if is_span { Kind::SPAN } else { Kind::EVENT },
        );
        site.metadata.get_or_init(|| metadata);
        site
    }

    fn is(&self, described: &Described<'_>, is_span: bool) -> bool {
        let metadata = self.metadata();
        metadata.is_span() == is_span
            && *metadata.level() == level(described.level)
            && metadata.line() == described.line
            && metadata.name() == described.name
            && metadata.target() == described.target
            && metadata.module_path() == described.module
            && metadata.file() == described.file
            && metadata.fields().iter().map(|field| field.name()).eq(described.fields.iter().copied())
    }

    pub(super) fn of(&'static self) -> &'static Metadata<'static> {
        self.metadata()
    }

    fn fields(&self) -> &[Field] {
        self.fields.get_or_init(|| self.metadata().fields().iter().collect())
    }

    /// Calls something with the values of fields, by index, in the form in which subscribers want them.
    pub(super) fn with_values<T>(
        &self,
        values: &[(u8, &dyn Value)],
        run: impl FnOnce(&tracing_core::field::ValueSet<'_>) -> T,
    ) -> T {
        let set = self.metadata().fields();
        let fields = self.fields();
        let Some(first) = fields.first() else { return run(&set.value_set(&[])) };
        // As many as there may be: they are only taken in arrays.
        let mut array: [(&Field, Option<&dyn Value>); crate::wire::voice::MOST_FIELDS] =
            std::array::from_fn(|_| (first, None));
        let known =
            values.iter().filter_map(|(index, value)| Some((fields.get(usize::from(*index))?, *value)));
        for (place, (field, value)) in array.iter_mut().zip(known) {
            *place = (field, Some(value));
        }
        run(&set.value_set(&array))
    }
}

fn keep(text: &str) -> &'static str {
    Box::leak(text.into())
}

fn level(level: u8) -> Level {
    match level {
        0 | 1 => Level::ERROR,
        2 => Level::WARN,
        3 => Level::INFO,
        4 => Level::DEBUG,
        _ => Level::TRACE,
    }
}
