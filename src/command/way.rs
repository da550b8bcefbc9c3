//! Which way connections take to the workers, where `--share` leaves it open, and whether it goes
//! together with everything else that was said.

use crate::exit::{Failure, usage};
use crate::probe::Host;
use crate::settings::{Ready, Settings, Watchdog};
use crate::sockets::Share;

/// The way of these settings; `passed`: a service manager passes sockets to us.
pub(super) fn choose(settings: &Settings, host: &Host, passed: bool) -> Result<Share, Failure> {
    let share = settings.share.unwrap_or(Share::Off);
    check(settings, host, share, passed)?;
    Ok(share)
}

fn check(settings: &Settings, host: &Host, share: Share, passed: bool) -> Result<(), Failure> {
    let (listen, chosen) = (settings.origin("listen"), settings.origin("share"));
    let http = matches!(settings.workers.watchdog, Some(Watchdog::Http(_)));
    match (settings.listen.is_empty(), share) {
        (false, Share::Off) => {
            Err(usage(format!("{listen} needs --share fd, so that workers get the socket")))
        }
        (true, Share::Fd) if !passed => {
            let foreign = if host.env("LISTEN_FDS").is_some() {
                "; LISTEN_FDS is set, but LISTEN_PID does not name this process: start throng-rs without a shell in between, or by exec"
            } else {
                ""
            };
            Err(usage(format!(
                "{chosen} is fd and needs --listen ADDR, the socket to share{foreign}"
            )))
        }
        (_, Share::Fd) if matches!(settings.workers.ready, Ready::Listen | Ready::Http(_)) => {
            let ready = settings.origin("ready");
            Err(usage(format!(
                "{ready} asks the worker's own port, and on a socket that all inherit the kernel answers for who is not there; with {chosen} fd use --ready notify or delay:1s"
            )))
        }
        (_, Share::Fd) if http => {
            let watchdog = settings.origin("watchdog");
            Err(usage(format!(
                "{watchdog} asks the worker's own port, and on a socket that all inherit any of them answers; with {chosen} fd use --watchdog 10s and WATCHDOG=1"
            )))
        }
        (false, Share::Fd) if settings.exec => Err(usage(format!(
            "--exec hands everything over to COMMAND, which must listen by itself; leave {listen} out"
        ))),
        _ => Ok(()),
    }
}
