//! What is measured while a fleet runs, as the status tells it.

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::beds::skip;
use crate::driven::{Fleet, WORKER};
use crate::limits::Group;
use crate::support::{number, throng, until};

const MIB: u64 = 1 << 20;

impl Fleet {
    /// Asks for the status until it is as wanted.
    #[track_caller]
    fn until(&self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let mut status = Value::Null;
        until(what, || {
            status = self.json(&["status"]);
            wanted(&status)
        });
        status
    }

    fn history(&self) -> Value {
        let request = "GET /v1/history HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = self.raw(request);
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }
}

fn bytes(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

#[test]
fn memory_of_a_worker_and_of_the_box_it_is_in() {
    let name = "memory_of_a_worker_and_of_the_box_it_is_in";
    let Some(group) = Group::new(512 * MIB) else {
        return skip(name, "no cgroup v1 of memory that is ours");
    };
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    mkfifo(&gate, Mode::S_IRWXU).unwrap();
    // Worker 1 takes memory when it is let, and gives it back when it is let again.
    let script = format!(
        "echo up id=$THRONG_WORKER_ID; [ $THRONG_WORKER_ID = 1 ] || exec sleep 1000
        read -r _ <{0}; x=$(head -c 48M /dev/zero | tr '\\0' x); echo full ${{#x}}
        read -r _ <{0}; x=; echo empty; read -r _ <{0}",
        gate.display()
    );
    let mut launcher = group.launcher();
    launcher.args(["--workers", "2", "--ready", "spawn"]);
    let mut fleet = Fleet::of(launcher, dir, &["sh", "-c", &script]);
    fleet.run.wait_for(2, "up id=");
    let private = |status: &Value| bytes(&status["workers"][0]["memory"]["private_bytes"]);
    let status = fleet.until("a first look", |status| !status["measured"].is_null());
    let memory = &status["measured"]["memory"];
    assert_eq!(memory["limit_bytes"], 512 * MIB, "{memory}");
    assert!(memory["source"].as_str().unwrap().contains("throng-limits-"), "{memory}");
    let before = bytes(&memory["used_bytes"]);
    assert!(before < 48 * MIB && private(&status) < 20 * MIB, "{status}");
    fs::write(&gate, "\n").unwrap();
    fleet.run.wait("full 50331648");
    let status = fleet.until("the box is measured to be fuller", |status| {
        bytes(&status["measured"]["memory"]["used_bytes"]) > before + 40 * MIB
    });
    assert!(private(&status) > 48 * MIB, "{status}");
    fleet.until("the worker is measured to be fuller", |status| {
        bytes(&status["workers"][0]["memory"]["peak_bytes"]) > 48 * MIB
    });
    fs::write(&gate, "\n").unwrap();
    fleet.run.wait("empty");
    let status = fleet.until("it has given back", |status| private(status) < 24 * MIB);
    let memory = &status["workers"][0]["memory"];
    assert!(bytes(&memory["peak_bytes"]) > 48 * MIB, "{memory}");
    assert!((1..200 * MIB).contains(&bytes(&memory["p95_bytes"])), "{memory}");
    let other = &status["workers"][1]["memory"];
    assert!(bytes(&other["peak_bytes"]) < 20 * MIB, "{other}");
    let history = fleet.history();
    let points = history["workers"].as_array().unwrap();
    assert!(points.iter().any(|point| point["id"] == 1 && bytes(&point["private_bytes"]) > 0));
    assert_eq!(history["group"][0]["workers"], 2, "{history}");
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn a_heap_of_shared_memory_is_private_where_nobody_shares_it() {
    let name = "a_heap_of_shared_memory_is_private_where_nobody_shares_it";
    let Some(group) = Group::new(512 * MIB) else {
        return skip(name, "no cgroup v1 of memory that is ours");
    };
    let dir = tempfile::tempdir().unwrap();
    let script = "import mmap, time
size = 48 << 20
heap = mmap.mmap(-1, size)
heap.write(b'x' * size)
print('full', flush=True)
time.sleep(1000)";
    let mut launcher = group.launcher();
    launcher.args(["--workers", "2", "--ready", "spawn"]);
    let mut fleet = Fleet::of(launcher, dir, &["python3", "-c", script]);
    fleet.run.wait_for(2, "full");
    let status = fleet.until("both heaps are found", |status| {
        let workers = status["workers"].as_array().unwrap();
        workers.iter().all(|worker| bytes(&worker["memory"]["private_bytes"]) > 48 * MIB)
    });
    for worker in status["workers"].as_array().unwrap() {
        assert!(bytes(&worker["memory"]["shared_bytes"]) < 40 * MIB, "{worker}");
    }
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn the_kernel_tells_when_memory_comes_near_to_its_limit() {
    let name = "the_kernel_tells_when_memory_comes_near_to_its_limit";
    let Some(group) = Group::new(100 * MIB) else {
        return skip(name, "no cgroup v1 of memory that is ours");
    };
    let dir = tempfile::tempdir().unwrap();
    // Nine tenths in use, and not, over and over: one of these comes after the launcher has asked.
    let file = dir.path().join("file");
    let script = format!(
        "while :; do head -c 82M /dev/zero >{0}; sync {0}; rm {0}; sleep 0.2; done",
        file.display()
    );
    let mut launcher = group.launcher();
    launcher.args(["--workers", "1", "--ready", "spawn"]);
    let mut fleet = Fleet::of(launcher, dir, &["sh", "-c", &script]);
    fleet.run.wait_log("memory has passed a share of its limit: looking at once");
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn a_busy_worker_and_what_waits_for_it() {
    // Listens for itself, and does nothing but count from then on.
    let script = "require('net').createServer().listen(0, '127.0.0.1', function () {
        console.log('up port=' + this.address().port);
        for (;;);
    })";
    let dir = tempfile::tempdir().unwrap();
    let launcher = throng(&["--workers", "2", "--share", "off", "--ready", "spawn"]);
    let mut fleet = Fleet::of(launcher, dir, &["node", "-e", script]);
    let up = fleet.run.wait_for(2, "up port=");
    let port = u16::try_from(number(&up[0], "port=")).unwrap();
    let clients = [0; 3].map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap());
    let status = fleet.until("their own queues are found", |status| {
        let busy = |worker: &Value| worker["cpu_now"].as_f64().unwrap_or(0.0) > 0.02;
        status["measured"]["waiting_connections"] == 3
            && status["workers"].as_array().unwrap().iter().all(busy)
    });
    for worker in status["workers"].as_array().unwrap() {
        let (now, busiest) =
            (worker["cpu_now"].as_f64().unwrap(), worker["cpu_busiest"].as_f64().unwrap());
        assert!(busiest > 0.0 && busiest <= now.min(1.0), "{worker}");
        assert!((0.0..=1.0).contains(&worker["delayed"].as_f64().unwrap()), "{worker}");
    }
    let cpu = &status["measured"]["cpu"];
    assert!(cpu["used"].as_f64().unwrap() > 0.04 && cpu["usable"].as_f64().unwrap() > 0.0, "{cpu}");
    let text = fleet.ask(&["status"]).stdout;
    assert!(text.contains("3 connections waiting"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    drop(clients);
    fleet.run.stop();
}

#[test]
fn what_waits_in_our_own_sockets_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("listener");
    let mut launcher = throng(&["--workers", "2", "--share", "fd", "--ready", "spawn", "--listen"]);
    launcher.arg(format!("unix:{}", path.display()));
    let mut fleet = Fleet::of(launcher, dir, &["sh", "-c", WORKER]);
    fleet.run.wait_for(2, "up id=");
    let status = fleet.until("a first look", |status| !status["measured"].is_null());
    assert_eq!(status["measured"]["waiting_connections"], 0);
    let _clients = [0; 2].map(|_| UnixStream::connect(&path).unwrap());
    fleet.until("both wait", |status| status["measured"]["waiting_connections"] == 2);
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn who_does_not_adapt_is_measured_when_somebody_asks() {
    let mut fleet = Fleet::start(&["--workers", "2", "--adapt", "off"], WORKER);
    fleet.both_ready();
    let first = fleet.json(&["status"]);
    assert_eq!(first["measured"]["cpu"]["used"], Value::Null, "{first}");
    assert!(bytes(&first["workers"][0]["memory"]["peak_bytes"]) > 0, "{first}");
    let status = fleet.until("a second look", |status| !status["workers"][0]["cpu_now"].is_null());
    assert!(status["measured"]["cpu"]["used"].is_number(), "{status}");
    assert!(bytes(&status["workers"][1]["memory"]["p95_bytes"]) > 0, "{status}");
    assert_eq!(fleet.run.stop(), 0);
}

#[test]
fn measuring_goes_on_after_an_upgrade() {
    let mut fleet = Fleet::start(&["--workers", "2"], WORKER);
    fleet.both_ready();
    fleet.until("a look", |status| !status["measured"].is_null());
    assert_eq!(fleet.ask(&["upgrade"]).status, 0);
    let begun = Instant::now();
    fleet
        .until("the first look", |status| status["upgrades"] == 1 && !status["measured"].is_null());
    // As after a start, and not with the clock of the limits, which ticks every 5 s.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let status = fleet.until("looks with rates", |status| {
        status["upgrades"] == 1 && status["measured"]["cpu"]["used"].is_number()
    });
    assert!(bytes(&status["workers"][1]["memory"]["peak_bytes"]) > 0, "{status}");
    assert_eq!(fleet.run.stop(), 0);
}
