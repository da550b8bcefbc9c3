//! Sockets that are passed to us, as systemd does it: listening before we start. The passing is done by
//! systemd's own tool, and by a shell for what no sane manager would pass.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::beds::{command, skip};
use crate::supervise::free_port;
use crate::support::{Done, Run, done, number, throng};

/// Says what it was told and serves the first inherited descriptor, whatever its family. The word
/// that is waited for is in two parts here, because the tool prints the command line.
const SERVER: &str = "
import os, socket
e = os.environ
print('u' 'p fds=%s own=%s names=%s einhorn=%s starter=%s.' % (e['LISTEN_FDS'], e['LISTEN_PID'] == str(os.getpid()),
    e['LISTEN_FDNAMES'], e['EINHORN_FD_COUNT'], e['SERVER_STARTER_PORT']), flush=True)
s = socket.socket(fileno=3)
while True:
    c, _ = s.accept()
    c.sendall(b'pid=%d.' % os.getpid())
    c.close()
";

/// `systemd-socket-activate` with `sockets`, which becomes throng-rs at the first connection.
fn activate(sockets: &[&str], args: &[&str]) -> Option<Command> {
    let tool = match command("systemd-socket-activate") {
        Ok(tool) => tool,
        Err(reason) => {
            skip("socket activation", &reason);
            return None;
        }
    };
    let mut command = Command::new(tool);
    command.args(sockets).arg(env!("CARGO_BIN_EXE_throng-rs")).args(args);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    Some(command)
}

fn answer(mut connection: impl Read) -> i32 {
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    number(&text, "pid=")
}

/// throng-rs in a shell that says that descriptors from 3 on are passed to it.
fn claim(fds: &str, names: &str, redirections: &str, args: &str) -> Done {
    let binary = env!("CARGO_BIN_EXE_throng-rs");
    let line =
        format!("LISTEN_PID=$$ LISTEN_FDS={fds} {names} exec {binary} {args} {redirections}");
    let mut shell = Command::new("/bin/sh");
    done(shell.args(["-c", &line]).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin"))
}

#[test]
fn passed_sockets_are_handed_on_without_listen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s").display().to_string();
    let address = format!("127.0.0.1:{}", free_port());
    let sockets = ["-l", &address, "-l", &path, "--fdname", "web:side"];
    let args = ["--workers", "2", "--share", "fd", "--", "python3", "-c", SERVER];
    let Some(mut command) = activate(&sockets, &args) else { return };
    let mut run = Run::start(&mut command);
    run.wait(&format!("Listening on {path}"));
    // The connection that starts it is answered, too.
    let first = TcpStream::connect(&address).unwrap();
    for line in run.wait_for(2, "up ") {
        let want =
            format!("up fds=2 own=True names=web:side einhorn=2 starter={address}=3;{path}=4.");
        assert_eq!(line, want);
    }
    run.wait_log(&format!("listening on {address}, passed to us as \"web\""));
    answer(first);
    assert_ne!(answer(TcpStream::connect(&address).unwrap()), run.pid().as_raw());
    assert_eq!(run.stop(), 0);
    assert!(UnixStream::connect(&path).is_err(), "nobody holds it any more");
    assert!(std::path::Path::new(&path).exists(), "the file is the manager's");
}

#[test]
fn a_passed_socket_stands_for_an_equal_listen_and_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s").display().to_string();
    let own = format!("unix:{}", dir.path().join("own").display());
    let unix = format!("unix:{path}");
    let args = [
        "--workers",
        "1",
        "--restart",
        "always",
        "--listen",
        &own,
        "--listen",
        &unix,
        "--share",
        "fd",
        "--",
        "python3",
        "-c",
        SERVER,
    ];
    let Some(mut command) = activate(&["-l", &path], &args) else { return };
    let mut run = Run::start(&mut command);
    run.wait("Listening on");
    let first = UnixStream::connect(&path).unwrap();
    let line = run.wait("up ");
    let own = own.trim_start_matches("unix:");
    assert!(
        line.contains("fds=2 ") && line.contains(&format!("starter={path}=3;{own}=4.")),
        "{line}"
    );
    answer(first);
    assert_eq!(run.stop(), 0);
}

#[test]
fn the_proxy_accepts_on_what_is_passed() {
    let address = format!("127.0.0.1:{}", free_port());
    let server = "
import os, socket
s = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))
print('u' 'p', os.environ.get('LISTEN_FDS'), flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b'pid=%d.' % os.getpid())
    c.close()
";
    let args = ["-v", "--workers", "2", "--share", "proxy", "--", "python3", "-c", server];
    let Some(mut command) = activate(&["-l", &address], &args) else { return };
    let mut run = Run::start(&mut command);
    run.wait("Listening on");
    let first = TcpStream::connect(&address).unwrap();
    for line in run.wait_for(2, "up ") {
        assert_eq!(line, "up None");
    }
    let launcher = run.pid().as_raw();
    assert_ne!(answer(first), launcher);
    assert_ne!(answer(TcpStream::connect(&address).unwrap()), launcher);
    assert_eq!(run.stop(), 0);
}

#[test]
fn the_demo_serves_what_is_passed_and_nothing_else() {
    let address = format!("127.0.0.1:{}", free_port());
    let args = ["demo", "--workers", "1", "--restart", "always"];
    let Some(mut command) = activate(&["-l", &address], &args) else { return };
    let mut run = Run::start(&mut command);
    run.wait("Listening on");
    let mut first = TcpStream::connect(&address).unwrap();
    run.wait(&format!("demo: http://{address}/"));
    first.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    first.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("worker 1 of 1"), "{text}");
    assert_eq!(run.stop(), 0);
    assert!(!run.text(crate::support::Source::Out).contains(":3000"));
}

#[test]
fn what_is_passed_stays_one_socket_for_all_slots_and_what_is_bound_does_not() {
    let (passed, own) = (free_port(), free_port());
    let (passed, own) = (format!("127.0.0.1:{passed}"), format!("127.0.0.1:{own}"));
    let args =
        ["--workers", "2", "--share", "reuseport", "--listen", &own, "--", "python3", "-c", SERVER];
    let Some(mut command) = activate(&["-l", &passed], &args) else { return };
    let mut run = Run::start(&mut command);
    run.wait("Listening on");
    let first = TcpStream::connect(&passed).unwrap();
    run.wait_log("what was passed to us stays one socket for all workers");
    for line in run.wait_for(2, "up ") {
        assert!(
            line.contains(&format!("fds=2 own=True names={}:{}", &passed[10..], &own[10..])),
            "{line}"
        );
    }
    answer(first);
    let inode = |pid: i32, fd: i32| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
    let pids = crate::support::children(run.pid(), false);
    assert_eq!(inode(pids[0], 3), inode(pids[1], 3));
    assert_ne!(inode(pids[0], 4), inode(pids[1], 4));
    assert_eq!(run.stop(), 0);
}

#[test]
fn exec_leaves_all_of_it_to_the_command() {
    let address = format!("127.0.0.1:{}", free_port());
    let print = "import os, socket; s = socket.socket(fileno=3); \
        print('o' 'wn', os.environ['LISTEN_PID'] == str(os.getpid()), s.getsockname()[1], flush=True)";
    let args = ["--exec", "--", "python3", "-c", print];
    let Some(mut command) = activate(&["-l", &address], &args) else { return };
    let mut run = Run::start(&mut command);
    run.wait("Listening on");
    let _first = TcpStream::connect(&address).unwrap();
    let port = address.split(':').nth(1).unwrap();
    assert_eq!(run.wait("own "), format!("own True {port}"));
    assert_eq!(run.end(), 0);
}

#[test]
fn without_share_a_warning_says_what_to_add() {
    let address = format!("127.0.0.1:{}", free_port());
    let line = "echo \"u\"\"p ${LISTEN_FDS-none}\"; exec sleep 1000";
    let args = ["--workers", "1", "--restart", "always", "--", "sh", "-c", line];
    let Some(mut command) = activate(&["-l", &address], &args) else { return };
    let mut run = Run::start(&mut command);
    run.wait("Listening on");
    let _first = TcpStream::connect(&address).unwrap();
    assert!(run.wait_log("was passed to us").contains("add --share fd"));
    assert_eq!(run.wait("up "), "up none");
    assert_eq!(run.stop(), 0);
}

#[test]
fn what_is_no_listening_socket_is_one_clear_error() {
    let share = "--share fd -- true";
    for (fds, redirections, want) in [
        ("junk", "", "bad value \"junk\" for LISTEN_FDS"),
        ("-1", "", "bad value \"-1\" for LISTEN_FDS"),
        ("2", "3</dev/null", "LISTEN_FDS is 2, but descriptor 4 is not open"),
        ("60000", "3</dev/null", "LISTEN_FDS is 60000, but descriptor 4 is not open"),
        ("1", "3</dev/null", "descriptor 3, passed by LISTEN_FDS, is no socket"),
    ] {
        let run = claim(fds, "", redirections, share);
        assert_eq!(run.status, 2, "{fds}: {}", run.stderr);
        assert!(run.stderr.contains(want), "{fds}: {}", run.stderr);
        assert_eq!(run.stderr.matches("LISTEN_FDS").count(), 1, "once: {}", run.stderr);
        // Who does not want them is not kept from running.
        let run = claim(fds, "", redirections, "--restart never -- true");
        assert_eq!(run.status, 0, "{fds}: {}", run.stderr);
        assert_eq!(run.stderr.matches("LISTEN_FDS").count(), 1, "a warning: {}", run.stderr);
    }
    let run = claim("1", "LISTEN_FDNAMES=conn", "3</dev/null", share);
    assert!(run.stderr.contains("descriptor 3, passed by LISTEN_FDS, \"conn\""), "{}", run.stderr);
    let run = claim("0", "", "", share);
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("needs --listen"), "{}", run.stderr);
}

#[test]
fn what_is_meant_for_another_process_is_left_alone() {
    let env = [("LISTEN_PID", "1"), ("LISTEN_FDS", "junk")];
    let run = done(throng(&["--restart", "never", "--", "true"]).envs(env));
    assert_eq!((run.status, run.stderr.contains("LISTEN")), (0, false), "{}", run.stderr);
    let run = done(throng(&["--share", "fd", "--", "true"]).envs(env));
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("LISTEN_PID does not name this process"), "{}", run.stderr);
}
