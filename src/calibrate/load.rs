//! The load of a calibration: clients of our own, or a command of the user's.

use std::cell::Cell;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;

use crate::sockets::Address;

/// A kept connection stays with one worker, and which ones share a worker is chance: so each is renewed after
/// so many requests, and a new worker gets its part.
const REQUESTS: u32 = 16;
/// After a request that failed.
const PAUSE: Duration = Duration::from_millis(50);

/// Whom the built-in clients ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Target {
    /// Where who listens at `address` is reached; none where the kernel chooses the port.
    pub(crate) fn of(address: &Address) -> Option<Self> {
        if address.is_any_port() {
            return None;
        }
        Some(match address {
            Address::Port(port) => Self::Tcp((Ipv4Addr::LOCALHOST, *port).into()),
            Address::Tcp(address) => {
                let ip = match address.ip() {
                    IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                    ip => ip,
                };
                Self::Tcp((ip, address.port()).into())
            }
            Address::Unix(path) => Self::Unix(path.clone()),
        })
    }

    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) => Some(address.port()),
            Self::Unix(_) => None,
        }
    }

    /// Whether somebody listens there.
    pub(crate) async fn answers(&self) -> bool {
        match self {
            Self::Tcp(address) => TcpStream::connect(address).await.is_ok(),
            Self::Unix(path) => UnixStream::connect(path).await.is_ok(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    answered: Cell<u64>,
    failed: Cell<u64>,
}

/// Clients that ask again as soon as they are answered. Their number stays while that of the workers grows:
/// otherwise an event loop, which has all requests in hand at once, would seem to gain by every worker.
pub(crate) struct Clients {
    counts: Rc<Counts>,
    tasks: Vec<AbortHandle>,
}

impl Clients {
    /// Must be called inside a `LocalSet`.
    pub(crate) fn start(target: &Target, path: &str, clients: u32) -> Self {
        let counts = Rc::new(Counts::default());
        let task = |_| {
            let (target, path, counts) = (target.clone(), path.to_owned(), Rc::clone(&counts));
            tokio::task::spawn_local(async move {
                loop {
                    if serve(&target, &path, &counts).await.is_err() {
                        counts.failed.set(counts.failed.get() + 1);
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            })
            .abort_handle()
        };
        let tasks = (0..clients).map(task).collect();
        Self { counts, tasks }
    }

    /// Good answers so far.
    pub(crate) fn answered(&self) -> u64 {
        self.counts.answered.get()
    }

    /// Requests so far that had no answer, or one of an error.
    pub(crate) fn failed(&self) -> u64 {
        self.counts.failed.get()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The requests of one connection.
async fn serve(target: &Target, path: &str, counts: &Counts) -> Result<(), ()> {
    match target {
        Target::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(|_| ())?;
            ask(stream, &address.to_string(), path, counts).await
        }
        Target::Unix(socket) => {
            let stream = UnixStream::connect(socket).await.map_err(|_| ())?;
            ask(stream, "localhost", path, counts).await
        }
    }
}

async fn ask<S>(stream: S, host: &str, path: &str, counts: &Counts) -> Result<(), ()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|_| ())?;
    let connection = tokio::task::spawn_local(async move {
        // What goes wrong here, the request is told too.
        let _ = connection.await;
    });
    let _ends = Ends(connection.abort_handle());
    for number in 0..REQUESTS {
        // Who closes after an answer (HTTP/1.0, or `Connection: close`) fails nothing.
        if number > 0 && sender.ready().await.is_err() {
            return Ok(());
        }
        match one(&mut sender, host, path).await {
            Ok(true) => counts.answered.set(counts.answered.get() + 1),
            Ok(false) => counts.failed.set(counts.failed.get() + 1),
            // A kept connection may be closed at any time between two requests (RFC 9112, 9.3.1).
            Err(()) if number > 0 => return Ok(()),
            Err(()) => return Err(()),
        }
    }
    Ok(())
}

/// A connection that ends with the client.
struct Ends(AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One request; whether it went well.
async fn one(sender: &mut SendRequest<Full<Bytes>>, host: &str, path: &str) -> Result<bool, ()> {
    let request = Request::get(path).header("host", host).body(Full::default()).map_err(|_| ())?;
    let response = sender.send_request(request).await.map_err(|_| ())?;
    let status = response.status();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.map_err(|_| ())?;
    }
    Ok(!status.is_client_error() && !status.is_server_error())
}

/// The requests a second that a load generator printed: `wrk`, `hey` and `oha` say `Requests/sec: 12.3`, `ab`
/// says `Requests per second: 12.3 [#/sec]`.
pub(crate) fn printed_rate(text: &str) -> Option<f64> {
    let rate = |line: &str| {
        let line = line.trim().to_ascii_lowercase();
        let names = ["requests/sec:", "requests per second:"];
        let rest = names.iter().find_map(|name| line.strip_prefix(name))?;
        let number: f64 = rest.split_whitespace().next()?.parse().ok()?;
        (number.is_finite() && number >= 0.0).then_some(number)
    };
    text.lines().rev().find_map(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_listener_is_reached() {
        let url = |text: &str| Target::of(&Address::parse(text).unwrap()).map(|t| t.to_string());
        assert_eq!(url("3000").unwrap(), "http://127.0.0.1:3000");
        assert_eq!(url("0.0.0.0:80").unwrap(), "http://127.0.0.1:80");
        assert_eq!(url("[::]:80").unwrap(), "http://[::1]:80");
        assert_eq!(url("10.1.2.3:80").unwrap(), "http://10.1.2.3:80");
        assert_eq!(url("unix:/run/x").unwrap(), "unix:/run/x");
        assert_eq!(url("0"), None);
    }

    #[test]
    fn rates_are_found_in_what_load_generators_print() {
        for (text, rate) in [
            ("Running 2s test\nRequests/sec:   1234.50\nTransfer/sec: 1MB", Some(1234.5)),
            ("Requests per second:    99.10 [#/sec] (mean)\nTime per request: 1", Some(99.1)),
            ("  Requests/sec:\t12.5\n", Some(12.5)),
            ("Requests/sec: nan", None),
            ("Requests/sec: -1", None),
            ("nothing", None),
        ] {
            assert_eq!(printed_rate(text), rate, "{text}");
        }
    }
}
