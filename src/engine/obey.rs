//! Signals: those that we get, and those that workers get from us. The rules are the contract's
//! "Signals to the launcher".

use std::io;

use nix::sys::signal::{Signal, kill, killpg, raise};
use nix::unistd::{getpgrp, tcsetpgrp};
use tracing::warn;

use super::Engine;
use super::signals::Received;
use crate::fleet::{Event, Urgency, WorkerKey};

impl Engine {
    /// The stop signal, and CONT after it: a stopped process could not obey.
    pub(super) fn ask(&self, worker: WorkerKey, group: bool) {
        let Some(running) = self.running.get(&worker) else { return };
        for signal in [self.config.stop_signal, Signal::SIGCONT] {
            if group {
                self.signal_group(worker, signal);
            } else if !running.reaped {
                // It has not been reaped, so the pid is its own; an ended process takes no harm.
                let _ = kill(running.pid, signal);
            }
        }
    }

    pub(super) fn signal_group(&self, worker: WorkerKey, signal: Signal) {
        if let Some(running) = self.running.get(&worker) {
            // ESRCH: they have gone in the meantime.
            let _ = killpg(running.pid, signal);
        }
    }

    fn signal_all(&self, signal: Signal) {
        for running in self.running.values().filter(|running| !running.reaped) {
            let _ = kill(running.pid, signal);
        }
    }

    pub(super) fn signal(&mut self, received: Received) {
        match received.signal {
            Signal::SIGCHLD => self.reap(),
            Signal::SIGTERM | Signal::SIGINT => self.tell(Event::Stop(Urgency::Graceful)),
            Signal::SIGQUIT => self.tell(Event::Stop(Urgency::Now)),
            Signal::SIGHUP => self.hangup(received),
            Signal::SIGTTIN if received.by_process => self.tell(Event::ResizeBy(1)),
            Signal::SIGTTOU if received.by_process => self.tell(Event::ResizeBy(-1)),
            Signal::SIGTSTP => {
                for worker in self.running.keys() {
                    self.signal_group(*worker, Signal::SIGSTOP);
                }
                // As PID 1 the kernel takes no notice, and we stay to hear CONT.
                let _ = raise(Signal::SIGSTOP);
            }
            Signal::SIGCONT => {
                self.give_terminal();
                for worker in self.running.keys() {
                    self.signal_group(*worker, Signal::SIGCONT);
                }
            }
            // The kernel speaks to us alone there: a window has changed, we wrote to nobody.
            Signal::SIGTTIN | Signal::SIGTTOU | Signal::SIGPIPE => {}
            Signal::SIGUSR2 => warn!(
                event = "signal",
                "USR2 is kept for an upgrade of throng-rs itself and is not passed on"
            ),
            other if received.by_process => self.signal_all(other),
            _ => {}
        }
    }

    fn hangup(&mut self, received: Received) {
        if self.hup_ignored {
            return;
        }
        let terminal_gone = self.had_terminal && (!received.by_process || !has_terminal());
        self.tell(if terminal_gone { Event::Stop(Urgency::Graceful) } else { Event::Reload });
    }

    fn give_terminal(&self) {
        if self.config.terminal
            && let Some(running) = self.running.values().find(|running| !running.reaped)
        {
            let _ = tcsetpgrp(io::stdin(), running.pid);
        }
    }

    /// The one worker that has the terminal was stopped by a key: so are we, until somebody says CONT.
    pub(super) fn stopped_by_terminal(&self) {
        if self.config.terminal {
            self.take_terminal();
            let _ = raise(Signal::SIGSTOP);
        }
    }

    pub(super) fn take_terminal(&self) {
        if self.config.terminal {
            let _ = tcsetpgrp(io::stdin(), getpgrp());
        }
    }
}

/// Whether this process has a controlling terminal.
pub(super) fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}
