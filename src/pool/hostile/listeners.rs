//! A subscriber and a logger that look at all that they are told.

/// To be the only ones of these tests.
pub(super) fn listen() {
    #[cfg(feature = "log")]
    {
        let _ = log::set_logger(&records::Logger);
        log::set_max_level(log::LevelFilter::Trace);
    }
    #[cfg(feature = "tracing")]
    {
        use tracing_subscriber::layer::SubscriberExt;
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(spans::Looks));
    }
}

#[cfg(feature = "log")]
mod records {
    use std::hint::black_box;

    pub(super) struct Logger;

    impl log::Log for Logger {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            black_box(format!("{record:?}"));
        }

        fn flush(&self) {}
    }
}

#[cfg(feature = "tracing")]
mod spans {
    use std::fmt::Debug;
    use std::hint::black_box;
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Subscriber};
    use tracing_subscriber::layer::{Context, Layer};
    use tracing_subscriber::registry::LookupSpan;

    pub(super) struct Looks;

    struct Fields(String);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.0 += &format!("{}={value:?} ", field.name());
        }
    }

    fn look(visit: impl FnOnce(&mut Fields)) {
        let mut fields = Fields(String::new());
        visit(&mut fields);
        black_box(fields.0);
    }

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Looks {
        fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
            look(|fields| attributes.record(fields));
        }

        fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
            look(|fields| values.record(fields));
        }

        fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
            look(|fields| event.record(fields));
            let scope = context.event_scope(event).into_iter().flatten();
            assert!(scope.count() < 10_000, "the spans around an event have no end");
        }
    }
}
