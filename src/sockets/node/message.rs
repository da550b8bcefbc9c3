//! What users send: `process.send` of a worker, to us or to its siblings.

use serde_json::{Value, json};
use tracing::debug;

/// The longest text of a message in the events, characters.
const LONGEST: usize = 2048;

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    All,
    /// All but the sender.
    Others,
    /// Those of a slot; in a rollout there are two.
    One(u32),
}

/// The message to siblings that a worker has sent: `{"throng":{"to":"all"|"others"|ID,"message":…}}`.
pub(super) fn envelope(value: &Value) -> Option<(To, &Value)> {
    let fields =
        value.as_object().filter(|fields| fields.len() == 1)?.get("throng")?.as_object()?;
    let to = match fields.get("to")? {
        Value::String(text) if text == "all" => To::All,
        Value::String(text) if text == "others" => To::Others,
        Value::Number(id) => To::One(u32::try_from(id.as_u64()?).ok().filter(|id| *id > 0)?),
        _ => return None,
    };
    Some((to, fields.get("message")?))
}

/// What a sibling gets.
pub(super) fn from(slot: u32, message: &Value) -> Value {
    json!({ "throng": { "from": slot, "message": message } })
}

/// Puts a message among the events.
pub(super) fn record(slot: u32, value: &Value) {
    let text = value.to_string();
    let end = text.char_indices().nth(LONGEST).map_or(text.len(), |(end, _)| end);
    debug!(
        event = "message",
        worker = slot,
        value = &text[..end],
        cut = end < text.len(),
        "worker {slot} says {}",
        &text[..end]
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_and_what_only_looks_like_one() {
        let of = |text: &str| {
            let value: Value = serde_json::from_str(text).unwrap();
            envelope(&value).map(|(to, message)| (to, message.to_string()))
        };
        assert_eq!(of(r#"{"throng":{"to":"all","message":1}}"#), Some((To::All, "1".into())));
        assert_eq!(
            of(r#"{"throng":{"to":"others","message":null}}"#),
            Some((To::Others, "null".into()))
        );
        assert_eq!(of(r#"{"throng":{"to":2,"message":"x"}}"#), Some((To::One(2), "\"x\"".into())));
        for text in [
            r#"{"throng":{"to":0,"message":1}}"#,
            r#"{"throng":{"to":"some","message":1}}"#,
            r#"{"throng":{"to":"all"}}"#,
            r#"{"throng":{"to":"all","message":1},"more":1}"#,
            r#"{"throng":"all"}"#,
            r#""ready""#,
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
