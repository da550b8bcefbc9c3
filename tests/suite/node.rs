//! `--share node` with real Nodes: servers that know nothing of us, of every kind and version.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use crate::beds::nodes::{app, packages, runtime};
use crate::beds::skip;
use crate::supervise::free_port;
use crate::support::{Run, Source, done, number, throng};

/// The program of a runtime; where it is not here, the test is skipped by name.
pub(crate) fn node(test: &str, name: &str) -> Option<String> {
    runtime(name).inspect_err(|why| skip(test, why)).ok()
}

/// Runs a fixture of node.
pub(crate) fn start(args: &[&str], program: &str, name: &str, env: &[(&str, &str)]) -> Run {
    let app = app(name);
    let mut all = vec!["-v", "--workers", "2"];
    all.extend(args);
    all.extend(["--", program, &app]);
    let mut command = throng(&all);
    command.env("NODE_PATH", packages());
    Run::start(command.envs(env.iter().copied()))
}

pub(crate) fn get(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.starts_with("HTTP/1.1 200") { Ok(text) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Every kind of server and every way to listen, by one version.
fn matrix(name: &str, balance: &str) {
    let test = format!("{name} {balance}");
    let (Some(program), Some(newest)) = (node(&test, name), node(&test, "node26")) else { return };
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let [busy_port, free, twice] =
        [busy.local_addr().unwrap().port(), free_port(), free_port()].map(|port| port.to_string());
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("s");
    let pipe = pipe.to_str().unwrap();
    let env = [("PIPE", pipe), ("BUSY", &busy_port), ("FREE", &free), ("TWICE", &twice)];
    let mut run = start(&["--balance", balance], &program, "matrix.js", &env);
    let told: Vec<String> =
        (0..2).map(|_| run.wait("where ").split_once(' ').unwrap().1.to_owned()).collect();
    let parse = |text: &String| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(parse(&told[0]), parse(&told[1]), "all listen on the same ports");
    for _ in 0..2 {
        run.wait_log("is ready");
    }
    let dealt = balance == "round-robin";
    let mut client = Command::new(newest);
    client.arg(app("client.js")).arg(&told[0]).env("NODE_PATH", packages());
    let client = done(client.args(dealt.then_some("most")));
    assert_eq!(client.status, 0, "{test}: {}{}", client.stdout, client.stderr);
    let servers = parse(&told[0]).as_object().unwrap().len();
    let lines: Vec<_> = client.stdout.lines().collect();
    assert_eq!(lines.len(), servers - usize::from(!dealt), "{}", client.stdout);
    for line in lines {
        let (server, answers) = line.split_once(": ").unwrap();
        let answers: Vec<_> = answers.split(", ").collect();
        let right = match server {
            "net" => answers.iter().all(|answer| *answer == "true"),
            "most" => answers == ["2 of 3"],
            "udp" => answers.iter().all(|answer| answer.ends_with("hello")),
            "https" => {
                // With the session of the other worker, too.
                let resumed = answers.iter().map(|answer| answer.ends_with("true"));
                resumed.eq([false, true, true, true])
            }
            _ => answers.iter().all(|answer| answer.starts_with("worker ")),
        };
        assert!(right, "{test}: {line}");
        if dealt && !["net", "most", "udp"].contains(&server) {
            let turns: Vec<_> = answers.iter().map(|answer| &answer[..8]).collect();
            assert!(turns[0] != turns[1] && turns[0] == turns[2] && turns[1] == turns[3], "{line}");
        }
    }
    assert_eq!(run.stop(), 0);
    let out = run.text(Source::Out);
    let count = |line: &str| out.lines().filter(|one| *one == line).count();
    for code in ["[\"busy\",\"EADDRINUSE\",\"bind\"]", "[\"nowhere\",\"EADDRNOTAVAIL\",\"bind\"]"] {
        assert_eq!(count(&format!("refused {code}")), 2, "{test}: {out}");
    }
    assert_eq!(count("refused [\"again\",\"EADDRINUSE\",\"bind\"]"), 2, "{test}: {out}");
    assert_eq!(count("refused [\"exclusive\",\"EADDRINUSE\",\"listen\"]"), 1, "{test}: {out}");
    assert_eq!((count("listens \"twice\""), count("closed true")), (2, 2), "{test}: {out}");
    let log = run.text(Source::Err);
    assert!(log.contains("says {\"id\":1,\"primary\":false}"), "{log}");
    assert!(
        log.contains(&format!("port {busy_port} is taken: pid {} ", std::process::id())),
        "{log}"
    );
    assert!(!std::path::Path::new(pipe).exists(), "the file of a pipe goes with it");
}

#[test]
fn node_18() {
    matrix("node18", "round-robin");
    matrix("node18", "kernel");
}

#[test]
fn node_20() {
    matrix("node20", "round-robin");
    matrix("node20", "kernel");
}

#[test]
fn node_22() {
    matrix("node22", "round-robin");
    matrix("node22", "kernel");
}

#[test]
fn node_24() {
    matrix("node24", "round-robin");
    matrix("node24", "kernel");
}

#[test]
fn node_26() {
    matrix("node26", "round-robin");
    matrix("node26", "kernel");
}

#[test]
fn deno() {
    let Some(program) = node("deno", "deno") else { return };
    let port = free_port();
    let (app, port_text) = (app("server.js"), port.to_string());
    let args =
        ["-v", "--workers", "2", "--balance", "round-robin", "--", &program, "run", "-A", &app];
    let mut run = Run::start(
        throng(&args)
            .env("PORT", &port_text)
            .env("HOST", "127.0.0.1")
            .env("DENO_NO_UPDATE_CHECK", "1"),
    );
    for _ in 0..2 {
        run.wait_log("is ready");
    }
    let pids: Vec<_> = (0..4).map(|_| number(&get(port).unwrap(), "pid=")).collect();
    assert!(pids[0] != pids[1] && pids[0] == pids[2] && pids[1] == pids[3], "{pids:?}");
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_worker_that_disconnects_by_itself_is_replaced() {
    let Some(program) = node("disconnect", "node24") else { return };
    let script = "
        const cluster = require('cluster')
        process.on('message', () => cluster.worker.disconnect())
        process.on('exit', status => console.log('exits', status, cluster.worker.exitedAfterDisconnect))
        require('http').createServer().listen(0, () => console.log('up ' + cluster.worker.id))";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.js");
    std::fs::write(&file, script).unwrap();
    let control = dir.path().join("control").display().to_string();
    let file = file.to_str().unwrap();
    let args = ["-v", "--control", &control, "--workers", "2", "--", &program, file];
    let mut run = Run::start(&mut throng(&args));
    run.wait_for(2, "up ");
    for _ in 0..2 {
        run.wait_log("is ready");
    }
    assert_eq!(done(&mut throng(&["send", "--control", &control, "bye", "1"])).status, 0);
    assert_eq!(run.wait("exits "), "exits 0 true");
    assert_eq!(run.wait("up "), "up 3");
    assert_eq!(run.stop(), 0);
}

#[test]
fn socket_io_finds_its_worker_by_the_address() {
    let Some(program) = node("socket.io", "node24") else { return };
    let port = free_port().to_string();
    let mut run = start(&["--balance", "sticky-ip"], &program, "sticky.js", &[("PORT", &port)]);
    for _ in 0..2 {
        run.wait_log("is ready");
    }
    let mut client = Command::new(&program);
    let client = done(client.arg(app("sticky-client.js")).arg(&port).env("NODE_PATH", packages()));
    assert_eq!(
        (client.status, client.stdout.as_str()),
        (0, "joined 6 at 1\n"),
        "{}",
        client.stderr
    );
    assert_eq!(run.stop(), 0);
}

#[test]
fn listen_sets_the_port_and_narrows_and_another_port_is_named() {
    let Some(program) = node("listen", "node24") else { return };
    let (port, other) = (free_port(), free_port());
    let address = format!("127.0.0.1:{port}");
    let mut run = start(&["--listen", &address], &program, "server.js", &[]);
    let line = run.wait("up ");
    assert!(line.contains(&format!("port={port} address=127.0.0.1 ")), "{line}");
    assert_eq!(run.stop(), 0);
    // A server that has its own opinion.
    let fixed = format!("require('http').createServer().listen({other}, () => console.log('up'))");
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("own.js");
    std::fs::write(&script, fixed).unwrap();
    let mut run = Run::start(&mut throng(&[
        "--workers",
        "1",
        "--listen",
        &address,
        "--",
        &program,
        script.to_str().unwrap(),
    ]));
    run.wait("up");
    let log = run.wait_log("--listen");
    assert!(log.contains(&other.to_string()) && log.contains(&address), "{log}");
    assert_eq!(run.stop(), 0);
    // One that takes it from its words.
    let words = "require('http').createServer().listen(process.argv[2], () => console.log('up', process.argv[2]))";
    std::fs::write(&script, words).unwrap();
    let options = ["--workers", "1", "--template", "--listen", &address, "--"];
    let mut run = Run::start(throng(&options).args([&program, script.to_str().unwrap(), "{port}"]));
    run.wait(&format!("up {port}"));
    assert_eq!(run.stop(), 0);
}

#[test]
fn debuggers_have_ports_of_their_own() {
    let Some(program) = node("inspect", "node24") else { return };
    let base = free_port();
    let (app, inspect) = (app("server.js"), format!("--inspect={base}"));
    let args = ["--workers", "2", "--", &program, &inspect, &app];
    let mut run = Run::start(throng(&args).env("PORT", "0"));
    let mut ports: Vec<_> =
        run.wait_for(2, "up ").iter().map(|line| number(line, "debug=")).collect();
    ports.sort_unstable();
    assert_eq!(ports, [i32::from(base), i32::from(base) + 1]);
    assert_eq!(run.stop(), 0);
}

#[test]
fn a_channel_that_somebody_else_has_is_noticed_and_the_workers_go_on_without() {
    let Some(program) = node("no channel", "node24") else { return };
    let script = "process.channel ? 0 : console.log('alone', process.env.NODE_UNIQUE_ID); setInterval(() => {}, 1000)";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.js");
    std::fs::write(&file, script).unwrap();
    let args = [
        "--workers",
        "2",
        "--ready-timeout",
        "2s",
        "--",
        "env",
        "-u",
        "NODE_CHANNEL_FD",
        &program,
        file.to_str().unwrap(),
    ];
    let mut run = Run::start(&mut throng(&args));
    let log = run.wait_log("has its channel");
    assert!(log.contains("--share off"), "{log}");
    assert_eq!(run.wait_for(2, "alone"), ["alone undefined", "alone undefined"]);
    run.wait_log("reload is done");
    assert_eq!(run.stop(), 0);
}

#[test]
fn jobs_end_and_what_is_no_plain_server_is_left_alone() {
    let Some(program) = node("jobs", "node24") else { return };
    let job = "console.log('channel', !!process.channel, process.env.NODE_UNIQUE_ID)";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("job.js");
    std::fs::write(&file, job).unwrap();
    let file = file.to_str().unwrap();
    for args in [&["--restart", "never"][..], &["--restart", "on-failure"]] {
        let args = [&["--workers", "1"][..], args, &["--", &program, file]].concat();
        let run = done(throng(&args).env("NODE_CHANNEL_FD", "7").env("NODE_UNIQUE_ID", "3"));
        assert_eq!(
            (run.status, run.stdout.as_str()),
            (0, "channel false undefined\n"),
            "{}",
            run.stderr
        );
    }
    let refused = done(&mut throng(&["--share", "node", "--", "npm", "start"]));
    assert_eq!(refused.status, 2);
    assert!(refused.stderr.contains("cannot be a cluster worker"), "{}", refused.stderr);
}
