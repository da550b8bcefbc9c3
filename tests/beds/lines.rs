//! A child process whose output is awaited line by line, with a deadline, and which ends with its owner.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) struct Lines {
    child: Child,
    output: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    /// Starts a command and reads its standard output.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let pipe = child.stdout.take().ok_or("a piped child without a pipe")?;
        let (sender, output) = mpsc::channel();
        // A thread, because a pipe cannot be read with a deadline. It ends with the pipe, or when nobody listens any more.
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            // A console may carry anything: bytes, not text.
            while matches!(pipe.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Ok(Self { child, output, seen: Vec::new() })
    }

    /// Reads until `count` lines more were as wanted, and returns those.
    ///
    /// # Panics
    ///
    /// Where the output ends or the time is over before; the message shows what came instead.
    pub(crate) fn wait(
        &mut self,
        what: &str,
        count: usize,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let end = Instant::now() + limit;
        let mut found = Vec::new();
        while found.len() < count {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if wanted(&line) {
                        found.push(line.clone());
                    }
                    self.seen.push(line);
                }
                Err(why) => {
                    let why = if why == RecvTimeoutError::Timeout {
                        "in time"
                    } else {
                        "before the end of the output"
                    };
                    panic!(
                        "{what}: {} of {count} came {why}; seen:\n{}",
                        found.len(),
                        self.seen.join("\n")
                    );
                }
            }
        }
        found
    }

    /// Reads to the end of the output, which a process closes when it ends; the error is that it did not in time.
    pub(crate) fn until_end(&mut self, limit: Duration) -> Result<Vec<String>, String> {
        let end = Instant::now() + limit;
        loop {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(std::mem::take(&mut self.seen)),
                Err(RecvTimeoutError::Timeout) => return Err(self.seen.join("\n")),
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
