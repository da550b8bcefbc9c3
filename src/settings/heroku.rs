//! The variables that buildpacks and users of Heroku know: `WEB_CONCURRENCY`, `WEB_CONCURRENCY_SET_BY`
//! and `WEB_MEMORY`. Meanings as in the contract and in Heroku's Node.js buildpack.

use std::os::unix::ffi::OsStrExt;

use super::values::whole;
use crate::exit::{Failure, usage};
use crate::plan::Given;
use crate::probe::Host;
use crate::units::parse_size;

/// The pinned number, or the advice, in `WEB_CONCURRENCY`.
pub(super) type Concurrency = (Option<Given<u32>>, Option<(u32, String)>);

pub(super) fn web_concurrency(host: &Host) -> Result<Concurrency, Failure> {
    let Some(text) = host.env("WEB_CONCURRENCY") else { return Ok((None, None)) };
    let text = String::from_utf8_lossy(text.as_bytes()).trim().to_owned();
    // Puma's word for "compute it".
    if text == "auto" {
        return Ok((None, None));
    }
    let Some(value) = whole(&text) else {
        return Err(usage(format!(
            "bad value \"{text}\" for WEB_CONCURRENCY in the environment: expected a whole number from 1 to 10000; unset it or use --workers"
        )));
    };
    let pinned = Given { value, origin: Some("env:WEB_CONCURRENCY".to_owned()) };
    match host.env("WEB_CONCURRENCY_SET_BY") {
        // A worker of another throng-rs is one of its N already.
        Some(_) if host.env("THRONG_WORKER_ID").is_some() => Ok((Some(pinned), None)),
        Some(by) => Ok((None, Some((value, by.to_string_lossy().into_owned())))),
        None => Ok((Some(pinned), None)),
    }
}

/// Heroku's `WEB_MEMORY`: MiB of one worker, a plain number there, any size here.
pub(super) fn web_memory(host: &Host) -> Result<Option<Given<u64>>, Failure> {
    let Some(text) = host.env("WEB_MEMORY") else { return Ok(None) };
    let text = String::from_utf8_lossy(text.as_bytes()).trim().to_owned();
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let value = parse_size(&if plain { format!("{text}M") } else { text.clone() })
        .filter(|bytes| *bytes > 0);
    let Some(value) = value else {
        return Err(usage(format!(
            "bad value \"{text}\" for WEB_MEMORY in the environment: expected a number of MiB such as 512"
        )));
    };
    Ok(Some(Given { value, origin: Some("env:WEB_MEMORY".to_owned()) }))
}
