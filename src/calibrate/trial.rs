//! The trial itself: more workers step by step under the load, each looked at while it serves.

use std::fmt;
use std::time::{Duration, Instant};

use super::curve::{End, Limits, Next, Step, next};
use super::external::External;
use super::launcher::Launcher;
use super::load::{Clients, Target, printed_rate};
use super::room::left;
use super::watch::{Cut, Measured, SOON, WARM_UP, Watch};
use crate::control::Status;
use crate::probe::{Gauge, Host, Reading, oom_levels};

/// Under load before anything is measured, while memory still rises: [`WARM_UP`] at least.
const LONGEST_WARM_UP: Duration = Duration::from_secs(12);
/// The longest until so many workers serve.
const READY: Duration = Duration::from_mins(2);
/// The longest that a load of the user's may take for one step.
const LONGEST_LOAD: Duration = Duration::from_mins(5);

/// The load.
pub(crate) enum Load {
    BuiltIn { target: Target, path: String, clients: u32, time: Duration },
    Command { command: String, target: Option<Target>, path: String },
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn { target, path, clients, .. } => {
                write!(f, "GET {target}{path} by {clients} clients")
            }
            Self::Command { command, .. } => write!(f, "{command}"),
        }
    }
}

/// A calibration under way.
pub(crate) struct Trial<'a> {
    pub(crate) launcher: &'a mut Launcher,
    pub(crate) host: &'a Host,
    pub(crate) gauge: &'a Gauge,
    pub(crate) load: &'a Load,
    pub(crate) limits: Limits,
}

/// What came out.
pub(crate) struct Outcome {
    pub(crate) steps: Vec<Step>,
    pub(crate) end: End,
    /// Whether the rates are requests, and not CPUs.
    pub(crate) counts_requests: bool,
    /// Which worker ended by itself, how, and what was said last.
    pub(crate) lost: Option<String>,
}

impl Trial<'_> {
    /// Goes on while more workers fit and help; `told` hears of each step.
    pub(crate) async fn run(
        &mut self,
        told: &mut dyn FnMut(&Step, bool),
    ) -> Result<Outcome, String> {
        // It answers from then on.
        self.launcher.status().await?;
        let mut steps = Vec::new();
        let mut clients = None;
        let mut counts_requests = None;
        let mut lost = None;
        loop {
            let workers = match next(&steps, self.limits) {
                Next::End(end) => {
                    let counts_requests = counts_requests.unwrap_or(true);
                    return Ok(Outcome { steps, end, counts_requests, lost });
                }
                Next::Try(workers) => workers,
            };
            let mut watch = Watch::new();
            if !self.grow(workers, &mut watch).await? {
                let loaded = clients.is_some();
                lost = self.lost(&watch, loaded, steps.is_empty()).await?;
                let step = watch.step(workers, Measured::default());
                told(&step, counts_requests.unwrap_or(true));
                steps.push(step);
                continue;
            }
            let mut loaded = true;
            let measured = match self.load {
                Load::BuiltIn { target, path, clients: many, time } => {
                    if clients.is_none() && !target.answers().await {
                        return Err(nobody(target, self.launcher));
                    }
                    let clients =
                        clients.get_or_insert_with(|| Clients::start(target, path, *many));
                    let time = *time;
                    self.under_clients(clients, time, &mut watch).await?
                }
                Load::Command { command, target, path } => {
                    // Workers that are still loading would seem to grow under the load.
                    self.settle(&mut watch).await?;
                    loaded = watch.cut.is_none();
                    if loaded {
                        let load = External::start(command, target.as_ref(), path, workers);
                        let load =
                            load.map_err(|error| format!("cannot run sh for --load: {error}"))?;
                        self.under_command(load, &mut watch).await?
                    } else {
                        Measured::default()
                    }
                }
            };
            let counts = *counts_requests.get_or_insert(measured.counts_requests);
            if counts && !measured.counts_requests && watch.cut.is_none() {
                return Err(
                    "the load printed its requests a second at first and does not any more"
                        .to_owned(),
                );
            }
            lost = self.lost(&watch, loaded, steps.is_empty()).await?;
            let step = watch.step(workers, measured);
            if step.rate <= 0.0 && !step.cut {
                return Err(self.silent(&measured));
            }
            told(&step, counts);
            steps.push(step);
        }
    }

    /// Who ended by itself in this step, if anybody did; an error where there is `nothing` from before it.
    async fn lost(
        &self,
        watch: &Watch,
        loaded: bool,
        nothing: bool,
    ) -> Result<Option<String>, String> {
        let Some(Cut::Ended(who)) = &watch.cut else { return Ok(None) };
        // What it said may still be on its way.
        tokio::time::sleep(SOON).await;
        let under = if loaded { "under load" } else { "before the load" };
        let last = self.launcher.last_words();
        let said = if last.is_empty() { last } else { format!("; the workers said last:\n{last}") };
        let told = format!("{who} {under}{said}");
        if nothing { Err(told) } else { Ok(Some(told)) }
    }

    fn silent(&self, measured: &Measured) -> String {
        let last = self.launcher.last_words();
        let failed = measured.failed;
        let what = match self.load {
            Load::BuiltIn { target, path, .. } => {
                format!(
                    "no request to {target}{path} was answered well ({failed} failed); give a --path that answers, or a --load"
                )
            }
            Load::Command { .. } => {
                "the load made the workers do nothing; it finds their address in URL and PORT"
                    .to_owned()
            }
        };
        if last.is_empty() { what } else { format!("{what}; the workers said last:\n{last}") }
    }

    /// Brings the fleet to so many workers; false where the step is broken off.
    async fn grow(&mut self, workers: u32, watch: &mut Watch) -> Result<bool, String> {
        self.launcher.scale(workers).await?;
        let begin = Instant::now();
        loop {
            let status = self.look(watch).await?;
            if watch.cut.is_some() {
                return Ok(false);
            }
            let serving = status.workers.iter().filter(|worker| worker.ready).count();
            if status.ready && serving == workers as usize && status.target == workers {
                return Ok(true);
            }
            if begin.elapsed() > READY {
                return Err(format!(
                    "{serving} of {workers} workers serve after {} s",
                    READY.as_secs()
                ));
            }
            tokio::time::sleep(SOON).await;
        }
    }

    fn now(&self) -> Reading {
        self.gauge.read(self.host)
    }

    /// One look at everything. Where memory runs low, all but one worker go at once.
    async fn look(&mut self, watch: &mut Watch) -> Result<Status, String> {
        let status = self.launcher.status().await?;
        let kills = oom_levels(self.host).first().map_or(0, |own| own.kills);
        watch.see(&status, left(&self.gauge.read(self.host)), kills);
        if watch.cut.is_some() {
            self.launcher.scale(1).await?;
        }
        Ok(status)
    }

    /// Waits until memory stands still, but not for ever.
    async fn settle(&mut self, watch: &mut Watch) -> Result<(), String> {
        let begin = Instant::now();
        while begin.elapsed() < WARM_UP || (begin.elapsed() < LONGEST_WARM_UP && !watch.is_steady())
        {
            self.look(watch).await?;
            if watch.cut.is_some() {
                break;
            }
            tokio::time::sleep(watch.pause()).await;
        }
        Ok(())
    }

    async fn under_clients(
        &mut self,
        clients: &Clients,
        time: Duration,
        watch: &mut Watch,
    ) -> Result<Measured, String> {
        self.settle(watch).await?;
        if watch.cut.is_some() {
            return Ok(Measured::default());
        }
        let before = (clients.answered(), clients.failed());
        let (begin, throttled) = (Instant::now(), self.now());
        let status = self.look(watch).await?;
        watch.begin(&status);
        // A server that is slow gets more time to show its rate.
        let few = || clients.answered() - before.0 < FEW && begin.elapsed() < LONGEST_WARM_UP;
        while begin.elapsed() < time || few() {
            self.look(watch).await?;
            if watch.cut.is_some() {
                break;
            }
            tokio::time::sleep(watch.pause().min(time / 2)).await;
        }
        let took = begin.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "so many answers never come")]
        let rate = (clients.answered() - before.0) as f64 / took;
        Ok(Measured {
            rate,
            failed: clients.failed() - before.1,
            cpus: watch.cpus(took),
            throttled: self.now().throttled_since(&throttled),
            counts_requests: true,
        })
    }

    async fn under_command(
        &mut self,
        mut load: External,
        watch: &mut Watch,
    ) -> Result<Measured, String> {
        let (begin, throttled) = (Instant::now(), self.now());
        let status = self.look(watch).await?;
        watch.begin(&status);
        let ended = loop {
            self.look(watch).await?;
            if watch.cut.is_some() {
                return Ok(Measured::default());
            }
            if let Some(ended) = load.ended().map_err(|error| error.to_string())? {
                break ended;
            }
            if begin.elapsed() > LONGEST_LOAD {
                return Err(format!(
                    "the load has not ended after {} s; give one that does, such as: wrk -d10s $URL",
                    LONGEST_LOAD.as_secs()
                ));
            }
            tokio::time::sleep(watch.pause()).await;
        };
        let took = begin.elapsed().as_secs_f64();
        let text = load.text().await;
        if !ended.success() {
            // It may be that it found nobody there.
            self.look(watch).await?;
            if watch.cut.is_some() {
                return Ok(Measured::default());
            }
            return Err(format!("the load ended with {ended}:\n{}", text.trim_end()));
        }
        let cpus = watch.cpus(took);
        let rate = printed_rate(&text);
        Ok(Measured {
            rate: rate.unwrap_or(cpus),
            failed: 0,
            cpus,
            throttled: self.now().throttled_since(&throttled),
            counts_requests: rate.is_some(),
        })
    }
}

/// Fewer answers than that say little.
const FEW: u64 = 20;

fn nobody(target: &Target, launcher: &Launcher) -> String {
    let last = launcher.last_words();
    let why = format!("nobody listens at {target}; give the address of the workers by --listen");
    if last.is_empty() { why } else { format!("{why}; they said last:\n{last}") }
}
