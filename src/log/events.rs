//! The facts of the log once more, as JSON: the last ones are kept, new ones go to who watches.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};
use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer};

/// How many are kept.
const KEPT: usize = 256;

/// One fact.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// From 1, without gaps.
    pub(crate) number: u64,
    /// The field `event`.
    pub(crate) name: Arc<str>,
    pub(crate) json: Arc<str>,
}

static STATE: Mutex<(u64, VecDeque<Kept>)> = Mutex::new((0, VecDeque::new()));
static WATCHERS: OnceLock<broadcast::Sender<Kept>> = OnceLock::new();

/// Those that are kept, the oldest first.
pub(crate) fn kept() -> Vec<Kept> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner).1.iter().cloned().collect()
}

/// Those to come.
pub(crate) fn watch() -> broadcast::Receiver<Kept> {
    WATCHERS.get_or_init(|| broadcast::Sender::new(KEPT)).subscribe()
}

/// Puts facts of an earlier program, each with its number and name, before those of this one, which
/// are numbered on.
pub(crate) fn restore(before: Vec<(u64, String, String)>) {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let last = before.last().map_or(0, |(number, _, _)| *number);
    let before = before.into_iter().map(|(number, name, json)| Kept {
        number,
        name: name.into(),
        json: json.into(),
    });
    // What this one has said so far is about its own start, and has been said before.
    *state = (last, before.collect());
}

/// Takes every fact that has a name, whatever level is printed.
pub(super) struct Events;

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let Some(Value::String(name)) = fields.0.get("event") else { return };
        let name: Arc<str> = name.as_str().into();
        let mut time = String::new();
        // Writing to a string does not fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        fields.0.insert("time".to_owned(), time.into());
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        fields.0.insert("level".to_owned(), level.into());
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        fields.0.insert("number".to_owned(), state.0.into());
        let json: Arc<str> = Value::Object(fields.0).to_string().into();
        let fact = Kept { number: state.0, name, json };
        if state.1.len() == KEPT {
            state.1.pop_front();
        }
        state.1.push_back(fact.clone());
        drop(state);
        if let Some(watchers) = WATCHERS.get() {
            // Nobody watches now.
            let _ = watchers.send(fact);
        }
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn facts_are_kept_with_their_fields() {
        let subscriber = tracing_subscriber::registry().with(Events);
        let mut news = watch();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("no name, no fact");
            tracing::debug!(event = "tested", worker = 3, late = true, "it {}", "works");
        });
        let fact = kept().into_iter().find(|fact| &*fact.name == "tested").unwrap();
        let json: Value = serde_json::from_str(&fact.json).unwrap();
        assert_eq!((&json["worker"], &json["late"]), (&3.into(), &true.into()));
        assert_eq!((&json["message"], &json["level"]), (&"it works".into(), &"debug".into()));
        assert!(json["time"].as_str().unwrap().contains('T') && json["number"] == fact.number);
        assert_eq!(news.try_recv().unwrap().number, fact.number);
    }
}
