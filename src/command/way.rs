//! Which way connections take to the workers, where `--share` leaves it open, and whether it goes
//! together with everything else that was said.

use crate::exit::{Failure, usage};
use crate::probe::Host;
use crate::settings::{Ready, Settings, Watchdog};
use crate::sockets::{Address, Share};

/// The way of these settings; `passed`: a service manager passes sockets to us. Where the proxy listens on
/// our own `PORT`, that is added to them.
pub(super) fn choose(settings: &mut Settings, host: &Host, passed: bool) -> Result<Share, Failure> {
    let port = host.env("PORT").and_then(|port| port.to_str()?.trim().parse().ok());
    let port = port.filter(|port| *port != 0);
    let share = settings.share.unwrap_or({
        let served = !settings.listen.is_empty() || port.is_some();
        if served && !settings.exec { Share::Proxy } else { Share::Off }
    });
    // Who says proxy may mean what is passed alone.
    let only_passed = passed && settings.share.is_some();
    if share == Share::Proxy && settings.listen.is_empty() && !only_passed {
        settings.listen.extend(port.map(Address::Port));
    }
    check(settings, host, share, passed)?;
    check_balance(settings, share)?;
    check_proxy(settings, share)?;
    Ok(share)
}

/// What is for the proxy alone.
fn check_proxy(settings: &Settings, share: Share) -> Result<(), Failure> {
    if share == Share::Proxy {
        return Ok(());
    }
    let chosen = [("upstream", settings.proxy.unix), ("proxy-protocol", settings.proxy.header)];
    match chosen.into_iter().find(|(_, chosen)| *chosen) {
        Some((name, _)) => Err(usage(format!(
            "{} is about connections that we pass on, and --share {} passes none; leave it out, or use --share proxy",
            settings.origin(name),
            share.name()
        ))),
        None => Ok(()),
    }
}

fn check_balance(settings: &Settings, share: Share) -> Result<(), Failure> {
    let known = share.balances();
    let Some(balance) = settings.balance.filter(|balance| !known.contains(balance)) else {
        return Ok(());
    };
    let known: Vec<_> = known.iter().map(|balance| balance.name()).collect();
    let what = match known.as_slice() {
        [] => "spreads no connections".to_owned(),
        names => format!("knows {}", names.join(", ")),
    };
    Err(usage(format!(
        "{} is {} and --share {} {what}; leave it out, or choose another --share",
        settings.origin("balance"),
        balance.name(),
        share.name()
    )))
}

fn check(settings: &Settings, host: &Host, share: Share, passed: bool) -> Result<(), Failure> {
    let (listen, chosen) = (settings.origin("listen"), settings.origin("share"));
    let http = matches!(settings.workers.watchdog, Some(Watchdog::Http(_)));
    match (settings.listen.is_empty(), share) {
        (false, Share::Off) => Err(usage(format!(
            "{listen} needs --share proxy, fd or reuseport, so that workers get the connections"
        ))),
        (true, Share::Proxy) if !passed => Err(usage(format!(
            "{chosen} is proxy and needs --listen ADDR or PORT in the environment, where clients connect to"
        ))),
        (_, Share::Proxy) if settings.exec => Err(usage(format!(
            "--exec hands everything over to COMMAND, and nobody stays to pass connections on; leave it or {chosen} out"
        ))),
        (true, Share::Fd | Share::Reuseport) if !passed => {
            let foreign = if host.env("LISTEN_FDS").is_some() {
                "; LISTEN_FDS is set, but LISTEN_PID does not name this process: start throng-rs without a shell in between, or by exec"
            } else {
                ""
            };
            Err(usage(format!(
                "{chosen} is {} and needs --listen ADDR, the socket to share{foreign}",
                share.name()
            )))
        }
        (_, Share::Fd | Share::Reuseport)
            if matches!(settings.workers.ready, Ready::Listen | Ready::Http(_)) =>
        {
            let ready = settings.origin("ready");
            Err(usage(format!(
                "{ready} asks the worker's own port, and on an inherited socket the kernel answers for who is not there; with {chosen} {} use --ready notify or delay:1s",
                share.name()
            )))
        }
        (_, Share::Fd | Share::Reuseport) if http => {
            let watchdog = settings.origin("watchdog");
            Err(usage(format!(
                "{watchdog} asks the worker's own port, and on an inherited socket any of them answers; with {chosen} {} use --watchdog 10s and WATCHDOG=1",
                share.name()
            )))
        }
        (false, Share::Fd | Share::Reuseport) if settings.exec => Err(usage(format!(
            "--exec hands everything over to COMMAND, which must listen by itself; leave {listen} out"
        ))),
        _ => Ok(()),
    }
}
