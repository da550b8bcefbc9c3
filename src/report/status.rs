//! The status of a launcher as a table of 80 columns.

use std::fmt::Write;

use crate::control::{GroupStatus, LastExit, Status};
use crate::units::{plural, printable, show_number, show_size};

/// The whole answer in text.
pub(crate) fn status(status: &Status) -> String {
    let mut text = String::new();
    let serving = status.workers.iter().filter(|worker| worker.ready).count();
    let name = status.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
    let command = printable(&status.command.join(" ")).into_owned();
    let head = format!(
        "{name}{serving} of {} ready, pid {}, up {}, bound by {}{}",
        plural(status.target, "worker"),
        status.pid,
        short(status.uptime_seconds),
        status.bound_by,
        if status.stopping { ", stopping" } else { "" },
    );
    // Writing to a string does not fail.
    let _ = writeln!(text, "{}", cut(&head, 80));
    let _ = writeln!(text, "{}", cut(&command, 80));
    if let Some(measured) = &status.measured {
        for line in group(measured) {
            let _ = writeln!(text, "{}", cut(&line, 80));
        }
    }
    if let Some(limits) = limits(status) {
        let _ = writeln!(text, "{}", cut(&limits, 80));
    }
    if let Some(rollout) = &status.rollout {
        let _ = writeln!(text, "{} under way, {} to go", rollout.kind, rollout.left);
    }
    if let Some(adapted) = &status.adapted {
        let (from, to, why) = (adapted.from, adapted.to, &adapted.why);
        let ago = short(adapted.seconds_ago);
        let line = format!("{to} instead of {from} since {ago}: {}", printable(why));
        let _ = writeln!(text, "{}", cut(&line, 80));
    }
    let _ = writeln!(
        text,
        "\n{:>4} {:>7} {:8} {:>7} {:>8} {:>8} {:>8} {:>4} {:>4}  LAST EXIT",
        "ID", "PID", "STATE", "UPTIME", "RESTARTS", "PRIVATE", "SHARED", "CPU", "CONN"
    );
    for worker in &status.workers {
        // Of now where somebody looks, else over its life.
        let average = worker.cpu_seconds / worker.uptime_seconds;
        let cpu = worker.cpu_now.or_else(|| (worker.uptime_seconds > 0.0).then_some(average));
        let share = cpu.map_or_else(|| "-".to_owned(), percent);
        let line = format!(
            "{:>4} {:>7} {:8} {:>7} {:>8} {:>8} {:>8} {share:>4} {:>4}  {}",
            worker.id,
            worker.pid,
            worker.state,
            short(worker.uptime_seconds),
            worker.restarts,
            show_size(worker.memory.private_bytes).replace(' ', ""),
            show_size(worker.memory.shared_bytes).replace(' ', ""),
            worker
                .connections
                .and_then(|all| all.active)
                .map_or("-".to_owned(), |all| all.to_string()),
            exit(worker.last_exit.as_ref()),
        );
        let _ = writeln!(text, "{}", cut(&line, 80));
        if let Some(told) = &worker.status_text {
            let _ = writeln!(text, "{}", cut(&format!("{:13}{}", "", printable(told)), 80));
        }
    }
    for slot in &status.vacant {
        let next = slot.retry_in_seconds.map(|time| format!("in {}", short(time)));
        let line = format!(
            "{:>4} {:>7} {:8} {:>7} {:>8}{:>28}  {}",
            slot.id,
            "-",
            slot.state,
            next.unwrap_or_default(),
            slot.restarts,
            "",
            exit(slot.last_exit.as_ref()),
        );
        let _ = writeln!(text, "{}", cut(line.trim_end(), 80));
    }
    text
}

/// `memory 412 MiB of 512 MiB, CPU 0.42 of 2, 3 connections waiting`, in as many lines as it needs.
fn group(measured: &GroupStatus) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some(memory) = &measured.memory {
        let (used, limit) = (show_size(memory.used_bytes), show_size(memory.limit_bytes));
        parts.push(format!("memory {used} of {limit}"));
        let stalled = memory.pressure.filter(|share| *share >= 0.005);
        parts.extend(stalled.map(|share| format!("stalled {}", percent(share))));
    }
    let cpu = &measured.cpu;
    if let Some(used) = cpu.used {
        parts.push(format!("CPU {used:.2} of {}", show_number(cpu.usable)));
    }
    let throttled = cpu.throttled.filter(|share| *share >= 0.005);
    parts.extend(throttled.map(|share| format!("throttled {}", percent(share))));
    let waiting = measured.waiting_connections.filter(|waiting| *waiting > 0);
    parts.extend(waiting.map(|waiting| format!("{} waiting", plural(waiting, "connection"))));
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + part.chars().count() <= 80 => {
                line.push_str(", ");
                line.push_str(&part);
            }
            _ => lines.push(part),
        }
    }
    lines
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// What each worker may have, where it has a group of its own.
fn limits(status: &Status) -> Option<String> {
    let limits = status.workers.iter().filter_map(|worker| worker.memory.limit_bytes);
    let (least, most) = (limits.clone().min()?, limits.max()?);
    let least = if least == most { String::new() } else { format!("{} to ", show_size(least)) };
    Some(format!("isolated: {least}{} for each, in a cgroup of its own", show_size(most)))
}

fn exit(last: Option<&LastExit>) -> String {
    last.map_or_else(|| "-".to_owned(), |last| last.text.replace("status ", ""))
}

/// At most `width` characters; what is cut shows it.
fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let mut short: String = line.chars().take(width - 1).collect();
    short.push('…');
    short
}

/// `9s`, `12m05s`, `3h07m`, `12d3h`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds since a start"
)]
fn short(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{GroupCpu, GroupMemory, Memory, SlotStatus, WorkerStatus};

    #[test]
    fn the_table_keeps_within_eighty_columns() {
        let last =
            LastExit { status: 137, text: "SIGKILL".to_owned(), asked: false, seconds_ago: 1.0 };
        let worker = WorkerStatus {
            id: 1000,
            pid: 4_194_303,
            state: "starting".to_owned(),
            ready: true,
            generation: 3,
            uptime_seconds: 400_000.0,
            restarts: 12_345,
            memory: Memory {
                private_bytes: 1_234_567_890,
                shared_bytes: 999_999_999,
                limit_bytes: Some(2 << 30),
                ..Memory::default()
            },
            cpu_seconds: 399_000.0,
            cpu_now: None,
            cpu_busiest: None,
            delayed: None,
            processes: 3,
            connections: Some(crate::control::Connections {
                accepted: 123_456,
                active: Some(9999),
                failed: 0,
            }),
            status_text: Some("serving".repeat(30)),
            last_exit: Some(last.clone()),
        };
        let status = Status {
            schema: 1,
            version: "1".to_owned(),
            name: Some("web".to_owned()),
            pid: 1,
            command: vec!["node".to_owned(), "server.js".repeat(20)],
            uptime_seconds: 61.0,
            ready: true,
            stopping: false,
            target: 1000,
            planned: 4,
            pinned: false,
            adapted: None,
            bound_by: "memory".to_owned(),
            upgrades: 0,
            upgrade_error: None,
            isolation: crate::control::Isolation::default(),
            rollout: None,
            measured: None,
            workers: vec![worker],
            vacant: vec![SlotStatus {
                id: 2,
                state: "backoff".to_owned(),
                retry_in_seconds: Some(12.3),
                restarts: 4,
                last_exit: Some(last),
            }],
        };
        let text = super::status(&status);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(
            text.starts_with("web: 1 of 1000 workers ready, pid 1, up 1m01s, bound by memory\n")
        );
        let row = text.lines().find(|line| line.starts_with("1000")).unwrap();
        assert!(row.contains("4194303 starting   4d15h    12345"), "{row}");
        assert!(row.ends_with("SIGKILL") && row.contains("100%"), "{row}");
        let row = text.lines().find(|line| line.contains("backoff")).unwrap();
        assert!(row.contains("in 12s") && row.ends_with("SIGKILL"), "{row}");
    }

    #[test]
    fn what_all_of_them_use_is_short() {
        let calm = GroupStatus {
            seconds_ago: 1.0,
            memory: None,
            cpu: GroupCpu { usable: 1.5, used: None, throttled: None },
            waiting_connections: None,
            history: Vec::new(),
        };
        assert_eq!(group(&calm), [""; 0]);
        let busy = GroupStatus {
            memory: Some(GroupMemory {
                limit_bytes: 512 << 20,
                used_bytes: 412 << 20,
                source: "/sys/fs/cgroup/memory.max".to_owned(),
                pressure: Some(0.021),
                limit_hits: 3,
            }),
            cpu: GroupCpu { usable: 1.5, used: Some(1.278), throttled: Some(0.5) },
            waiting_connections: Some(3),
            ..calm.clone()
        };
        assert_eq!(
            group(&busy),
            [
                "memory 412 MiB of 512 MiB, stalled 2%, CPU 1.28 of 1.5, throttled 50%",
                "3 connections waiting"
            ]
        );
        let memory = busy.memory.map(|memory| GroupMemory { pressure: Some(0.001), ..memory });
        let cpu = GroupCpu { throttled: Some(0.0), ..busy.cpu };
        let idle = GroupStatus { memory, cpu, waiting_connections: Some(0), ..calm };
        assert_eq!(group(&idle), ["memory 412 MiB of 512 MiB, CPU 1.28 of 1.5"]);
    }

    #[test]
    fn times_are_short() {
        let times = [0.4, 59.9, 60.0, 3599.0, 3600.0, 90_061.0].map(short);
        assert_eq!(times, ["0s", "59s", "1m00s", "59m59s", "1h00m", "1d1h"]);
    }
}
