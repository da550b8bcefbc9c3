//! The service manager above us (`sd_notify(3)`): told when the fleet is ready, how many workers
//! serve, when a reload begins and ends, that we stop, and that the event loop turns.
//!
//! A datagram that the manager has no room for is kept and sent again: nothing here may block.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use tracing::warn;

use super::standing::{Standing, Turn};
use crate::fleet::{Action, FleetView, Kind, Restart};
use crate::probe::Host;

/// After this a datagram that found no room is sent again.
const AGAIN: Duration = Duration::from_millis(100);
/// The shortest time between two signs of life, whatever was asked for: a timer must not spin.
const SHORTEST: Duration = Duration::from_millis(10);
/// Turns that may wait for room; of more the first are dropped, because the last ones tell the state.
const MOST_WAITING: usize = 4;

/// The line to the service manager.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Watchdog>,
    standing: Standing,
    waiting: VecDeque<Message>,
    /// The last status that was sent, or waits.
    status: String,
    retry: Option<Instant>,
    /// Whether a failure has been told of: once is enough.
    warned: bool,
}

#[derive(Debug)]
struct Watchdog {
    /// Half of what the manager waits for.
    every: Duration,
    next: Instant,
}

#[derive(Debug, Default)]
struct Message {
    turn: Option<String>,
    status: Option<String>,
}

impl Message {
    fn text(&self) -> String {
        let status = self.status.iter().map(|status| format!("STATUS={status}"));
        self.turn.iter().cloned().chain(status).collect::<Vec<_>>().join("\n")
    }
}

impl Manager {
    /// The manager that `NOTIFY_SOCKET` names, if there is one. A bad value is warned of: the workers
    /// can run without anybody watching.
    pub(crate) fn from_env(host: &Host, workers: u32, restart: Restart) -> Option<Self> {
        let name = host.env("NOTIFY_SOCKET")?;
        let opened = address(name).and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            Ok((address, socket))
        });
        let (address, socket) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                warn!(
                    event = "manager",
                    "NOTIFY_SOCKET is \"{}\": {error}; the service manager will not hear from us",
                    name.display()
                );
                return None;
            }
        };
        let watchdog = interval(host, std::process::id()).unwrap_or_else(|problem| {
            warn!(event = "manager", "{problem}; no watchdog is fed");
            None
        });
        Some(Self {
            socket,
            address,
            watchdog: watchdog.map(|every| Watchdog { every, next: Instant::now() }),
            standing: Standing::new(workers, restart),
            waiting: VecDeque::new(),
            status: String::new(),
            retry: None,
            warned: false,
        })
    }

    /// Goes on where an earlier program of this process stood: it has been told of the start.
    pub(super) fn resume(&mut self, view: &FleetView) {
        let ready = view.workers.iter().filter(|worker| worker.ready);
        let ready = ready.map(|worker| (worker.key, worker.slot)).collect();
        let given_up = view.slots.iter().filter(|slot| slot.state == "failed");
        let reloading = view.rollout.is_some_and(|(kind, _)| kind == Kind::Reload);
        self.standing.resume(view.target, ready, given_up.map(|slot| slot.id).collect(), reloading);
    }

    /// Takes in what the fleet decided.
    pub(super) fn heed(&mut self, action: &Action) {
        match self.standing.take(action) {
            Some(Turn::Ready) => self.push("READY=1".to_owned()),
            Some(Turn::Reloading) => {
                // By this the manager knows that it is not the answer to an earlier request.
                let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
                let now = now.unwrap_or_default().as_micros();
                self.push(format!("RELOADING=1\nMONOTONIC_USEC={now}"));
            }
            Some(Turn::Stopping) => self.push("STOPPING=1".to_owned()),
            None => {}
        }
    }

    fn push(&mut self, turn: String) {
        let mut status = None;
        if self.waiting.len() == MOST_WAITING {
            // The status may be the newest that there is: it moves on.
            let dropped = self.waiting.pop_front().and_then(|message| message.status);
            status = dropped.filter(|_| self.waiting.iter().all(|one| one.status.is_none()));
        }
        self.waiting.push_back(Message { turn: Some(turn), status });
    }

    /// When [`Self::go_on`] has something to do, if nothing happens before.
    pub(super) fn due(&self) -> Option<Instant> {
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.next);
        watchdog.into_iter().chain(self.retry).min()
    }

    /// Sends what there is to say. Called by each turn of the event loop and by nothing else: a sign
    /// of life proves that the loop turns.
    pub(super) fn go_on(&mut self) {
        let status = self.standing.status();
        if status != self.status {
            self.status.clone_from(&status);
            match self.waiting.back_mut() {
                Some(last) => last.status = Some(status),
                None => self.waiting.push_back(Message { turn: None, status: Some(status) }),
            }
        }
        let watched = self.watchdog.as_ref().map(|watchdog| watchdog.next);
        if self.waiting.is_empty() && watched.is_none() {
            return;
        }
        let now = Instant::now();
        if self.retry.is_none_or(|retry| now >= retry) {
            self.retry = None;
            while let Some(message) = self.waiting.front() {
                if !self.send(&message.text()) {
                    self.retry = Some(now + AGAIN);
                    break;
                }
                self.waiting.pop_front();
            }
        }
        if watched.is_some_and(|next| now >= next) {
            let sent = self.send("WATCHDOG=1");
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.next = now + if sent { watchdog.every } else { AGAIN.min(watchdog.every) };
            }
        }
    }

    /// Whether it is done with: sent, or lost because nobody is there.
    fn send(&mut self, text: &str) -> bool {
        loop {
            match self.socket.send_to_addr(text.as_bytes(), &self.address) {
                Ok(_) => return true,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return false,
                    _ => {
                        if !std::mem::replace(&mut self.warned, true) {
                            warn!(
                                event = "manager",
                                "the service manager at NOTIFY_SOCKET does not hear us: {error}"
                            );
                        }
                        return true;
                    }
                },
            }
        }
    }
}

/// The address of `NOTIFY_SOCKET`: a path, or an abstract name behind an at sign.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', rest @ ..] if !rest.is_empty() => SocketAddr::from_abstract_name(rest),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::other("neither an absolute path nor an abstract name such as @name")),
    }
}

/// Half of `WATCHDOG_USEC`, as `sd_watchdog_enabled(3)` advises, where it is meant for us.
fn interval(host: &Host, own: u32) -> Result<Option<Duration>, String> {
    let number = |name: &str| match host.env(name) {
        None => Ok(None),
        Some(value) => {
            let number = value.to_str().and_then(|text| text.parse::<u64>().ok());
            let number = number.filter(|number| (1..u64::MAX).contains(number)).map(Some);
            number.ok_or_else(|| {
                format!("bad value \"{}\" for {name}: it is a number above 0", value.display())
            })
        }
    };
    let Some(micros) = number("WATCHDOG_USEC")? else { return Ok(None) };
    if number("WATCHDOG_PID")?.is_some_and(|pid| pid != u64::from(own)) {
        return Ok(None);
    }
    // A week is as good as any longer time, and can be added to any clock.
    let most = Duration::from_hours(7 * 24);
    Ok(Some((Duration::from_micros(micros) / 2).clamp(SHORTEST, most)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Note, WorkerKey};

    fn host<'a>(env: impl IntoIterator<Item = (&'static str, &'a str)>) -> Host {
        Host::from_files(std::iter::empty::<(&str, &str)>()).with_env(env)
    }

    fn manager(env: &[(&'static str, &str)]) -> Option<Manager> {
        Manager::from_env(&host(env.iter().copied()), 1, Restart::Always)
    }

    fn read(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// A receiver that answers at once or not at all.
    fn receiver(address: &SocketAddr) -> UnixDatagram {
        let receiver = UnixDatagram::bind_addr(address).unwrap();
        receiver.set_nonblocking(true).unwrap();
        receiver
    }

    const READY: Action = Action::Say(Note::Ready { worker: WorkerKey(1), slot: 1, late: false });

    #[test]
    fn who_has_no_manager_has_no_timer_and_bad_values_are_passed_over() {
        for bad in ["", " ", "run/x", "@", "vsock:2:1", "/"] {
            let found = manager(&[("NOTIFY_SOCKET", bad)]).is_some();
            assert_eq!(found, bad == "/", "{bad}: a folder is found out when something is sent");
        }
        let long = format!("/{}", "x".repeat(200));
        assert!(manager(&[("NOTIFY_SOCKET", &long)]).is_none());
        assert_eq!(manager(&[("NOTIFY_SOCKET", "/x")]).unwrap().due(), None);
    }

    #[test]
    fn the_interval_is_half_and_for_us_alone() {
        let interval = |usec, pid| {
            let env = [("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)];
            interval(&host(env), 7)
        };
        assert_eq!(interval("3000000", "7"), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(interval("3000000", ""), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(interval("3000000", "8"), Ok(None));
        assert_eq!(interval("", "7"), Ok(None));
        assert_eq!(interval("1", ""), Ok(Some(SHORTEST)));
        assert_eq!(interval("18446744073709551614", ""), Ok(Some(Duration::from_hours(168))));
        for bad in ["junk", "-1", "0", "18446744073709551615", "1s"] {
            assert!(interval(bad, "").unwrap_err().contains("WATCHDOG_USEC"), "{bad}");
        }
        assert!(interval("5", "me").unwrap_err().contains("WATCHDOG_PID"));
    }

    #[test]
    fn turns_and_status_arrive_in_order_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify").display().to_string();
        for name in [path, format!("@throng-rs-test-{}", std::process::id())] {
            let receiver = receiver(&address(OsStr::new(&name)).unwrap());
            let mut manager = manager(&[("NOTIFY_SOCKET", &name)]).unwrap();
            manager.go_on();
            assert_eq!(read(&receiver), "STATUS=0 of 1 worker ready");
            manager.heed(&READY);
            manager.go_on();
            assert_eq!(read(&receiver), "READY=1\nSTATUS=1 of 1 worker ready");
            manager.go_on();
            let nothing = receiver.recv(&mut [0; 8]).unwrap_err().kind();
            assert_eq!(nothing, io::ErrorKind::WouldBlock, "what is known is not said again");
            manager.heed(&Action::Say(Note::Rollout { kind: Kind::Reload, workers: 1, surge: 1 }));
            manager.heed(&Action::Say(Note::RolloutDone { kind: Kind::Reload }));
            manager.go_on();
            let reloading = read(&receiver);
            let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(usec.parse::<u64>().unwrap() > 0);
            assert_eq!(read(&receiver), "READY=1");
        }
    }

    #[test]
    fn a_manager_without_room_does_not_hold_us_up_and_misses_no_state() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("notify").display().to_string();
        let receiver = receiver(&address(OsStr::new(&name)).unwrap());
        let mut manager = manager(&[("NOTIFY_SOCKET", &name)]).unwrap();
        manager.heed(&READY);
        manager.go_on();
        while manager.retry.is_none() {
            for note in [
                Note::Rollout { kind: Kind::Reload, workers: 1, surge: 1 },
                Note::RolloutDone { kind: Kind::Reload },
            ] {
                manager.heed(&Action::Say(note));
                manager.go_on();
            }
        }
        for _ in 0..9 {
            manager.heed(&Action::Say(Note::Rollout { kind: Kind::Reload, workers: 1, surge: 1 }));
        }
        manager.heed(&Action::Say(Note::Stopping { workers: 1 }));
        manager.go_on();
        assert_eq!(manager.waiting.len(), MOST_WAITING);
        assert_eq!(manager.due(), manager.retry, "it is tried again");
        let mut seen = Vec::new();
        loop {
            let mut bytes = [0; 512];
            match receiver.recv(&mut bytes) {
                Ok(length) => seen.push(String::from_utf8_lossy(&bytes[..length]).into_owned()),
                Err(_) if manager.waiting.is_empty() => break,
                Err(_) => {
                    // Its time has come.
                    manager.retry = Some(Instant::now());
                    manager.go_on();
                }
            }
        }
        assert_eq!(seen.first().map(String::as_str), Some("READY=1\nSTATUS=1 of 1 worker ready"));
        let last = seen.last().map(String::as_str);
        assert_eq!(last, Some("STOPPING=1\nSTATUS=stopping 1 worker"));
    }

    #[test]
    fn the_watchdog_is_fed_by_turns_of_the_loop_at_half_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("notify").display().to_string();
        let receiver = receiver(&address(OsStr::new(&name)).unwrap());
        let mut manager =
            manager(&[("NOTIFY_SOCKET", &name), ("WATCHDOG_USEC", "60000000")]).unwrap();
        manager.go_on();
        assert_eq!(read(&receiver), "STATUS=0 of 1 worker ready");
        assert_eq!(read(&receiver), "WATCHDOG=1");
        let due = manager.due().unwrap().duration_since(Instant::now());
        assert!(due > Duration::from_secs(25) && due <= Duration::from_secs(30), "{due:?}");
        manager.go_on();
        assert!(receiver.recv(&mut [0; 8]).is_err(), "not before it is due");
    }

    #[test]
    fn a_manager_that_has_gone_costs_one_warning() {
        let mut manager = manager(&[("NOTIFY_SOCKET", "/nonexistent/notify")]).unwrap();
        manager.go_on();
        assert!(manager.warned && manager.waiting.is_empty() && manager.retry.is_none());
    }
}
