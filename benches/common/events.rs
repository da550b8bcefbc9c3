//! The events of a launcher, followed over every break, and an account of its processes.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::unistd::Pid;
use serde_json::Value;

/// What is collected.
pub(crate) struct Account {
    events: Receiver<Value>,
    follower: JoinHandle<()>,
}

impl Account {
    /// Collects until nobody answers at the socket any more.
    pub(crate) fn follow(socket: &Path) -> Self {
        let (sender, events) = channel();
        let socket = PathBuf::from(socket);
        let follower = std::thread::spawn(move || {
            let mut last = 0;
            // An upgrade breaks the connection; what is kept fills the gap.
            while let Ok(stream) = connect(&socket, last) {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let Some(data) = line.strip_prefix("data: ") else { continue };
                    let Ok(event) = serde_json::from_str::<Value>(data) else { continue };
                    last = event["number"].as_u64().unwrap_or(last);
                    if sender.send(event).is_err() {
                        return;
                    }
                }
            }
        });
        Self { events, follower }
    }

    /// Checks that no event is missing, and that each process that was started has ended; `alive` were
    /// there when the stop began.
    pub(crate) fn settle(self, alive: &[Pid]) -> anyhow::Result<String> {
        self.follower.join().map_err(|_| anyhow::anyhow!("the follower panicked"))?;
        let events: Vec<Value> = self.events.into_iter().collect();
        let mut last = 0;
        let (mut started, mut ended, mut refused) = (0, 0, 0);
        let mut running: BTreeSet<i64> = BTreeSet::new();
        for event in &events {
            let number = event["number"].as_u64().context("an event without its number")?;
            ensure!(number == last + 1, "event {number} follows {last}");
            last = number;
            let pid = event["pid"].as_i64().unwrap_or_default();
            match event["event"].as_str().unwrap_or_default() {
                "started" => {
                    started += 1;
                    ensure!(running.insert(pid), "pid {pid} is started twice");
                }
                "ended" => {
                    ended += 1;
                    ensure!(running.remove(&pid), "pid {pid} ends and was not there");
                }
                "refused" => refused += 1,
                "stuck" => bail!("{event}"),
                _ => {}
            }
        }
        ensure!(running.is_empty(), "no end is told of {running:?}");
        let known = |pid: &&Pid| {
            let pid = i64::from(pid.as_raw());
            events.iter().any(|event| event["event"] == "ended" && event["pid"] == pid)
        };
        let unknown: Vec<_> = alive.iter().filter(|pid| !known(pid)).collect();
        ensure!(unknown.is_empty(), "no end is told of {unknown:?}");
        Ok(format!(
            "events: {last} without a gap; {started} starts, {ended} ends, {refused} starts refused"
        ))
    }
}

fn connect(socket: &Path, last: u64) -> std::io::Result<UnixStream> {
    let mut tries = 0;
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            // The queue is full for a moment, or the launcher is stopped.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && tries < 100 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error),
        }
    };
    write!(
        stream,
        "GET /v1/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {last}\r\nConnection: close\r\n\r\n"
    )?;
    Ok(stream)
}
