//! Signals: those that we get, and those that workers get from us. The rules are the contract's
//! "Signals to the launcher".

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, raise, sigprocmask};
use nix::unistd::{getpgrp, getpid, tcgetpgrp, tcsetpgrp};

use super::Engine;
use super::reap::group_lives;
use super::signals::Received;
use super::spawn::send;
use crate::fleet::{Event, Urgency, WorkerKey};

impl Engine {
    /// The stop signal, and CONT after it to the whole group: what is stopped could not obey.
    pub(super) fn ask(&mut self, worker: WorkerKey, group: bool) {
        let Some(running) = self.running.get_mut(&worker) else { return };
        running.asked = true;
        let (pid, reaped) = (running.pid, running.reaped);
        if group {
            self.signal_group(worker, self.config.stop_signal);
        } else if !reaped {
            // It has not been reaped, so the pid is its own; an ended process takes no harm.
            let _ = kill(pid, self.config.stop_signal);
        }
        self.signal_group(worker, Signal::SIGCONT);
    }

    pub(super) fn kill(&mut self, worker: WorkerKey) {
        if let Some(running) = self.running.get_mut(&worker) {
            running.killed = true;
        }
        self.signal_group(worker, Signal::SIGKILL);
        self.isolation.kill(worker);
    }

    /// A core dump or a stack trace tells more than an end.
    pub(super) fn abort_leader(&self, worker: WorkerKey) {
        let Some(running) = self.running.get(&worker).filter(|running| !running.reaped) else {
            return;
        };
        let _ = kill(running.pid, Signal::SIGABRT);
        self.signal_group(worker, Signal::SIGCONT);
    }

    pub(super) fn signal_group(&self, worker: WorkerKey, signal: Signal) {
        let Some(running) = self.running.get(&worker) else { return };
        // With its leader reaped and its last member gone, the number may be somebody else's.
        if !running.reaped || group_lives(running.pid) {
            let _ = killpg(running.pid, signal);
        }
    }

    fn pass_on(&self, number: i32) {
        for running in self.running.values().filter(|running| !running.reaped) {
            send(running.pid, number);
        }
    }

    pub(super) fn signal(&mut self, received: Received) {
        let Some(signal) = received.signal else {
            self.pass_on(received.number);
            return;
        };
        match signal {
            Signal::SIGCHLD => self.reap(),
            Signal::SIGTERM | Signal::SIGINT => self.tell(Event::Stop(Urgency::Graceful)),
            Signal::SIGQUIT => self.tell(Event::Stop(Urgency::Now)),
            Signal::SIGHUP => self.hangup(received),
            Signal::SIGTTIN if received.by_process => self.tell(Event::ResizeBy(1)),
            Signal::SIGTTOU if received.by_process => self.tell(Event::ResizeBy(-1)),
            // A stop wins: who is to end must not be held up.
            Signal::SIGTSTP if self.fleet.is_ending() => {}
            Signal::SIGTSTP => {
                for worker in self.running.keys() {
                    self.signal_group(*worker, Signal::SIGSTOP);
                }
                self.suspend(received.by_process);
            }
            Signal::SIGCONT => self.go_on(),
            // The kernel speaks to us alone there: a window has changed, we wrote to nobody.
            Signal::SIGTTIN | Signal::SIGTTOU | Signal::SIGPIPE => {}
            Signal::SIGUSR2 => self.upgrade(None),
            _ if received.by_process => self.pass_on(received.number),
            _ => {}
        }
    }

    fn hangup(&mut self, received: Received) {
        if self.hup_ignored {
            return;
        }
        let terminal_gone = self.had_terminal && (!received.by_process || !has_terminal());
        if terminal_gone {
            self.tell(Event::Stop(Urgency::Graceful));
        } else {
            // Its failure is in the log, which is all that a signal can have for an answer.
            let _ = self.reload();
        }
    }

    /// Stops us, until somebody says CONT, and goes on with the workers.
    ///
    /// A key must not stop whom nobody could wake (an orphaned process group, setpgid(2)): the kernel
    /// sees to that for TSTP and not for STOP. We do not wait to read CONT: a stop signal that comes
    /// right after it takes it back.
    fn suspend(&self, by_process: bool) {
        if by_process {
            let _ = raise(Signal::SIGSTOP);
            if getpid().as_raw() == 1 {
                // The kernel does not stop PID 1; the workers wait for CONT, which we hear.
                return;
            }
        } else {
            let mut key = SigSet::empty();
            key.add(Signal::SIGTSTP);
            let _ = raise(Signal::SIGTSTP);
            let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&key), None);
            let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&key), None);
        }
        self.go_on();
    }

    fn go_on(&self) {
        self.give_terminal();
        for worker in self.running.keys() {
            self.signal_group(*worker, Signal::SIGCONT);
        }
    }

    /// Whether the terminal is ours to give: a job in the background has none.
    pub(super) fn in_foreground(&self) -> bool {
        self.config.terminal && tcgetpgrp(io::stdin()) == Ok(getpgrp())
    }

    fn give_terminal(&self) {
        if self.in_foreground()
            && let Some(running) = self.running.values().find(|running| !running.reaped)
        {
            self.terminal_given.set(Some(running.pid));
            let _ = tcsetpgrp(io::stdin(), running.pid);
        }
    }

    /// The one worker that has the terminal was stopped by a key: so are we.
    pub(super) fn stopped_by_terminal(&self) {
        if self.config.terminal {
            self.take_terminal();
            self.suspend(false);
        }
    }

    /// Takes the terminal back from the worker that we gave it to, and from nobody else.
    pub(super) fn take_terminal(&self) {
        if !self.config.terminal {
            return;
        }
        let Ok(holder) = tcgetpgrp(io::stdin()) else { return };
        let given = self.terminal_given.get() == Some(holder);
        if given || killpg(holder, None) == Err(Errno::ESRCH) {
            let _ = tcsetpgrp(io::stdin(), getpgrp());
        }
    }
}

/// Whether this process has a controlling terminal.
pub(super) fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}
