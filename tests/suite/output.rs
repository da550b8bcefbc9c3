//! What workers write: whole lines, whatever the reader does.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::support::{Guarded, LIMIT, Run, done, throng};

#[test]
fn lines_carry_their_worker_where_asked() {
    let args = [
        "--prefix",
        "on",
        "--restart",
        "never",
        "--workers",
        "2",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; printf last",
    ];
    let run = done(&mut throng(&args));
    let mut lines: Vec<_> = run.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[1] last", "[1] out", "[2] last", "[2] out"]);
    assert!(run.stderr.contains("[1] err\n") && run.stderr.contains("[2] err\n"), "{}", run.stderr);
}

#[test]
fn lines_never_mix_and_none_is_lost() {
    // Each worker writes lines of its own letter, in pieces that end anywhere.
    let script = "import os,sys\nl=b'%c'%(97+int(os.environ['THRONG_WORKER_INDEX']))\n\
        for n in range(400):\n line=l*(1+n*37%5000)+b'\\n'\n h=len(line)//2\n os.write(1,line[:h]);os.write(1,line[h:])\n";
    let args = ["-q", "--restart", "never", "--workers", "4", "--", "python3", "-c", script];
    let run = done(&mut throng(&args));
    assert_eq!(run.status, 0, "{}", run.stderr);
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 1600);
    for line in &lines {
        let first = line.chars().next().unwrap();
        assert!(line.chars().all(|c| c == first), "mixed: {line}");
    }
    let expected: usize = 4 * (0..400).map(|n| 2 + n * 37 % 5000).sum::<usize>();
    assert_eq!(run.stdout.len(), expected);
}

#[test]
fn a_reader_that_stands_still_stops_nobody_and_loses_nothing() {
    let script = "import sys\nfor n in range(200000): sys.stdout.write('%d line\\n'%n)";
    let args = ["-q", "--restart", "never", "--workers", "2", "--", "python3", "-c", script];
    let mut child = Guarded::start(throng(&args).stdout(Stdio::piped()));
    let mut pipe = BufReader::new(child.0.stdout.take().unwrap());
    let mut first = String::new();
    pipe.read_line(&mut first).unwrap();
    // Nothing more is read for now: the launcher has no more than its buffer, and still listens.
    let launcher = procfs::process::Process::new(child.pid().as_raw()).unwrap();
    let rss = launcher.statm().unwrap().resident * procfs::page_size();
    assert!(rss < 64 << 20, "{rss} bytes");
    let mut rest = String::new();
    pipe.read_to_string(&mut rest).unwrap();
    assert_eq!(1 + rest.lines().count(), 400_000);
    assert_eq!(child.end(), 0);
}

#[test]
fn a_reader_that_never_reads_does_not_keep_a_stop_waiting() {
    let (reader, writer) = std::io::pipe().unwrap();
    let script = "echo up >&2; while :; do echo 0123456789012345678901234567890123456789; done";
    let mut command = throng(&["--workers", "2", "--grace", "200ms", "--", "sh", "-c", script]);
    let mut child = Guarded::start(command.stdout(writer).stderr(Stdio::piped()));
    drop(command);
    let mut log = BufReader::new(child.0.stderr.take().unwrap());
    let mut line = String::new();
    while line != "up\n" {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0);
    }
    child.signal(Signal::SIGTERM);
    let begun = std::time::Instant::now();
    let status = child.end();
    // A writer that waits for its pipe obeys TERM by its default action.
    assert_eq!(status, 0);
    assert!(begun.elapsed() < LIMIT);
    drop(reader);
}

#[test]
fn a_gigabyte_without_a_newline_is_not_kept() {
    // 64 MiB do as well: far more than the 64 KiB that a line may have.
    let script = "head -c 67108864 /dev/zero | tr '\\0' x";
    let args = ["-q", "--restart", "never", "--workers", "2", "--", "sh", "-c", script];
    let mut child = Guarded::start(throng(&args).stdout(Stdio::piped()));
    let mut total = 0;
    let mut peak = 0;
    let mut pipe = child.0.stdout.take().unwrap();
    let mut piece = vec![0; 1 << 20];
    loop {
        let read = pipe.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        // All but the newlines that may part the pieces.
        total += piece[..read].split(|b| *b == b'\n').map(<[u8]>::len).sum::<usize>();
        if let Ok(status) =
            procfs::process::Process::new(child.pid().as_raw()).and_then(|p| p.status())
        {
            peak = peak.max(status.vmhwm.unwrap_or(0));
        }
    }
    assert_eq!(total, 2 * 67_108_864);
    assert!(peak > 0 && peak < 32 << 10, "{peak} KiB");
    assert_eq!(child.end(), 0);
}

#[test]
fn a_full_disk_costs_lines_and_not_the_run() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command =
        throng(&["--workers", "2", "--", "sh", "-c", "echo lost; echo up >&2; exec sleep 1000"]);
    let mut child = Guarded::start(command.stdout(full).stderr(Stdio::piped()));
    let mut log = BufReader::new(child.0.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("were lost")));
    child.signal(Signal::SIGTERM);
    assert_eq!(child.end(), 0);
}

#[test]
fn a_single_worker_writes_by_itself() {
    let mut run = Run::start(&mut throng(&[
        "--workers",
        "1",
        "--",
        "sh",
        "-c",
        "readlink /proc/$$/fd/1; exec sleep 1000",
    ]));
    let theirs = run.wait("pipe:");
    let ours = std::fs::read_link(format!("/proc/{}/fd/1", run.pid())).unwrap();
    assert_eq!(theirs, ours.to_str().unwrap());
    assert_eq!(run.stop(), 0);
}

#[test]
fn one_pipe_for_both_streams_has_whole_lines_too() {
    let script = "import os\nl=b'%c'%(97+int(os.environ['THRONG_WORKER_INDEX']))\n\
        for n in range(3000):\n os.write(1+n%2,l*(1+n*37%3000)+b'\\n')\n";
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command =
        throng(&["-q", "--restart", "never", "--workers", "3", "--", "python3", "-c", script]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = Guarded::start(&mut command);
    drop(command);
    let mut lines = 0;
    for line in BufReader::new(reader).lines() {
        let line = line.unwrap();
        let first = line.chars().next().unwrap();
        assert!(line.chars().all(|c| c == first), "mixed: {line}");
        lines += 1;
    }
    assert_eq!(lines, 9000);
    assert_eq!(child.end(), 0);
}

#[test]
fn a_stop_does_not_wait_for_who_never_reads_the_log() {
    let (reader, writer) = std::io::pipe().unwrap();
    let script = "echo up; while :; do echo 0123456789012345678901234567890123456789 >&2; done";
    let mut command = throng(&["--workers", "2", "--grace", "200ms", "--", "sh", "-c", script]);
    let probe = writer.try_clone().unwrap();
    let mut child = Guarded::start(command.stderr(writer).stdout(Stdio::piped()));
    drop(command);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    // Full: from now on every write to it would wait.
    let full = std::time::Instant::now() + LIMIT;
    while !is_full(&probe) {
        assert!(std::time::Instant::now() < full);
        std::thread::yield_now();
    }
    child.signal(Signal::SIGTERM);
    assert!([0, 137].contains(&child.end()));
    drop(reader);
}

/// Whether a write to the pipe would wait.
fn is_full(pipe: &std::io::PipeWriter) -> bool {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) == Ok(0)
}
