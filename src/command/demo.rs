//! `throng-rs demo`: a small HTTP server, built in, run by the same path as any command.

use std::ffi::OsString;
use std::future::ready;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::Context;
use clap::ArgMatches;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::listeners::Found;
use super::run::{Inherited, start};
use super::{print, size, way};
use crate::exit::{Failure, SUCCESS, usage};
use crate::plan::Given;
use crate::probe::Host;
use crate::settings::{Defaults, Settings};
use crate::sockets::{Address, Listener, Passed, Share};
use crate::units::{MIB, show_size};

/// Where the demonstration listens, if nothing else is asked for.
const ADDRESS: &str = "127.0.0.1:3000";
/// Private memory of one demo server with room to spare: an idle one has 0.4 MiB (`benches/launch`).
const COST: u64 = 8 * MIB;

/// After an accept that failed, for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);
/// How long those who were accepted may take to ask.
const LONGEST_STOP: Duration = Duration::from_secs(2);

/// Runs as many of the built-in servers as fit.
pub(super) fn run(matches: &ArgMatches, host: &Host, inherited: Inherited) -> Result<u8, Failure> {
    let matches = matches.clone();
    let passed = !matches!(inherited.found, Ok(None));
    let listen = (!passed).then_some(ADDRESS);
    let read = move |host: &Host| {
        let defaults = Defaults { share: Some(Share::Fd), listen };
        let mut settings = Settings::read(&matches, host, defaults)?;
        if settings.exec {
            return Err(usage("--exec becomes a command and the demo is none; leave it out"));
        }
        if settings.sizing.worker_memory.is_none() {
            settings.sizing.worker_memory =
                Some(Given { value: COST, origin: Some("demo".to_owned()) });
        }
        settings.command = ["throng-rs", "demo-server"].map(OsString::from).to_vec();
        Ok(settings)
    };
    let mut settings = read(host)?;
    let share = way::choose(&mut settings, host, passed)?;
    if settings.dry_run {
        return size::report(&settings, host);
    }
    let own = std::env::current_exe().context("cannot find our own program file")?;
    let read = Box::new(move || read(&Host::live()));
    start(&settings, share, host, inherited, Some(own), read, &announce)
}

/// On standard output, so that it is seen whatever is done with the log.
fn announce(address: &Address) -> Result<(), Failure> {
    match address {
        Address::Tcp(address) => print(&format!(
            "demo: http://{address}/ answers with the worker that served it; Ctrl-C stops\n"
        )),
        other => print(&format!("demo: listening on {other}; Ctrl-C stops\n")),
    }
}

/// One of the servers: answers every request with who it is.
pub(super) fn serve(found: Found) -> Result<u8, Failure> {
    let passed = found.map_err(usage)?.map(Passed::adopt).transpose().map_err(usage)?;
    let is_tcp = |listener: &Listener| matches!(listener.address, Address::Tcp(_));
    let listener = passed
        .and_then(|passed| passed.into_iter().find(is_tcp))
        .ok_or_else(|| usage("demo-server serves an inherited TCP socket; run throng-rs demo"))?;
    let listener = listener.fd.try_clone().context("cannot copy the inherited socket")?;
    let listener = TcpListener::from(listener);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(answer(listener))?;
    Ok(SUCCESS)
}

async fn answer(listener: TcpListener) -> anyhow::Result<()> {
    let env = |name: &str| std::env::var(name).unwrap_or_else(|_| "?".to_owned());
    let budget =
        env("THRONG_WORKER_BUDGET").parse().map_or_else(|_| "no limit".to_owned(), show_size);
    let text = format!(
        "worker {} of {}, pid {}, memory budget {budget}\n",
        env("THRONG_WORKER_ID"),
        env("THRONG_WORKER_COUNT"),
        std::process::id()
    );
    listener.set_nonblocking(true).context("cannot prepare the inherited socket")?;
    let listener =
        tokio::net::TcpListener::from_std(listener).context("cannot use the inherited socket")?;
    let mut stop = signal(SignalKind::terminate()).context("cannot wait for TERM")?;
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            _ = stop.recv() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(open.spawn(tell(stream, text.clone()))),
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            Some(_) = open.join_next() => {}
        }
    }
    drop(listener);
    // Whom we have accepted is answered, also who has not asked yet; but a client that holds its
    // connection open must not hold us up.
    let answered = async { while open.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LONGEST_STOP, answered).await;
    Ok(())
}

/// Answers one request.
async fn tell(stream: TcpStream, text: String) {
    let answer = service_fn(move |_: Request<Incoming>| {
        // One answer a connection, so that reloading a page shows another worker.
        let answer = Response::builder()
            .header(header::CONNECTION, "close")
            .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
            .body(Full::new(Bytes::from(text.clone())));
        ready(answer)
    });
    // A client that goes away is no failure of ours.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}
