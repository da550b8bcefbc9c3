//! What others choose.

use throng_rs::plan::{nodejs, python};

use crate::boxes::Size;

/// A rule that gives a number without looking at what runs.
pub(crate) struct Method {
    pub(crate) name: &'static str,
    pub(crate) number: fn(&Size) -> u32,
}

pub(crate) const METHODS: &[Method] = &[
    Method { name: "CPUs of the host", number: |_| host() },
    Method { name: "quota, up", number: |size| whole(size.cpus.ceil()) },
    Method { name: "quota, down", number: |size| whole(size.cpus.floor()) },
    Method { name: "2n+1 (gunicorn)", number: |_| 2 * host() + 1 },
    Method { name: "heroku/nodejs", number: |size| small(nodejs(size.memory, None)) },
    Method { name: "heroku/python", number: |size| small(python(size.memory, host().into())) },
];

fn host() -> u32 {
    let cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    cpus.ok().flatten().and_then(|cpus| cpus.try_into().ok()).unwrap_or(1)
}

fn small(number: u64) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few CPUs")]
fn whole(cpus: f64) -> u32 {
    cpus.max(1.0) as u32
}
