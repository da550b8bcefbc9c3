//! `throng-rs calibrate`: what it finds, who takes it, and that it leaves nothing behind however it ends.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::beds::skip;
use crate::limits::Group;
use crate::support::{Done, Run, Trace, done};

const MIB: u64 = 1 << 20;
/// The server of `demo`, which serves an inherited socket.
const SERVER: &[&str] = &["--", env!("CARGO_BIN_EXE_throng-rs"), "demo-server"];

/// A folder to calibrate in, and the traces of what runs there.
struct Here {
    dir: TempDir,
    trace: Trace,
    address: String,
}

impl Here {
    fn new() -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        Self { dir: tempfile::tempdir().unwrap(), trace: Trace::new(), address }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.trace.throng(args);
        // Its own folders of control sockets are looked for there.
        command.current_dir(self.dir.path()).env("TMPDIR", self.dir.path());
        command
    }

    fn calibrate(&self, args: &[&str]) -> std::process::Command {
        let own = ["calibrate", "--step", "500ms", "--listen", &self.address];
        self.command(&[&own[..], args].concat())
    }

    /// Runs it to its end, after which nothing of it may be there.
    fn done(&self, args: &[&str]) -> Done {
        let run = done(&mut self.calibrate(args));
        self.nothing_is_left();
        run
    }

    fn nothing_is_left(&self) {
        self.trace.ends();
        let left = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> =
            left.filter(|name| !name.to_string_lossy().starts_with("throng.")).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    fn profile(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path("throng.profile.json")).unwrap())
            .unwrap()
    }

    fn plan(&self, args: &[&str]) -> Value {
        let words = [&["--dry-run", "--format", "json"], args].concat();
        let run = done(&mut self.command(&words));
        assert_eq!(run.status, 0, "{}", run.stderr);
        serde_json::from_str(&run.stdout).unwrap()
    }
}

fn step<'a>(plan: &'a Value, name: &str) -> &'a Value {
    let steps = plan["steps"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn what_is_found_is_taken_by_later_runs_of_the_same_command() {
    let here = Here::new();
    // A group that holds the calibration, too, is not to be divided.
    let settings = ["--share", "fd", "--max-workers", "2", "--isolate", "on"];
    let run = here.done(&[&settings[..], SERVER].concat());
    assert_eq!(run.status, 0, "{}", run.stderr);
    assert!(
        run.stdout.contains("workers give ") || run.stdout.contains("worker gives "),
        "{}",
        run.stdout
    );
    let profile = here.profile();
    assert_eq!((&profile["schema"], &profile["measure"]), (&1.into(), &"requests".into()));
    assert_eq!(profile["command"][1], "demo-server");
    let cost = profile["worker"]["private_bytes"].as_u64().unwrap();
    assert!((100_000..50 * MIB).contains(&cost), "{cost}");
    assert!(profile["knee"]["rate"].as_f64().unwrap() > 10.0, "{profile}");
    assert_eq!(profile["steps"][0]["workers"], 1);
    assert_eq!(profile["steps"][0]["failed"], 0);
    let picture = fs::read_to_string(here.path("throng.profile.svg")).unwrap();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));

    let limits = ["--memory", "256M", "--cpus", "1"];
    let plan = here.plan(&[&limits, SERVER].concat());
    let worker = step(&plan, "one worker");
    assert_eq!(worker["source"], "profile:throng.profile.json");
    assert!(worker["because"].as_str().unwrap().contains("measured"), "{worker}");
    assert_eq!(step(&plan, "workers per CPU")["source"], "profile:throng.profile.json");
    assert!(step(&plan, "headroom")["because"].as_str().unwrap().contains("measured"));

    // What is told beats what was measured.
    let told = ["--worker-memory", "50M", "--workers-per-cpu", "3", "--headroom", "6M"];
    let plan = here.plan(&[&limits[..], &told, SERVER].concat());
    assert_eq!(plan["workers"], 3);
    assert_eq!(step(&plan, "one worker")["source"], "flag:--worker-memory");
    let plan = here.plan(&[&limits[..], &["--profile", "off"], SERVER].concat());
    assert!(step(&plan, "one worker")["because"].as_str().unwrap().contains("assumed"));

    let other = here.plan(&["--", "sleep", "9"]);
    assert!(step(&other, "one worker")["because"].as_str().unwrap().contains("assumed"));
    let warned = |plan: &Value, text: &str| {
        let warnings = plan["warnings"].as_array().unwrap();
        warnings.iter().any(|warning| warning.as_str().unwrap().contains(text))
    };
    assert!(warned(&other, "of another command"), "{other}");

    // What others may write is not taken, unless it is asked for.
    let path = here.path("throng.profile.json");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let plan = here.plan(&[&limits, SERVER].concat());
    assert!(warned(&plan, "others may write it"), "{plan}");
    assert!(step(&plan, "one worker")["because"].as_str().unwrap().contains("assumed"));
    let asked = ["--profile", "throng.profile.json"];
    let plan = here.plan(&[&limits[..], &asked, SERVER].concat());
    assert_eq!(step(&plan, "one worker")["source"], "profile:throng.profile.json");
}

#[test]
fn a_load_of_the_users_tells_its_rate_or_the_cpus_count() {
    let here = Here::new();
    let load = "test -n \"$URL\" && test -n \"$PORT\" && sleep 0.3 && echo \"Requests/sec: ${WORKERS}00.5\"";
    let few = ["--share", "fd", "--max-workers", "2", "--load", load];
    let run = here.done(&[&few[..], SERVER].concat());
    assert_eq!(run.status, 0, "{}", run.stderr);
    let profile = here.profile();
    assert_eq!(profile["measure"], "requests");
    assert_eq!(profile["steps"][1]["rate"], 200.5);
    assert_eq!(
        (&profile["knee"]["workers"], &profile["knee"]["bound_by"]),
        (&2.into(), &"workers".into())
    );

    // Nobody counts: busy workers are what shows.
    let busy = ["--max-workers", "1", "--load", "sleep 1", "--", "sh", "-c", "while :; do :; done"];
    let run = here.done(&busy);
    assert_eq!(run.status, 0, "{}", run.stderr);
    assert!(run.stdout.contains("CPUs used"), "{}", run.stdout);
    assert_eq!(here.profile()["measure"], "cpu");
}

/// A server that ends with 7 at its first request where its slot is `dies` or above.
const DIES: &str = "import os, socket, sys
held = socket.socket(fileno=3)
while True:
    one = held.accept()[0]
    one.recv(4096)
    if int(os.environ['THRONG_WORKER_ID']) >= int(sys.argv[1]):
        print('alas, no more', flush=True)
        os._exit(7)
    one.sendall(b'HTTP/1.0 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n')
    one.close()
";

#[test]
fn a_worker_that_ends_under_load_is_not_blamed_on_memory() {
    let name = "a_worker_that_ends_under_load_is_not_blamed_on_memory";
    if crate::beds::command("python3").is_err() {
        return skip(name, "no python3 here");
    }
    let here = Here::new();
    let args = |dies| ["--share", "fd", "--max-workers", "4", "--", "python3", "-c", DIES, dies];
    let run = here.done(&args("1"));
    assert_eq!(run.status, 1, "{}", run.stdout);
    assert!(run.stderr.contains("worker 1 ended with status 7 under load"), "{}", run.stderr);
    assert!(run.stderr.contains("alas") && !run.stderr.contains("memory"), "{}", run.stderr);
    assert!(!here.path("throng.profile.json").exists());

    // What was measured before stays, and says why it is no more.
    let run = here.done(&args("2"));
    assert_eq!(run.status, 0, "{}", run.stderr);
    let found = here.profile();
    assert_eq!(
        (&found["knee"]["workers"], &found["knee"]["bound_by"], &found["steps"][1]["ended"]),
        (&1.into(), &"ended".into(), &true.into()),
        "{found:#}"
    );
    assert!(run.stdout.contains("warning: worker 2 ended with status 7"), "{}", run.stdout);
    assert!(run.stdout.contains("alas") && !run.stdout.contains("memory ran low"));
}

#[test]
fn what_cannot_be_calibrated_says_why_and_leaves_all_as_it_was() {
    let here = Here::new();
    fs::write(here.path("throng.profile.json"), "old").unwrap();
    let refused = |args: &[&str], status: i32, words: &[&str]| {
        let run = here.done(args);
        assert_eq!(run.status, status, "{args:?}: {} {}", run.stdout, run.stderr);
        for word in words {
            assert!(run.stderr.contains(word), "{args:?}: no {word:?} in {}", run.stderr);
        }
        assert_eq!(fs::read_to_string(here.path("throng.profile.json")).unwrap(), "old");
        assert!(!here.path("throng.profile.svg").exists());
    };
    refused(
        &["--ready", "spawn", "--path", "/x?y", "--", "sleep", "60"],
        1,
        &["no request to http://127.0.0.1:", "/x?y was answered", "--path"],
    );
    refused(&["--", "sh", "-c", "echo alas; exit 3"], 1, &["cannot be run", "alas"]);
    refused(&["--", "/nowhere/at/all"], 127, &["/nowhere/at/all"]);
    refused(
        &[&["--share", "fd", "--load", "echo no luck; exit 3"], SERVER].concat(),
        1,
        &["no luck", "exit status: 3"],
    );
    refused(
        &[&["--share", "fd", "--path", "no/slash"], SERVER].concat(),
        2,
        &["no/slash", "--path"],
    );
    refused(&[&["--clients", "0"], SERVER].concat(), 2, &["--clients"]);
    refused(&[&["--workers", "3"], SERVER].concat(), 2, &["--workers", "finds the number"]);
    refused(&[&["--dry-run"], SERVER].concat(), 2, &["--dry-run"]);
    refused(&[], 2, &["no command"]);
    let port = here.address.rsplit(':').next().unwrap();
    let silent = ["calibrate", "--share", "off", "--", "sleep", "60"];
    let run = done(here.command(&silent).env("PORT", port));
    assert_eq!(run.status, 1, "{}", run.stderr);
    assert!(run.stderr.contains("nobody listens at http://127.0.0.1:"), "{}", run.stderr);
    here.nothing_is_left();
    let run = done(&mut here.command(&["calibrate", "--", "sleep", "9"]));
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("--listen") && run.stderr.contains("--load"), "{}", run.stderr);
    // Told at once, and not after all the work.
    for file in ["/proc/throng.profile.json", "/nowhere/at/all", "/"] {
        let begun = here.path("throng.begun");
        let load = format!("touch {}; exit 3", begun.display());
        let to = ["--share", "fd", "--load", &load, "--profile", file];
        refused(&[&to[..], SERVER].concat(), 1, &["cannot write /"]);
        assert!(!begun.exists());
    }
}

#[test]
fn a_profile_that_is_none_is_refused_in_one_line() {
    let here = Here::new();
    for (text, word) in [
        ("", "EOF"),
        ("garbage\u{1b}[31m", "expected value"),
        ("[]", "no schema"),
        ("{\"schema\": 2}", "schema is 2"),
        ("{\"schema\": 1}", "missing field"),
    ] {
        fs::write(here.path("throng.profile.json"), text).unwrap();
        let run = done(&mut here.command(&["--dry-run", "--", "sleep", "9"]));
        assert_eq!((run.status, run.stderr.lines().count()), (2, 1), "{text}: {}", run.stderr);
        assert!(run.stderr.contains("throng.profile.json"), "{}", run.stderr);
        assert!(
            run.stderr.contains(word) && run.stderr.contains("--profile off"),
            "{}",
            run.stderr
        );
        assert!(!run.stderr.contains('\u{1b}'));
        let run = done(&mut here.command(&["--dry-run", "--profile", "off", "--", "sleep", "9"]));
        assert_eq!(run.status, 0, "{}", run.stderr);
    }
    let run = done(&mut here.command(&["--dry-run", "--profile", "nowhere", "--", "sleep", "9"]));
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("cannot read the profile nowhere"), "{}", run.stderr);
}

#[test]
fn nothing_that_a_load_has_started_outlives_it() {
    for left in
        ["sleep 777 &", "setsid sleep 777 &", "setsid sh -c 'sleep 777; :' & trap 'kill 0' EXIT;"]
    {
        let here = Here::new();
        let load = format!("{left} sleep 0.2; echo Requests/sec: 5");
        let load = ["--share", "fd", "--max-workers", "1", "--load", &load];
        let run = here.done(&[&load[..], SERVER].concat());
        assert!(run.status == 0 || left.contains("kill 0"), "{left}: {}", run.stderr);
    }
}

#[test]
fn a_load_ends_with_its_calibration_however_that_ends() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        let here = Here::new();
        let begun = here.path("throng.begun");
        let mut load = format!("sleep 777 & echo > {}; sleep 778; :", begun.display());
        // Nobody learns of those when we are killed.
        if signal != Signal::SIGKILL {
            load.insert_str(0, "setsid sleep 779 & ");
        }
        let words = ["--share", "fd", "--load", &load];
        let mut run = Run::start(&mut here.calibrate(&[&words[..], SERVER].concat()));
        crate::support::until("the load runs", || begun.exists());
        run.signal(signal);
        run.leave();
        here.trace.ends();
    }
}

/// A calibration that would go on for long, with its workers at work.
fn under_way(here: &Here) -> Run {
    let long = ["--share", "fd", "--step", "60s"];
    let own = ["calibrate", "--listen", &here.address];
    let run = Run::start(&mut here.command(&[&own[..], &long, SERVER].concat()));
    crate::support::until("a worker answers", || crate::load::request(&here.address).is_ok());
    run
}

#[test]
fn an_interrupt_stops_everything() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let here = Here::new();
        let mut run = under_way(&here);
        run.signal(signal);
        assert_eq!(run.end(), 1);
        here.nothing_is_left();
        assert!(!here.path("throng.profile.json").exists());
    }
}

#[test]
fn who_kills_it_kills_everything() {
    for (signal, status) in [(Signal::SIGKILL, 137), (Signal::SIGQUIT, 1)] {
        let here = Here::new();
        let mut run = under_way(&here);
        run.signal(signal);
        assert_eq!(run.leave(), status);
        here.nothing_is_left();
    }
}

/// Workers that do so at TERM, under a load that goes on for long.
fn stubborn(here: &Here, at_term: &str) -> Run {
    let begun = here.path("throng.begun");
    let load = format!("touch {}; sleep 777", begun.display());
    let worker = format!("trap '{at_term}' TERM; while :; do sleep 0.1; done");
    let args = ["calibrate", "--grace", "50s", "--load", &load, "--", "sh", "-c", &worker];
    let run = Run::start(&mut here.command(&args));
    crate::support::until("the load runs", || begun.exists());
    run
}

#[test]
fn an_interrupt_leaves_the_workers_their_grace_and_the_second_one_does_not() {
    let here = Here::new();
    let mut run = stubborn(&here, "sleep 1; touch throng.graceful; exit 0");
    run.signal(Signal::SIGINT);
    assert_eq!(run.end(), 1);
    assert!(here.path("throng.graceful").exists());
    here.nothing_is_left();

    let here = Here::new();
    let mut run = stubborn(&here, ":");
    run.signal(Signal::SIGINT);
    run.wait_log("once more kills");
    let begin = std::time::Instant::now();
    run.signal(Signal::SIGINT);
    assert_eq!(run.end(), 1);
    assert!(begin.elapsed().as_secs() < 40);
    here.nothing_is_left();
}

#[test]
fn a_folder_for_temporary_files_that_holds_no_socket_is_not_needed() {
    let here = Here::new();
    let long = here.path(&format!("throng.{}", "x".repeat(100)));
    fs::create_dir(&long).unwrap();
    for folder in [here.path("nowhere"), long] {
        let few = ["--share", "fd", "--max-workers", "1", "--load", "echo Requests/sec: 5"];
        let run = done(here.calibrate(&[&few[..], SERVER].concat()).env("TMPDIR", folder));
        assert_eq!(run.status, 0, "{}", run.stderr);
        here.nothing_is_left();
    }
}

#[test]
fn a_calibration_in_a_small_box_ends_before_the_kernel_kills() {
    let name = "a_calibration_in_a_small_box_ends_before_the_kernel_kills";
    let Some(group) = Group::new(160 * MIB) else {
        return skip(name, "no cgroup v1 of memory that is ours");
    };
    if crate::beds::command("python3").is_err() {
        return skip(name, "no python3 here");
    }
    let dir = tempfile::tempdir().unwrap();
    // 30 MiB each, and the rate rises with every worker.
    let worker = "import time\nkept = b'x' * (30 << 20)\ntime.sleep(1000)";
    let profile = dir.path().join("throng.profile.json");
    let load = "sleep 0.5; echo Requests/sec: ${WORKERS}0";
    // On a busy machine who is ready at once still takes its memory under load, which looks like growth.
    let args = ["calibrate", "--share", "off", "--ready", "delay:2s", "--load", load];
    let to = ["--profile", profile.to_str().unwrap(), "--", "python3", "-c", worker];
    let mut run = group.run(&[&args[..], &to].concat());
    assert_eq!(run.end(), 0, "{}", run.text(crate::support::Source::Err));
    let found: Value = serde_json::from_str(&fs::read_to_string(&profile).unwrap()).unwrap();
    assert_eq!(group.kills(), 0, "{found:#}");
    assert_eq!(found["knee"]["bound_by"], "memory", "{found:#}");
    // 160 MiB less a tenth, for 35 to 40 each.
    let workers = found["knee"]["workers"].as_u64().unwrap();
    assert!((3..=4).contains(&workers), "{found:#}");
    let cost = found["worker"]["private_bytes"].as_u64().unwrap();
    assert!((30 * MIB..50 * MIB).contains(&cost), "{cost}");
    let listed = Path::new(&profile).with_extension("svg");
    assert!(fs::read_to_string(listed).unwrap().contains("memory that may be used"));
}
