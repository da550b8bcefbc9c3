//! Ends: of children, which are all reaped here, and of the run itself.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg, raise};
use nix::unistd::Pid;
use tracing::warn;

use super::spawn::{Change, Waited, wait_any};
use super::{Engine, OWN_LINES, Running, orphans};
use crate::fleet::{Event, WorkerKey};
use crate::log;

/// Orphans that come as fast as they are reaped must not keep us from everything else.
const AT_ONCE: u32 = 10_000;
/// How long the last lines may take to be read when all is over.
const LAST_FLUSH: Duration = Duration::from_secs(2);

/// How often the control interface may go on before all is over.
const LAST_TURNS: usize = 16;

impl Engine {
    /// Takes in every child that has ended: all are reaped first, so that the members of a group
    /// that went together are not mistaken for a rest of it.
    pub(super) fn reap(&mut self) {
        let mut ended = Vec::new();
        for turn in 1.. {
            let Some(Waited { pid, change, peak }) = wait_any() else { break };
            let known =
                self.running.iter_mut().find(|(_, running)| running.pid == pid && !running.reaped);
            match (known, change) {
                (Some((key, running)), Change::Ended(how)) => {
                    running.reaped = true;
                    ended.push((*key, how, peak));
                }
                (Some(_), Change::Stopped) => self.stopped_by_terminal(),
                (None, change) => {
                    if !self.proved(pid, change) {
                        self.guard.heard(pid, change);
                    }
                }
            }
            if turn >= AT_ONCE {
                // Others have their turn, and then the rest.
                let _ = raise(Signal::SIGCHLD);
                break;
            }
        }
        for (worker, how, peak) in ended {
            self.last_words(worker);
            self.sharing.gone(worker);
            let port = self.wanted_port(worker, how);
            let group = self.running.get(&worker).is_some_and(|running| group_lives(running.pid));
            self.tell(Event::Ended { worker, how, group });
            self.look_for_oom(worker, how, peak);
            if !group && let Some(running) = self.running.remove(&worker) {
                self.leave_group(worker);
                self.guard.gone(running.pid);
            }
            if let Some(port) = port {
                self.port_taken(&port, how);
            }
        }
        self.check_groups();
    }

    /// Looks which groups whose leader has ended have gone too. Not every end tells us: the last of a
    /// group may have another parent than us.
    pub(super) fn check_groups(&mut self) {
        let left = |running: &Running| running.reaped && !group_lives(running.pid);
        let gone: Vec<_> =
            self.running.iter().filter(|(_, running)| left(running)).map(|(key, _)| *key).collect();
        for worker in gone {
            self.tell(Event::GroupGone { worker });
            if let Some(running) = self.running.remove(&worker) {
                self.leave_group(worker);
                self.guard.gone(running.pid);
            }
        }
    }

    /// Passes on what a worker wrote before it ended.
    fn last_words(&self, worker: WorkerKey) {
        if let Some(running) = self.running.get(&worker) {
            running.streams.iter().for_each(|stream| stream.catch_up());
        }
    }

    pub(super) fn pass_own_lines(&self) {
        for (name, sink) in [("standard output", &self.stdout), ("standard error", &self.stderr)] {
            if let Some((errno, bytes)) = sink.take_lost(self.exit.is_some()) {
                warn!(
                    event = "output_lost",
                    bytes,
                    "{bytes} bytes of {name} were lost: {}",
                    errno.desc()
                );
            }
        }
        if self.stdout.take_broken() {
            warn!(
                event = "output_gone",
                "nobody reads standard output any more; what the workers write there is dropped"
            );
        }
        // A reader that stands still costs our lines, never the supervision; the queue counts them.
        if !self.stderr.is_full() {
            self.stderr.push(OWN_LINES, b"", &log::take());
        }
    }

    /// Leaves nothing behind: no process that came to us, no line that was written.
    pub(super) async fn finish(&mut self) {
        self.take_terminal();
        if !self.config.terminal {
            self.strangers.extend(self.guard.pid());
            orphans::end(&self.signals, &self.strangers).await;
        }
        self.guard.end();
        let drained = async {
            for stream in &self.streams {
                stream.flush().await;
            }
            self.pass_own_lines();
            self.stdout.drained().await;
            self.stderr.drained().await;
            // Answers that are ready are written by their tasks: each has a few turns to do it.
            some_turns().await;
        };
        let _ = tokio::time::timeout(LAST_FLUSH, drained).await;
    }
}

/// Lets the tasks of the control interface write what is ready.
pub(super) async fn some_turns() {
    for _ in 0..LAST_TURNS {
        tokio::task::yield_now().await;
    }
}

/// Whether a process of the group runs. Zombies do not: whoever is their parent may never reap them.
pub(super) fn group_lives(leader: Pid) -> bool {
    if killpg(leader, None) == Err(Errno::ESRCH) {
        return false;
    }
    let Ok(all) = procfs::process::all_processes() else { return true };
    let runs = |stat: procfs::process::Stat| stat.pgrp == leader.as_raw() && stat.state != 'Z';
    all.flatten().any(|process| process.stat().is_ok_and(runs))
}
