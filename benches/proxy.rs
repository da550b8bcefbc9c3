//! Connections through `--share proxy`, beside `HAProxy` in TCP mode with one thread in front of the same
//! workers: requests on lasting connections, a new connection for each, large answers, and memory while
//! thousands of connections are silent.
//!
//! ```sh
//! cargo bench --bench proxy               # prints the table
//! cargo bench --bench proxy -- --check    # and ends with 1 where a limit is exceeded
//! ```
//!
//! Needs haproxy and wrk. Runs come in pairs whose order alternates; medians are compared. CPU time per
//! request stands beside the throughput, because it says the same on a machine that has other work.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use common::table::{self, Row};
use common::{LAUNCHER, Nest, PATIENCE, children_of, end, nobody_left, send};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

const WORKERS: usize = 4;
const PAIRS: usize = 9;
const SECONDS: &str = "2";
const CLIENTS: &str = "64";
const IDLE: usize = 5000;
/// Of `HAProxy`'s throughput.
const LASTING: f64 = 0.95;
const FRESH: f64 = 0.9;

/// What stands in front of the workers.
struct Front {
    name: &'static str,
    child: Child,
    port: u16,
}

/// One run: requests in a second, and CPU time of the front for each, in microseconds.
#[derive(Clone, Copy)]
struct Run {
    rate: f64,
    cpu: f64,
}

fn main() -> anyhow::Result<ExitCode> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let nest = Nest::new()?;
    let (ours, ports) = launcher(&nest)?;
    let theirs = haproxy(&nest, &ports)?;
    for front in [&ours, &theirs] {
        front.await_answer()?;
    }
    let mut rows = Vec::new();
    for (what, path, close, limit) in [
        ("requests on lasting connections", "", false, Some(LASTING)),
        ("a new connection for each request", "", true, Some(FRESH)),
        ("answers of 1 MB", "1000000", false, None),
    ] {
        rows.extend(pairs(what, &ours, &theirs, path, close, limit)?);
    }
    rows.push(memory(&ours, &theirs)?);
    send(&ours.child, Signal::SIGTERM)?;
    ensure!(end(ours.child)?.success(), "the launcher failed");
    send(&theirs.child, Signal::SIGTERM)?;
    end(theirs.child)?;
    nobody_left()?;
    Ok(table::end(&rows))
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The launcher, and the ports of its workers.
fn launcher(nest: &Nest) -> anyhow::Result<(Front, Vec<u16>)> {
    let web = nest.build("web", &[])?;
    let port = free_port()?;
    let mut command = nest.command(LAUNCHER);
    command.arg(format!("--workers={WORKERS}")).arg(format!("--listen=127.0.0.1:{port}"));
    let child = command.args(["--share=proxy", "--control=off", "--"]).arg(&web).spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let deadline = Instant::now() + PATIENCE;
    let port_of = |pid: &Pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let own = fs::read_link(format!("/proc/{pid}/exe")).ok()? == web;
        let entry = environ.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(b"PORT="))?;
        std::str::from_utf8(entry).ok()?.parse().ok().filter(|_| own)
    };
    loop {
        let ports: Vec<u16> = children_of(pid)?.iter().filter_map(port_of).collect();
        if ports.len() == WORKERS {
            return Ok((Front { name: "throng-rs", child, port }, ports));
        }
        ensure!(Instant::now() < deadline, "the workers do not come up");
        std::thread::yield_now();
    }
}

/// `HAProxy` in front of them.
fn haproxy(nest: &Nest, ports: &[u16]) -> anyhow::Result<Front> {
    let port = free_port()?;
    let servers = ports.iter().map(|port| format!(" server w{port} 127.0.0.1:{port}"));
    let servers = servers.collect::<Vec<_>>().join("\n");
    let text = format!(
        "global\n nbthread 1\n maxconn 9000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 300s\n \
         timeout server 300s\nfrontend front\n bind 127.0.0.1:{port}\n default_backend workers\nbackend workers\n \
         balance leastconn\n{servers}\n"
    );
    let file = nest.fifo().with_file_name("haproxy.cfg");
    fs::write(&file, text)?;
    let child = nest.command("haproxy").args(["-db", "-f"]).arg(&file).spawn();
    Ok(Front { name: "HAProxy", child: child.context("cannot run haproxy; install it")?, port })
}

impl Front {
    fn await_answer(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).map_err(drop).and_then(ask).is_err() {
            ensure!(Instant::now() < deadline, "{} does not answer", self.name);
            std::thread::yield_now();
        }
        Ok(())
    }

    /// CPU time so far, in microseconds.
    fn cpu(&self) -> anyhow::Result<f64> {
        let stat = procfs::process::Process::new(self.child.id().cast_signed())?.stat()?;
        let ticks = u32::try_from(stat.utime + stat.stime)?;
        let each = u32::try_from(procfs::ticks_per_second())?;
        Ok(f64::from(ticks) * 1e6 / f64::from(each))
    }

    fn run(&self, path: &str, close: bool) -> anyhow::Result<Run> {
        let before = self.cpu()?;
        let mut command = Command::new("wrk");
        command.args(["-t1", "-c", CLIENTS, "-d", SECONDS]);
        if close {
            command.args(["-H", "Connection: close"]);
        }
        command.arg(format!("http://127.0.0.1:{}/{path}", self.port)).stderr(Stdio::null());
        let output = command.output().context("cannot run wrk; install it")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // A busy machine may keep an answer waiting; none may be broken.
        let broken = text.contains("Socket errors") && !text.contains("connect 0, read 0, write 0");
        ensure!(!broken, "{}: {text}", self.name);
        let field = |key: &str, at: usize| {
            let line = text.lines().find(|line| line.contains(key))?;
            line.split_whitespace().nth(at)?.parse::<f64>().ok()
        };
        let rate = field("Requests/sec", 1).with_context(|| format!("wrk says {text}"))?;
        let count = field("requests in", 0).with_context(|| format!("wrk says {text}"))?;
        Ok(Run { rate, cpu: (self.cpu()? - before) / count })
    }
}

/// One request on a connection that stays.
fn ask(mut stream: TcpStream) -> Result<TcpStream, ()> {
    let mut answer = [0; 256];
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").map_err(drop)?;
    match stream.read(&mut answer) {
        Ok(count) if answer[..count].ends_with(b"hello\n") => Ok(stream),
        _ => Err(()),
    }
}

fn pairs(
    what: &str,
    ours: &Front,
    theirs: &Front,
    path: &str,
    close: bool,
    limit: Option<f64>,
) -> anyhow::Result<[Row; 2]> {
    let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
    for pair in 0..=PAIRS {
        let mut order = [(0, ours), (1, theirs)];
        if pair % 2 == 1 {
            order.reverse();
        }
        for (index, front) in order {
            let run = front.run(path, close)?;
            // The first pair warms up.
            if pair > 0 {
                runs[index].push(run);
            }
        }
    }
    let median = |index: usize, of: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs[index].iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let rates = [0, 1].map(|index| median(index, |run| run.rate));
    let costs = [0, 1].map(|index| median(index, |run| run.cpu));
    let (ratio, cost) = (rates[0] / rates[1], costs[0] / costs[1]);
    Ok([
        Row {
            what: what.to_owned(),
            ours: format!("{:.0}/s", rates[0]),
            peer: format!("{} {:.0}/s", theirs.name, rates[1]),
            ratio: Some(ratio),
            limit: limit.map_or_else(String::new, |least| format!("{least:.2}+")),
            kept: limit.map(|least| ratio >= least),
        },
        Row {
            what: "  CPU time for each".to_owned(),
            ours: format!("{:.1} us", costs[0]),
            peer: format!("{} {:.1} us", theirs.name, costs[1]),
            ratio: Some(cost),
            limit: String::new(),
            kept: None,
        },
    ])
}

/// What each has for itself while thousands of connections are open on which nothing moves.
fn memory(ours: &Front, theirs: &Front) -> anyhow::Result<Row> {
    let mut measured = Vec::new();
    for front in [ours, theirs] {
        let mut open = Vec::with_capacity(IDLE);
        for _ in 0..IDLE {
            let stream = TcpStream::connect(("127.0.0.1", front.port))?;
            let stream = ask(stream).map_err(|()| anyhow::anyhow!("{} is silent", front.name))?;
            open.push(stream);
        }
        // What was freed a moment ago is given back.
        std::thread::sleep(Duration::from_secs(1));
        let pid = front.child.id();
        measured.push(common::Private::of(pid)?.total);
    }
    let [ours, peer] = [measured[0], measured[1]].map(|kib| u32::try_from(kib).unwrap_or(u32::MAX));
    let ratio = f64::from(ours) / f64::from(peer);
    Ok(Row {
        what: format!("private memory at {IDLE} silent connections"),
        ours: format!("{ours} KiB"),
        peer: format!("{} {peer} KiB", theirs.name),
        ratio: Some(ratio),
        limit: "1.00".to_owned(),
        kept: Some(ratio <= 1.0),
    })
}
