//! Our own log: one line a fact, on standard error, as text or JSON.
//!
//! A line is queued and written by whoever owns standard error: at first straight away, later by
//! the engine's output, because a reader that stands still must not stop the supervision.

mod events;

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

use events::Events;

pub(crate) use events::{Kept, kept, restore, watch};

use crate::units::printable;

/// Lines beyond this are lost (and counted) rather than kept without bound.
const MOST_QUEUED: usize = 64 << 10;

/// What a pipe that is ready takes without blocking (`PIPE_BUF`, pipe(7)).
const SURE: usize = 4096;

static QUEUE: Mutex<Queue> = Mutex::new(Queue { lines: Vec::new(), lost: 0, held: false });

struct Queue {
    lines: Vec<u8>,
    lost: u64,
    /// Whether somebody collects the lines; else they are written at once.
    held: bool,
}

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts logging. May be called once in a process; later calls change nothing.
pub(crate) fn start(json: bool, quiet: bool, verbose: bool) {
    let level = match (quiet, verbose) {
        (true, _) => Level::WARN,
        (_, true) => Level::DEBUG,
        _ => Level::INFO,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Line).with_target(false);
    let filter = LevelFilter::from_level(level);
    let registry = tracing_subscriber::registry().with(Events);
    let subscriber: Box<dyn Subscriber + Send + Sync> = if json {
        let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
        Box::new(registry.with(lines.with_filter(filter)))
    } else {
        Box::new(registry.with(lines.event_format(Plain).with_filter(filter)))
    };
    // A second call finds a subscriber in place, which is as good.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// From now on lines wait for [`take`].
pub(crate) fn hold() {
    queue().held = true;
}

/// The lines since the last call.
pub(crate) fn take() -> Vec<u8> {
    let mut queue = queue();
    let mut lines = std::mem::take(&mut queue.lines);
    if queue.lost > 0 {
        let lost = std::mem::take(&mut queue.lost);
        lines.extend(format!("throng-rs: warning: {lost} log lines were lost\n").as_bytes());
    }
    lines
}

/// Lines are written at once again: what still waits comes first.
pub(crate) fn release() {
    let waiting = take();
    queue().held = false;
    // A reader that stands still must not keep us from ending: what it does not take at once is lost.
    let stderr = io::stderr();
    let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if !waiting.is_empty() && poll(&mut polled, PollTimeout::ZERO) == Ok(1) {
        let _ = stderr.lock().write_all(&waiting[..waiting.len().min(SURE)]);
    }
}

struct Line;

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut queue = queue();
        if !queue.held {
            return io::stderr().write(bytes);
        }
        if queue.lines.len() + bytes.len() > MOST_QUEUED {
            queue.lost += 1;
        } else {
            queue.lines.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `throng-rs: warning: text`: no time, which container platforms and journals add by themselves.
struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str("throng-rs: ")?;
        match *event.metadata().level() {
            Level::ERROR => writer.write_str("error: ")?,
            Level::WARN => writer.write_str("warning: ")?,
            _ => {}
        }
        // The fields beside the message are for the JSON form; the message says them in words.
        let mut message = Message(writer.by_ref(), Ok(()));
        event.record(&mut message);
        message.1?;
        writeln!(writer)
    }
}

struct Message<'a>(Writer<'a>, fmt::Result);

impl tracing::field::Visit for Message<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        if field.name() == "message" && self.1.is_ok() {
            self.1 = self.0.write_str(&printable(&format!("{value:?}")));
        }
    }
}
