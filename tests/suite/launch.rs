//! Starting workers: what they find in their environment, who they are, what they inherit.

use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use procfs::process::Process;

use crate::support::{Run, done, number, throng};

fn sh(args: &[&str], script: &str) -> Run {
    let mut all = args.to_vec();
    all.extend(["--", "sh", "-c", script]);
    Run::start(&mut throng(&all))
}

#[test]
fn each_worker_knows_its_place() {
    let script = "echo \"id=$THRONG_WORKER_ID index=$THRONG_WORKER_INDEX of=$THRONG_WORKER_COUNT \
        gen=$THRONG_WORKER_GENERATION pm=$NODE_APP_INSTANCE wc=$WEB_CONCURRENCY by=$WEB_CONCURRENCY_SET_BY \
        budget=$THRONG_WORKER_BUDGET cpus=$THRONG_WORKER_CPUS.\"; exec sleep 1000";
    let mut run = sh(&["--workers", "3", "--memory", "512M", "--cpus", "4"], script);
    let mut lines = run.wait_for(3, "id=");
    lines.sort();
    for (index, line) in lines.iter().enumerate() {
        let id = index + 1;
        // 512 MiB less 15 % headroom, in three parts.
        let want = format!(
            "id={id} index={index} of=3 gen=1 pm={index} wc=1 by=throng-rs budget=152113425 cpus=1.333."
        );
        assert_eq!(line, &want);
    }
    assert_eq!(run.stop(), 0);
}

#[test]
fn what_is_addressed_to_the_launcher_is_not_handed_on() {
    let mut command = throng(&["--", "sh", "-c", "env; exec sleep 1000"]);
    let ours = [
        "THRONG_WORKERS",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
    ];
    for name in ours {
        command.env(name, "1");
    }
    command.env("MINE", "kept").env("WEB_CONCURRENCY", "1");
    let mut run = Run::start(&mut command);
    run.wait("WEB_CONCURRENCY_SET_BY");
    run.stop();
    let text = run.text(crate::support::Source::Out);
    assert!(text.contains("MINE=kept\n"), "{text}");
    for name in ours {
        assert!(!text.lines().any(|line| line == format!("{name}=1")), "{name} in {text}");
    }
}

#[test]
fn a_runtime_is_told_its_share_unless_the_user_chose() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node");
    std::fs::write(&node, "#!/bin/sh\necho \"options=$NODE_OPTIONS.\"\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o755)).unwrap();
    let node = node.to_str().unwrap();
    let args = ["--memory", "512M", "--workers", "2", "--", node];
    let mut run = Run::start(&mut throng(&args));
    assert_eq!(run.wait("options="), "options=--max-old-space-size=126.");
    run.stop();
    let mut run = Run::start(throng(&args).env("NODE_OPTIONS", "--max-old-space-size=99 -r x"));
    assert_eq!(run.wait("options="), "options=--max-old-space-size=99 -r x.");
    run.stop();
    // A blank variable is unset, and the environment file counts like the environment.
    let mut run = Run::start(throng(&args).env("NODE_OPTIONS", ""));
    assert_eq!(run.wait("options="), "options=--max-old-space-size=126.");
    run.stop();
    let file = dir.path().join("env");
    std::fs::write(&file, "NODE_OPTIONS=-r x\n").unwrap();
    let mut run = Run::start(throng(&args).env("THRONG_ENV_FILE", &file));
    assert_eq!(run.wait("options="), "options=-r x --max-old-space-size=126.");
    run.stop();
    let mut args = args.to_vec();
    args.splice(0..0, ["--runtime-env", "off"]);
    let mut run = Run::start(&mut throng(&args));
    assert_eq!(run.wait("options="), "options=.");
    run.stop();
}

#[test]
fn an_environment_file_and_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    std::fs::write(&file, "# for the workers\nGREETING=\"hello there\"\n").unwrap();
    let (dir, file) = (dir.path().to_str().unwrap(), file.to_str().unwrap());
    let mut run =
        sh(&["--env-file", file, "--chdir", dir], "echo \"$GREETING from $PWD.\"; exec sleep 1000");
    assert_eq!(run.wait("hello"), format!("hello there from {dir}."));
    run.stop();
    let missing = done(&mut throng(&["--env-file", "/nonexistent/x", "--", "true"]));
    assert_eq!(missing.status, 2);
    assert!(missing.stderr.contains("/nonexistent/x"), "{}", missing.stderr);
    let missing = done(&mut throng(&["--chdir", "/nonexistent/x", "--", "true"]));
    assert_eq!(missing.status, 2);
}

#[test]
fn templates_are_expanded_only_where_asked() {
    let args = [
        "--workers",
        "2",
        "--",
        "sh",
        "-c",
        "echo \"got $1.\"; exec sleep 1000",
        "sh",
        "{index}/{workers}",
    ];
    let mut run = Run::start(&mut throng(&args));
    assert_eq!(run.wait("got"), "got {index}/{workers}.");
    run.stop();
    let mut args = args.to_vec();
    args.insert(0, "--template");
    let mut run = Run::start(&mut throng(&args));
    let mut lines = run.wait_for(2, "got");
    lines.sort();
    assert_eq!(lines, ["got 0/2.", "got 1/2."]);
    run.stop();
}

#[test]
fn a_worker_is_a_group_of_its_own_that_dies_with_us_and_before_us() {
    let mut run = sh(&["--workers", "2"], "echo pid=$$; exec sleep 1000");
    let pids: Vec<i32> = run.wait_for(2, "pid=").iter().map(|line| number(line, "pid=")).collect();
    let own = Process::new(run.pid().as_raw()).unwrap();
    let bare = 3 + inherited_descriptors();
    for pid in &pids {
        let worker = Process::new(*pid).unwrap();
        assert_eq!(worker.stat().unwrap().pgrp, *pid);
        assert_eq!(worker.stat().unwrap().ppid, own.pid());
        let score = |process: &Process| process.oom_score_adj().unwrap();
        assert_eq!(score(&worker), (score(&own) + 100).min(1000));
        let status = worker.status().unwrap();
        let inherited = Process::myself().unwrap().status().unwrap();
        assert_eq!(status.sigblk & !inherited.sigblk, 0, "no signal that we block stays blocked");
        assert_eq!(status.sigign & !own.status().unwrap().sigign, 0);
        assert_eq!(worker.fd_count().unwrap(), bare, "nothing of ours is open in a worker");
    }
    run.signal(Signal::SIGKILL);
    pids.into_iter().for_each(crate::support::gone);
}

#[test]
fn the_signal_mask_and_ignored_signals_are_handed_on_as_they_were() {
    // `env --block-signal` comes with coreutils 8.32, `nohup` with all.
    let throng = env!("CARGO_BIN_EXE_throng-rs");
    let mut command = std::process::Command::new("env");
    command.args(["--block-signal=USR1", "--ignore-signal=USR2", throng, "--workers", "2"]);
    // Not by a shell: dash clears the mask.
    command.args(["--restart", "never", "--", "grep", "-E", "SigBlk|SigIgn", "/proc/self/status"]);
    let mut run = Run::start(&mut command);
    assert_eq!(run.end(), 0);
    let text = run.text(crate::support::Source::Out);
    let mask = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_ascii_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    let bit = |signal: Signal| 1u64 << (signal as i32 - 1);
    assert_eq!(mask("SigBlk"), bit(Signal::SIGUSR1));
    assert_eq!(mask("SigIgn") & bit(Signal::SIGUSR2), bit(Signal::SIGUSR2));
}

#[test]
fn the_limit_of_open_files_is_the_users_again() {
    let mut run = sh(&["--workers", "2"], "echo \"files=$(ulimit -Sn).\"; exec sleep 1000");
    let soft =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap().0;
    assert_eq!(run.wait("files="), format!("files={soft}."));
    run.stop();
}

#[test]
fn another_user_may_open_its_output_anew() {
    if !nix::unistd::geteuid().is_root() {
        crate::beds::skip("another_user_may_open_its_output_anew", "not root");
        return;
    }
    let script =
        "echo \"ids=$(id -u):$(id -g):$(id -G | tr ' ' ,).\" > /dev/stdout; exec sleep 1000";
    for (user, ids) in
        [("12345:23456", "ids=12345:23456:23456."), ("nobody", "ids=65534:65534:65534.")]
    {
        let mut run = sh(&["--workers", "2", "--user", user], script);
        assert_eq!(run.wait("ids="), ids);
        assert_eq!(run.stop(), 0);
    }
    let score = "cat /proc/$$/oom_score_adj | sed s/^/score=/; exec sleep 1000";
    let mut run = sh(&["--workers", "2", "--user", "nobody"], score);
    let raised = number(&run.wait("score="), "score=");
    let own = Process::new(run.pid().as_raw()).unwrap().oom_score_adj().unwrap();
    assert_eq!(raised, i32::from(own) + 100);
    run.stop();
    let unknown = done(&mut throng(&["--user", "nobody-here", "--", "true"]));
    assert_eq!(unknown.status, 2);
    assert!(unknown.stderr.contains("nobody-here"), "{}", unknown.stderr);
}

#[test]
fn a_command_that_cannot_run_is_told_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "echo no\n").unwrap();
    let lost = dir.path().join("lost");
    std::fs::write(&lost, "#!/nonexistent/interpreter\n").unwrap();
    std::fs::set_permissions(&lost, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (plain, lost) = (plain.to_str().unwrap(), lost.to_str().unwrap());
    for (program, status, word) in [
        ("no-such-program", 127, "no-such-program"),
        ("/nonexistent/x", 127, "/nonexistent/x"),
        ("sleep 5", 127, "one word"),
        ("", 127, "empty"),
        ("/tmp", 126, "directory"),
        (plain, 126, "chmod"),
        (lost, 127, "interpreter"),
    ] {
        let run = done(&mut throng(&["--workers", "3", "--", program]));
        assert_eq!(run.status, status, "{program}: {}", run.stderr);
        assert!(run.stderr.contains(word), "{program}: {}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn a_script_without_an_interpreter_line_is_run_by_sh() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("bare");
    std::fs::write(&script, "echo \"bare $1 $THRONG_WORKER_ID.\"\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut run =
        Run::start(&mut throng(&["--workers", "1", "--", script.to_str().unwrap(), "word"]));
    assert_eq!(run.wait("bare"), "bare word 1.");
    run.stop();
}

#[test]
fn exec_becomes_the_command_with_the_number() {
    let script = "echo \"$$ $WEB_CONCURRENCY $WEB_CONCURRENCY_SET_BY $MALLOC_ARENA_MAX.\"";
    let mut command =
        throng(&["--exec", "--memory", "2G", "--cpus", "3", "--", "sh", "-c", script]);
    let mut run = Run::start(&mut command);
    let pid = run.pid();
    assert_eq!(run.wait("throng-rs ."), format!("{pid} 3 throng-rs ."));
    assert_eq!(run.end(), 0);
    let missing = done(&mut throng(&["--exec", "--", "no-such-program"]));
    assert_eq!(missing.status, 127);
    let own =
        done(&mut throng(&["--exec", "--workers", "5", "--", "sh", "-c", "exit $WEB_CONCURRENCY"]));
    assert_eq!(own.status, 5);
}

#[test]
fn standard_input_is_empty() {
    let mut run = sh(&["--workers", "2"], "cat; echo \"read all\"; exec sleep 1000");
    run.wait_for(2, "read all");
    run.stop();
}

/// How many descriptors beyond the standard ones whoever runs the tests left open for every child.
fn inherited_descriptors() -> usize {
    let own = Process::myself().unwrap();
    let stays = |fd: &procfs::process::FDInfo| {
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.fd)).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        flags.is_some_and(|flags| flags & nix::libc::O_CLOEXEC.cast_unsigned() == 0)
    };
    own.fd().unwrap().flatten().filter(|fd| fd.fd > 2 && stays(fd)).count()
}
