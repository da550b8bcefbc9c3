//! What a service manager hears from us (`sd_notify(3)`), on a real datagram socket in its place.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::support::{LIMIT, Run, done, number, throng};

const WORKER: &str = "echo \"up $THRONG_WORKER_ID pid=$$.\"; exec sleep 1000";

/// The manager's end.
struct Ear(UnixDatagram);

impl Ear {
    fn open(address: &SocketAddr) -> Self {
        let socket = UnixDatagram::bind_addr(address).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self(socket)
    }

    fn at(path: &std::path::Path) -> Self {
        Self::open(&SocketAddr::from_pathname(path).unwrap())
    }

    #[track_caller]
    fn hear(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// Waits for a message that holds `text`; those before it are returned, too.
    #[track_caller]
    fn until(&self, text: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            heard.push(self.hear());
            if heard.last().unwrap().contains(text) {
                return heard;
            }
        }
    }
}

fn monotonic_usec() -> u128 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_micros()
}

fn fleet(workers: &str, notify: &str) -> Command {
    let mut command =
        throng(&["--workers", workers, "--restart", "always", "--", "sh", "-c", WORKER]);
    command.env("NOTIFY_SOCKET", notify);
    command
}

#[test]
fn a_whole_life_from_ready_to_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let ear = Ear::at(&path);
    let mut run = Run::start(&mut fleet("2", path.to_str().unwrap()));
    assert_eq!(ear.hear(), "STATUS=0 of 2 workers ready");
    let start = ear.until("READY=1");
    assert_eq!(start.last().unwrap(), "READY=1\nSTATUS=2 of 2 workers ready");
    let pid = number(&run.wait_for(2, "up ")[0], "pid=");

    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert_eq!(ear.hear(), "STATUS=1 of 2 workers ready");
    assert_eq!(ear.hear(), "STATUS=2 of 2 workers ready");

    let asked = monotonic_usec();
    run.signal(Signal::SIGHUP);
    let reloading = ear.hear();
    let lines: Vec<&str> = reloading.lines().collect();
    assert_eq!(lines[0], "RELOADING=1");
    // As the manager compares it: not before the request and not later than now.
    let usec: u128 = lines[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    assert!((asked..=monotonic_usec()).contains(&usec), "{usec}, asked at {asked}");
    assert!(lines[2].starts_with("STATUS=reloading: "), "{reloading}");
    let reload = ear.until("READY=1");
    assert_eq!(reload.last().unwrap(), "READY=1\nSTATUS=2 of 2 workers ready");

    run.signal(Signal::SIGTTIN);
    let more = ear.until("STATUS=3 of 3 workers ready");
    assert_eq!(more[0], "STATUS=2 of 3 workers ready");
    run.signal(Signal::SIGTERM);
    assert_eq!(ear.hear(), "STOPPING=1\nSTATUS=stopping 3 workers");
    assert_eq!(run.end(), 0);
}

#[test]
fn an_abstract_name_and_a_start_that_fails() {
    let name = format!("throng-rs-suite-{}", std::process::id());
    let ear = Ear::open(&SocketAddr::from_abstract_name(&name).unwrap());
    let mut command = throng(&["--workers", "2", "--", "sh", "-c", "exit 7"]);
    let run = done(command.env("NOTIFY_SOCKET", format!("@{name}")));
    assert_eq!(run.status, 7);
    let heard = ear.until("STOPPING=1");
    let last = "STOPPING=1\nSTATUS=the start failed: 2 workers ended before being ready";
    assert_eq!(heard.last().unwrap(), last);
    assert!(!heard.iter().any(|message| message.contains("READY=1")), "{heard:?}");
}

#[test]
fn the_watchdog_is_fed_where_it_is_meant_for_us() {
    // The second pid is somebody else's: only WATCHDOG_PID tells.
    for (pid, fed) in [(None, true), (Some("1"), false)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let ear = Ear::at(&path);
        let mut command = fleet("1", path.to_str().unwrap());
        command.env("WATCHDOG_USEC", "200000");
        if let Some(pid) = pid {
            command.env("WATCHDOG_PID", pid);
        }
        let mut run = Run::start(&mut command);
        let heard = ear.until("READY=1");
        if fed {
            // Again and again, also when nothing else happens any more.
            for _ in 0..3 {
                assert_eq!(ear.hear(), "WATCHDOG=1");
            }
        } else {
            assert!(!heard.iter().any(|message| message == "WATCHDOG=1"), "{heard:?}");
        }
        assert_eq!(run.stop(), 0);
        ear.until("STOPPING=1");
    }
}

#[test]
fn a_manager_that_does_not_read_holds_nothing_up_and_hears_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let ear = Ear::at(&path);
    // Its queue is full before we start.
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send_to(b"STATUS=noise", &path).is_ok() {}
    let mut command = fleet("2", path.to_str().unwrap());
    let mut run = Run::start(command.env("WATCHDOG_USEC", "100000").env("THRONG_VERBOSE", "on"));
    run.wait_for(2, "up ");
    for line in ["is ready", "is ready"] {
        run.wait_log(line);
    }
    run.signal(Signal::SIGHUP);
    run.wait_log("the reload is done");
    let heard = ear.until("READY=1\nSTATUS=2 of 2 workers ready");
    let noise = heard.iter().filter(|message| *message == "STATUS=noise").count();
    assert!(noise > 1, "{heard:?}");
    assert_eq!(run.stop(), 0);
    ear.until("STOPPING=1");
}

#[test]
fn bad_values_are_warned_of_once_and_do_no_harm() {
    for (name, value, want) in [
        (
            "NOTIFY_SOCKET",
            "run/notify",
            "NOTIFY_SOCKET is \"run/notify\": neither an absolute path",
        ),
        ("NOTIFY_SOCKET", "/nonexistent/notify", "does not hear us: No such file"),
        ("WATCHDOG_USEC", "soon", "bad value \"soon\" for WATCHDOG_USEC"),
        ("WATCHDOG_PID", "me", "bad value \"me\" for WATCHDOG_PID"),
    ] {
        let mut command = throng(&["--workers", "2", "--restart", "never", "--", "true"]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _ear = Ear::at(&path);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
        let run = done(command.env(name, value));
        assert_eq!(run.status, 0, "{}", run.stderr);
        assert_eq!(run.stderr.matches(want).count(), 1, "{name}={value}: {}", run.stderr);
        assert_eq!(run.stderr.matches("warning: ").count(), 1, "{name}={value}: {}", run.stderr);
    }
}

#[test]
fn workers_do_not_hear_of_our_manager_and_an_execed_command_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let _ear = Ear::at(&path);
    let print = "echo \"${NOTIFY_SOCKET-none} ${WATCHDOG_USEC-none}\"";
    for (how, told) in [("--exec", true), ("--restart=never", false)] {
        let mut command = throng(&[how, "--workers", "1", "--", "sh", "-c", print]);
        let run = done(command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "9000000"));
        assert_eq!(run.status, 0, "{}", run.stderr);
        // A worker may have a socket of its own, to us.
        assert_eq!(run.stdout.contains(path.to_str().unwrap()), told, "{}", run.stdout);
        assert_eq!(run.stdout.contains("9000000"), told, "{}", run.stdout);
    }
}
