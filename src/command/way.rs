//! Which way connections take to the workers, where `--share` leaves it open, and whether it goes
//! together with everything else that was said.

use tracing::warn;

use super::run::{has_channel, restart};
use super::size::{self, recognised};
use crate::engine::{Environment, Inspect};
use crate::exit::{Failure, usage};
use crate::fleet::Restart;
use crate::plan::Runtime;
use crate::probe::Host;
use crate::program::{Recognised, Script, cluster, inspect_option};
use crate::settings::{Ready, Settings, Switch, Watchdog};
use crate::sockets::{Address, Share};

/// In each option that has to do with a debugger's port.
const DEBUGGERS: &[&str] = &["--inspect", "--debug-port"];

/// The way of these settings; `passed`: a service manager passes sockets to us. Where the proxy listens on
/// our own `PORT`, that is added to them.
pub(super) fn choose(settings: &mut Settings, host: &Host, passed: bool) -> Result<Share, Failure> {
    let told = host.env("PORT").map(|told| told.to_string_lossy().trim().to_owned());
    let port = told.as_ref().and_then(|told| told.parse().ok()).filter(|port| *port != 0);
    let served = !settings.listen.is_empty() || port.is_some();
    let share = match settings.share {
        Some(share) => share,
        None if is_node_server(settings, host) => Share::Node,
        None if served && !settings.exec => Share::Proxy,
        None => Share::Off,
    };
    let unused = told.filter(|told| port.is_none() && !told.is_empty());
    if let Some(told) = unused.filter(|_| settings.share.is_none() && share == Share::Off) {
        settings.warnings.push(format!(
            "PORT is \"{told}\", which is no port from 1 to 65535: we do not listen there, and every worker gets it as it is"
        ));
    }
    // Who says proxy may mean what is passed alone.
    let only_passed = passed && settings.share.is_some();
    if share == Share::Proxy && settings.listen.is_empty() && !only_passed {
        settings.listen.extend(port.map(Address::Port));
    }
    check(settings, host, share, passed)?;
    // What was found to be a server of Node has been checked by that.
    if settings.share == Some(Share::Node) {
        check_node(settings, host)?;
    }
    if settings.workers.stop_message.is_some() && !has_channel(settings, share) {
        let stop_message = settings.origin("stop-message");
        return Err(usage(format!(
            "{stop_message} goes by the workers' channel, and they have none; add --ipc on"
        )));
    }
    check_balance(settings, share)?;
    check_proxy(settings, share)?;
    Ok(share)
}

/// The script of a command that can be a worker of Node's `cluster`.
fn script(settings: &Settings, found: &Recognised) -> Option<Script> {
    let words: Vec<String> =
        settings.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    cluster(&words, found)
}

/// Whether Node's own way is the one, where nobody says: a cluster worker never ends by itself, so what
/// is not started again may be a job that is to end.
fn is_node_server(settings: &Settings, host: &Host) -> bool {
    let by_port = matches!(settings.workers.ready, Ready::Http(_))
        || matches!(settings.workers.watchdog, Some(Watchdog::Http(_)));
    let fits = settings.balance.is_none_or(|balance| Share::Node.balances().contains(&balance));
    !settings.exec
        && !settings.command.is_empty()
        && !by_port
        && fits
        && settings.listen.len() < 2
        && settings.ipc != Switch::Off
        && restart(settings) == Restart::Always
        && size::inherited(settings, host).is_ok_and(|env| {
            recognised(settings, &env).is_some_and(|found| script(settings, &found).is_some())
        })
}

fn check_node(settings: &Settings, host: &Host) -> Result<(), Failure> {
    let (listen, chosen) = (settings.origin("listen"), settings.origin("share"));
    let http = |name: &str| {
        usage(format!(
            "{} asks the worker's own port, and in node mode any worker answers there; use --ready auto, or --share proxy",
            settings.origin(name)
        ))
    };
    if matches!(settings.workers.ready, Ready::Http(_)) {
        return Err(http("ready"));
    }
    if matches!(settings.workers.watchdog, Some(Watchdog::Http(_))) {
        return Err(http("watchdog"));
    }
    if settings.exec {
        return Err(usage(format!("--exec leaves nobody to be the primary; leave {chosen} out")));
    }
    if settings.ipc == Switch::Off {
        let ipc = settings.origin("ipc");
        return Err(usage(format!(
            "{ipc} is off, and node mode is made of that channel; leave one out"
        )));
    }
    if settings.listen.len() > 1 {
        return Err(usage(format!(
            "{listen} is there {} times, and in node mode it sets PORT, which is one: leave the others out, the server opens them",
            settings.listen.len()
        )));
    }
    let env = size::inherited(settings, host)?;
    let found = recognised(settings, &env);
    let runtime = found.as_ref().map_or(Runtime::Other, |found| found.runtime);
    let is_script = found.is_some_and(|found| script(settings, &found).is_some());
    if is_script || runtime == Runtime::Other || settings.command.is_empty() {
        return Ok(());
    }
    let why = match runtime {
        Runtime::Node | Runtime::Deno => {
            "it is not node or deno itself with a script (npm, npx, --watch and others start the server as another process, and its channel does not reach it)"
        }
        Runtime::Bun => "Bun's servers do not take connections from a primary",
        _ => "it is no Node server",
    };
    Err(usage(format!(
        "{chosen} is node, and COMMAND cannot be a cluster worker: {why}; use another --share"
    )))
}

/// Where the debuggers of workers listen, when each has to have a port of its own.
pub(super) fn inspect(settings: &Settings, env: &Environment) -> Option<Inspect> {
    let options = env.get("NODE_OPTIONS").and_then(|options| options.to_str());
    // Mostly nobody wants one, and nothing has to be looked up.
    let words = settings.command.iter().filter_map(|word| word.to_str());
    if !words.chain(options).any(|word| DEBUGGERS.iter().any(|option| word.contains(option))) {
        return None;
    }
    let script = script(settings, &recognised(settings, env)?)?;
    let (host, port) = script.inspect.or_else(|| inspect_option(options?))?;
    if script.at.is_none() {
        warn!(
            event = "inspect",
            port,
            "every worker is told to wait for a debugger on port {port}, which only one can have"
        );
    }
    Some(Inspect { at: script.at?, host, port })
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
