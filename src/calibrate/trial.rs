//! The trial itself: more workers step by step under the load, each looked at while it serves.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::curve::{End, Limits, Next, Step, next};
use super::launcher::Launcher;
use super::load::{Clients, External, Target, printed_rate};
use super::room::{Left, left};
use crate::control::Status;
use crate::probe::{Gauge, Host, Reading};

/// Between two looks: each costs some milliseconds of the CPU that the workers would have, so they are frequent
/// only where memory may run low before the next one.
const LOOK: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(250);
/// Under load before anything is measured, and the longest while memory still rises.
const WARM_UP: Duration = Duration::from_secs(2);
const LONGEST_WARM_UP: Duration = Duration::from_secs(12);
/// Memory that rises by less than that in [`WARM_UP`] stands still.
const STEADY: f64 = 0.03;
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
    pub(crate) load: Load,
    pub(crate) limits: Limits,
}

/// What came out.
pub(crate) struct Outcome {
    pub(crate) steps: Vec<Step>,
    pub(crate) end: End,
    /// Whether the rates are requests, and not CPUs.
    pub(crate) counts_requests: bool,
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
        loop {
            let workers = match next(&steps, self.limits) {
                Next::End(end) => {
                    let counts_requests = counts_requests.unwrap_or(true);
                    return Ok(Outcome { steps, end, counts_requests });
                }
                Next::Try(workers) => workers,
            };
            let mut watch = Watch::new();
            if !self.grow(workers, &mut watch).await? {
                let step = watch.step(workers, Measured::default(), true);
                told(&step, counts_requests.unwrap_or(true));
                steps.push(step);
                continue;
            }
            let measured = match &self.load {
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
                    let (command, target, path) = (command.clone(), target.clone(), path.clone());
                    // Workers that are still loading would seem to grow under the load.
                    self.settle(&mut watch).await?;
                    let load = External::start(&command, target.as_ref(), &path, workers);
                    let load =
                        load.map_err(|error| format!("cannot run sh for --load: {error}"))?;
                    self.under_command(load, &mut watch).await?
                }
            };
            let counts = *counts_requests.get_or_insert(measured.counts_requests);
            if counts && !measured.counts_requests && !watch.cut {
                return Err(
                    "the load printed its requests a second at first and does not any more"
                        .to_owned(),
                );
            }
            let cut = watch.cut;
            let step = watch.step(workers, measured, cut);
            if step.rate <= 0.0 && !cut {
                return Err(self.silent(&measured));
            }
            told(&step, counts);
            steps.push(step);
        }
    }

    fn silent(&self, measured: &Measured) -> String {
        let last = self.launcher.last_words();
        let failed = measured.failed;
        let what = match &self.load {
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

    /// Brings the fleet to so many workers; false where memory does not allow it.
    async fn grow(&mut self, workers: u32, watch: &mut Watch) -> Result<bool, String> {
        self.launcher.scale(workers).await?;
        let begin = Instant::now();
        loop {
            let status = self.look(watch).await?;
            if watch.cut {
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
        watch.see(&status, left(&self.gauge.read(self.host)));
        if watch.cut {
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
            if watch.cut {
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
        if watch.cut {
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
            if watch.cut {
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
            if watch.cut {
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

/// What the load showed.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    rate: f64,
    failed: u64,
    cpus: f64,
    throttled: f64,
    counts_requests: bool,
}

/// What was seen of one step.
#[derive(Debug)]
struct Watch {
    begin: Instant,
    /// Of each worker: when and how much private memory.
    private: BTreeMap<i32, Vec<(Duration, u64)>>,
    /// The most that each had.
    peaks: BTreeMap<i32, u64>,
    /// When, and how much by all.
    totals: Vec<(Duration, u64)>,
    used: u64,
    room: u64,
    /// CPU seconds of each at the beginning of what is measured, and now.
    cpu: [BTreeMap<i32, f64>; 2],
    measured_from: Duration,
    restarts: Option<u32>,
    cut: bool,
}

impl Watch {
    fn new() -> Self {
        Self {
            begin: Instant::now(),
            private: BTreeMap::new(),
            peaks: BTreeMap::new(),
            totals: Vec::new(),
            used: 0,
            room: u64::MAX,
            cpu: [BTreeMap::new(), BTreeMap::new()],
            measured_from: Duration::ZERO,
            restarts: None,
            cut: false,
        }
    }

    fn see(&mut self, status: &Status, left: Option<Left>) {
        let at = self.begin.elapsed();
        let mut total = 0;
        for worker in &status.workers {
            let private = worker.memory.private_bytes;
            total += private;
            self.private.entry(worker.pid).or_default().push((at, private));
            // Also what was there between two looks.
            let peak = worker.memory.peak_bytes.unwrap_or(0).max(private);
            let most = self.peaks.entry(worker.pid).or_default();
            *most = peak.max(*most);
        }
        self.totals.push((at, total));
        self.cpu[1] = cpu(status);
        match left {
            // What others take and give back there is no matter of ours.
            Some(left) if left.machine => self.used = self.used.max(total),
            Some(left) => self.used = self.used.max(left.used),
            None => self.used = self.used.max(total),
        }
        self.room = self.room.min(left.map_or(u64::MAX, |left| left.room));
        let restarts: u32 = status.workers.iter().map(|worker| worker.restarts).sum();
        let restarts = restarts + status.vacant.iter().map(|slot| slot.restarts).sum::<u32>();
        let lost = restarts > *self.restarts.get_or_insert(restarts);
        // Who ends now ends for memory, or cannot serve so many.
        self.cut |= lost || left.is_some_and(|left| left.tight);
    }

    fn begin(&mut self, status: &Status) {
        self.measured_from = self.begin.elapsed();
        self.cpu[0] = cpu(status);
    }

    /// Until the next look.
    fn pause(&self) -> Duration {
        if self.room < self.used / 2 { SOON } else { LOOK }
    }

    /// Whether memory has stood still for a while.
    fn is_steady(&self) -> bool {
        let Some((now, last)) = self.totals.last() else { return false };
        let before = self.totals.iter().rfind(|(at, _)| *at + WARM_UP <= *now);
        before.is_some_and(|(_, before)| ratio(*last, *before) <= 1.0 + STEADY)
    }

    /// CPUs used since the beginning of what is measured.
    fn cpus(&self, took: f64) -> f64 {
        let used = self.cpu[1]
            .iter()
            .map(|(pid, now)| (now - self.cpu[0].get(pid).copied().unwrap_or(0.0)).max(0.0));
        used.sum::<f64>() / took.max(0.001)
    }

    /// Of one worker a minute: by how much its peak of the second half is above that of the first.
    fn growth(&self) -> u64 {
        let to = self.totals.last().map_or(Duration::ZERO, |(at, _)| *at);
        let half = to.saturating_sub(self.measured_from) / 2;
        let middle = self.measured_from + half;
        // In less than that a single request shows as growth.
        if half < Duration::from_millis(1500) {
            return 0;
        }
        let peak = |seen: &[(Duration, u64)], from: Duration, to: Duration| {
            seen.iter().filter(|(at, _)| (from..=to).contains(at)).map(|(_, bytes)| *bytes).max()
        };
        let grown = self.private.values().filter_map(|seen| {
            let (first, second) =
                (peak(seen, self.measured_from, middle)?, peak(seen, middle, to)?);
            Some(second.saturating_sub(first))
        });
        let grown: Vec<u64> = grown.collect();
        let each = grown.iter().sum::<u64>() / (grown.len() as u64).max(1);
        let millis = u64::try_from(half.as_millis()).unwrap_or(u64::MAX).max(1);
        each.saturating_mul(60_000) / millis
    }

    /// The peak that 95 of 100 workers keep below.
    fn peak(&self) -> u64 {
        let mut peaks: Vec<u64> = self.peaks.values().copied().collect();
        peaks.sort_unstable();
        let at = (peaks.len() * 95).div_ceil(100).saturating_sub(1);
        peaks.get(at).copied().unwrap_or(0)
    }

    fn step(&self, workers: u32, measured: Measured, cut: bool) -> Step {
        Step {
            workers,
            rate: measured.rate,
            failed: measured.failed,
            private: self.peak(),
            used: self.used,
            room: self.room,
            cpus: measured.cpus,
            throttled: measured.throttled,
            growth: self.growth(),
            cut,
        }
    }
}

fn cpu(status: &Status) -> BTreeMap<i32, f64> {
    status.workers.iter().map(|worker| (worker.pid, worker.cpu_seconds)).collect()
}

#[expect(clippy::cast_precision_loss, reason = "only compared")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(seen: &[&[u64]]) -> Watch {
        let at = |index: usize| Duration::from_secs(index as u64);
        let mut watch = Watch::new();
        for (pid, bytes) in seen.iter().enumerate() {
            let seen = bytes.iter().enumerate().map(|(index, bytes)| (at(index), *bytes));
            let pid = i32::try_from(pid).unwrap();
            watch.private.insert(pid, seen.collect());
            watch.peaks.insert(pid, *bytes.iter().max().unwrap());
        }
        let most = seen.iter().map(|seen| seen.len()).max().unwrap();
        let total = |index: usize| seen.iter().map(|seen| seen[index]).sum();
        watch.totals = (0..most).map(|index| (at(index), total(index))).collect();
        watch
    }

    #[test]
    fn growth_is_of_the_peaks() {
        // It breathes, as with requests that come and go.
        assert_eq!(watch(&[&[10, 50, 10, 50, 10, 50, 10, 50, 10]]).growth(), 0);
        // Both by 10 a second.
        let growing: &[u64] = &[10, 20, 30, 40, 50, 60, 70, 80, 90];
        assert_eq!(watch(&[growing, growing]).growth(), 600);
    }

    #[test]
    fn one_of_twenty_may_be_dearer() {
        let cheap: &[u64] = &[5, 10];
        let mut workers = vec![cheap; 19];
        workers.push(&[5, 1000]);
        assert_eq!(watch(&workers).peak(), 10);
        assert_eq!(watch(&[cheap, &[7, 20]]).peak(), 20);
    }

    #[test]
    fn steady_is_what_rises_no_more() {
        assert!(!watch(&[&[100]]).is_steady());
        assert!(!watch(&[&[100, 110, 120, 130]]).is_steady());
        assert!(watch(&[&[100, 110, 120, 121, 121]]).is_steady());
    }
}
