//! The sockets of a run: those that a service manager passed to us, and those that we bind.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::anyhow;
use tracing::{info, warn};

use crate::engine::{self, Resume};
use crate::exit::{Failure, usage};
use crate::settings::Settings;
use crate::sockets::{Address, Binding, Listener, Passed, Share};
use crate::units::plural;

/// What [`Passed::find`] found.
pub(super) type Found = Result<Option<Passed>, String>;

/// What the service manager passes to this process, if anything. Opens nothing, and comes first.
pub(super) fn find(host: &crate::probe::Host) -> Found {
    Passed::find(|name| host.env(name), std::process::id())
}

/// All sockets of the workers: the passed ones in their order, since a worker may know them by their
/// numbers, then those of `--listen` that were not passed.
///
/// What an earlier program of this process has handed down is taken first.
pub(super) fn open(
    settings: &Settings,
    share: Share,
    found: Found,
    resume: Option<&Resume>,
) -> Result<Vec<Listener>, Failure> {
    if let Some(resume) = resume {
        return Ok(go_on(settings, resume)?);
    }
    if share == Share::Off {
        ignore(&found);
        return Ok(Vec::new());
    }
    let mut listeners = Vec::new();
    if let Some(passed) = found.map_err(usage)? {
        if let Some(warning) = passed.warning() {
            warn!(event = "sockets", "{warning}");
        }
        listeners = passed.adopt().map_err(usage)?;
    }
    for listener in &listeners {
        let (address, name) = (&listener.address, listener.name());
        info!(
            event = "listening",
            address = %address,
            passed_as = name,
            "listening on {address}, passed to us as \"{name}\""
        );
    }
    if share == Share::Reuseport && !listeners.is_empty() {
        warn!(
            event = "sockets",
            "what was passed to us stays one socket for all workers, as with --share fd; for one of each worker, let --listen bind it"
        );
    }
    // Node's workers tell us what to open.
    let bound = if share == Share::Node { &[][..] } else { &settings.listen };
    for address in bound {
        if !listeners.iter().any(|listener| listener.serves(address)) {
            let mut listener = bind(settings, address)?;
            listener.asked = Some(address.to_string());
            let address = &listener.address;
            info!(event = "listening", address = %address, "listening on {address}");
            listeners.push(listener);
        }
    }
    Ok(listeners)
}

/// In the order in which they were, which workers know.
fn go_on(settings: &Settings, resume: &Resume) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = resume.listeners()?;
    for address in &settings.listen {
        let asked = address.to_string();
        if !listeners.iter().any(|listener| listener.asked.as_ref() == Some(&asked)) {
            let mut listener = bind(settings, address)?;
            listener.asked = Some(asked);
            listeners.push(listener);
        }
    }
    Ok(listeners)
}

/// The sockets stay open as they are, for a worker that knows their numbers; nobody is told of them.
fn ignore(found: &Found) {
    match found {
        Ok(None) => {}
        Ok(Some(passed)) => warn!(
            event = "sockets",
            "{} passed to us (LISTEN_FDS), and workers are not told: add --share fd to hand them on",
            match passed.count() {
                1 => "1 socket was".to_owned(),
                more =>
                    format!("{} were", plural(u32::try_from(more).unwrap_or(u32::MAX), "socket")),
            }
        ),
        Err(problem) => warn!(event = "sockets", "{problem}"),
    }
}

fn bind(settings: &Settings, address: &Address) -> Result<Listener, Failure> {
    // Who asks for both families by name means two sockets.
    let v4_too = |v6: &SocketAddr| {
        let v4 = Address::Tcp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), v6.port()));
        v6.ip() == Ipv6Addr::UNSPECIFIED && v6.port() != 0 && settings.listen.contains(&v4)
    };
    let only_v6 = matches!(address, Address::Tcp(address) if v4_too(address));
    let how = Binding { mode: settings.socket_mode, only_v6 };
    Listener::bind(address, how).map_err(|error| {
        let holder = || match address {
            _ if error.kind() != io::ErrorKind::AddrInUse => None,
            Address::Port(port) => engine::holder(*port),
            Address::Tcp(address) => engine::holder(address.port()),
            Address::Unix(path) => engine::unix_holder(path),
        };
        let hint = match (holder(), address) {
            (Some(holder), _) => format!("; {holder} listens there"),
            (None, Address::Port(_) | Address::Tcp(_))
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                "; ports below net.ipv4.ip_unprivileged_port_start (1024) need root or the capability \
                 CAP_NET_BIND_SERVICE: choose a higher one"
                    .to_owned()
            }
            _ => String::new(),
        };
        Failure::Other(anyhow!(error).context(format!("cannot listen on {address}{hint}")))
    })
}
