//! Bodies that go on: events and output as they come.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use http_body_util::channel::Channel;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::log;

/// How many pieces wait for a reader that is slow; then some are left out, and it is told so.
const WAITING: usize = 64;

/// Server-sent events: those that are kept from number `after` on, then, if `on`, each new one.
pub(super) fn events(after: u64, on: bool) -> Body {
    let mut news = log::watch();
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(WAITING);
    tokio::spawn(async move {
        let mut last = after;
        for event in log::kept() {
            if event.number > last {
                last = event.number;
                if sender.send_data(framed(&event)).await.is_err() {
                    return;
                }
            }
        }
        if !on {
            return;
        }
        loop {
            let piece = match news.recv().await {
                Ok(event) if event.number <= last => continue,
                Ok(event) => framed(&event),
                Err(RecvError::Lagged(count)) => {
                    format!("event: lost\ndata: {{\"event\":\"lost\",\"count\":{count}}}\n\n")
                        .into()
                }
                Err(RecvError::Closed) => return,
            };
            if sender.send_data(piece).await.is_err() {
                return;
            }
        }
    });
    Body::new(body)
}

fn framed(event: &log::Kept) -> Bytes {
    format!("id: {}\nevent: {}\ndata: {}\n\n", event.number, event.name, event.json).into()
}

/// What is kept, then each new piece of the slot, or of all.
pub(super) fn output(
    kept: Vec<u8>,
    slot: Option<u32>,
    mut news: Receiver<(u32, Arc<[u8]>)>,
) -> Body {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(WAITING);
    tokio::spawn(async move {
        if !kept.is_empty() && sender.send_data(kept.into()).await.is_err() {
            return;
        }
        loop {
            let piece = match news.recv().await {
                Ok((from, _)) if slot.is_some_and(|slot| slot != from) => continue,
                Ok((_, piece)) if slot.is_some() => Bytes::copy_from_slice(&piece),
                Ok((from, piece)) => prefixed(from, &piece).into(),
                Err(RecvError::Lagged(count)) => {
                    format!("throng-rs: {count} pieces were left out for a slow reader\n").into()
                }
                Err(RecvError::Closed) => return,
            };
            if sender.send_data(piece).await.is_err() {
                return;
            }
        }
    });
    Body::new(body)
}

/// Each line with the worker it comes from.
pub(crate) fn prefixed(slot: u32, lines: &[u8]) -> Vec<u8> {
    let mut found = Vec::with_capacity(lines.len() + 16);
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        found.extend_from_slice(format!("[{slot}] ").as_bytes());
        found.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            found.push(b'\n');
        }
    }
    found
}
