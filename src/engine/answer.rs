//! What the control interface asks, answered from snapshots or passed to the fleet.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::bail;
use serde_json::json;
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::{debug, warn};

use super::measure::{part, round};
use super::spawn::send;
use super::{Config, Engine, resume, usage};
use crate::control::{
    self, Adapted, Ask, Backend, Call, Connections, LastExit, Memory, Place, Reply, RolloutStatus,
    Scale, SlotStatus, Socket, Status, WorkerStatus,
};
use crate::fleet::{Change, Event, FleetView, Kind, Note, SlotView, Time, Urgency, WorkerKey};
use crate::sockets::{self, Share};

/// Calls that wait to be answered; more than anybody makes.
const WAITING: usize = 64;
/// Pieces of output that wait for a slow follower.
const OUTPUT: usize = 64;

/// Our end of the interface.
pub(super) struct Control {
    pub(super) calls: mpsc::Receiver<Call>,
    pub(super) output: broadcast::Sender<(u32, Arc<[u8]>)>,
    /// The sizing report, as JSON.
    pub(super) plan: Arc<RwLock<String>>,
    /// Goes with its file; none where it is off.
    pub(super) socket: Option<Socket>,
    /// Those who wait for the end of a rollout.
    waiters: Vec<oneshot::Sender<Reply>>,
    /// How the last rollout ended.
    outcome: Option<Result<(), String>>,
}

impl Control {
    /// Begins to serve. Where none of the usual places can be had the run goes on without, and says so;
    /// a place that was asked for must be had.
    pub(super) fn open(config: &Config, before: Option<&(i32, PathBuf)>) -> anyhow::Result<Self> {
        let (sender, calls) = mpsc::channel(WAITING);
        let output = broadcast::Sender::new(OUTPUT);
        let plan = Arc::new(RwLock::new(config.sized.plan.clone()));
        let handed_down = before
            .and_then(|(fd, path)| Socket::adopt(resume::own(Some(*fd))?, path, &config.control));
        let bound = || Socket::bind(&config.control);
        let socket =
            match (handed_down.map_or_else(bound, |socket| Ok(Some(socket))), &config.control) {
                (Ok(socket), _) => socket,
                (Err(error), Place::Path(_)) => bail!("cannot make the control socket {error}"),
                (Err(tried), _) => {
                    warn!(
                        event = "no_control",
                        "the control interface is off, as no socket could be made: {tried}"
                    );
                    None
                }
            };
        if let Some(socket) = &socket {
            debug!(event = "control", path = %socket.path.display(), "control socket: {}", socket.path.display());
            let backend =
                Backend { calls: sender, output: output.clone(), plan: Arc::clone(&plan) };
            match socket.listener.try_clone() {
                Ok(listener) => {
                    tokio::task::spawn_local(control::serve(listener, backend));
                }
                Err(error) => warn!(event = "no_control", "the control interface is off: {error}"),
            }
        }
        Ok(Self { calls, output, plan, socket, waiters: Vec::new(), outcome: None })
    }

    /// Tells those who wait for a rollout how it ended.
    pub(super) fn note(&mut self, note: Note) {
        let outcome = match note {
            Note::RolloutDone { .. } => Ok(()),
            Note::RolloutFailed { kind, slot, why } => Err(format!(
                "{}; the {} stopped and the others stay as they are",
                super::say::failure(slot, why),
                kind.name()
            )),
            Note::RolloutCut { kind } => {
                Err(format!("the {} was broken off by a stop or another one", kind.name()))
            }
            _ => return,
        };
        for waiter in self.waiters.drain(..) {
            // Who asked may have gone.
            let _ = waiter.send(told(outcome.clone()));
        }
        self.outcome = Some(outcome);
    }
}

fn json(value: &impl serde::Serialize) -> Reply {
    match serde_json::to_value(value) {
        Ok(value) => Reply::Json(value),
        Err(error) => Reply::Refused(500, error.to_string()),
    }
}

fn told(outcome: Result<(), String>) -> Reply {
    match outcome {
        Ok(()) => Reply::Json(json!({ "done": true })),
        Err(why) => Reply::Refused(409, why),
    }
}

impl Engine {
    pub(super) fn answer(&mut self, ask: &Ask, answer: oneshot::Sender<Reply>) {
        let changes = matches!(ask, Ask::Scale(_) | Ask::Reload | Ask::Restart(_) | Ask::Upgrade);
        let reply = match ask {
            _ if changes && self.fleet.is_ending() => {
                Reply::Refused(409, "the launcher is stopping".to_owned())
            }
            Ask::Status => {
                self.look_when_asked();
                json(&self.status())
            }
            Ask::History => json(&self.history()),
            Ask::Scale(scale) => self.scale(*scale),
            Ask::Reload | Ask::Restart(_) => return self.roll(ask, answer),
            Ask::Stop => {
                self.tell(Event::Stop(Urgency::Graceful));
                Reply::Json(json!({ "stopping": true }))
            }
            Ask::Signal { number, worker } => self.pass_signal(*number, *worker),
            Ask::Send { message, worker } => self.send(message, *worker),
            Ask::Logs(slot) => self.logs(*slot),
            Ask::Upgrade => return self.upgrade(Some(answer)),
        };
        // Who asked may have gone.
        let _ = answer.send(reply);
    }

    fn scale(&mut self, scale: Scale) -> Reply {
        let before = self.fleet.target();
        let wanted = match scale {
            Scale::To(workers) => workers,
            Scale::By(more) => before.saturating_add_signed(more),
            Scale::Auto => self.config.sized.bounds.workers,
        };
        if scale == Scale::Auto {
            // What was learnt is forgotten, too.
            let bounds = self.config.sized.bounds;
            self.tell(Event::Planned { bounds, at_once: true });
            self.tell(Event::Free);
        } else {
            self.tell(Event::ResizeTo(wanted));
        }
        let workers = self.fleet.target();
        let policy = &self.config.policy;
        let note = (workers != wanted).then(|| {
            format!(
                "{wanted} is outside of {} to {} (--min-workers, --max-workers)",
                policy.least, policy.most
            )
        });
        Reply::Json(json!({ "workers": workers, "before": before, "note": note }))
    }

    /// Answered when the rollout is over.
    fn roll(&mut self, ask: &Ask, answer: oneshot::Sender<Reply>) {
        self.control.outcome = None;
        if let Ask::Restart(id) = ask {
            if !self.fleet.view(self.now()).slots.iter().any(|slot| slot.id == *id) {
                let _ = answer.send(Reply::Refused(404, format!("there is no worker {id}")));
                return;
            }
            self.renew(Kind::Restart, Some(*id));
        } else if let Err(why) = self.reload() {
            let _ = answer.send(Reply::Refused(409, why));
            return;
        }
        if self.fleet.view(self.now()).rollout.is_some() {
            self.control.waiters.push(answer);
        } else {
            let _ = answer.send(told(self.control.outcome.take().unwrap_or(Ok(()))));
        }
    }

    fn pass_signal(&self, number: i32, worker: Option<u32>) -> Reply {
        let running = self.running.values().filter(|running| !running.reaped);
        let mut count = 0;
        for running in running.filter(|running| worker.is_none_or(|id| id == running.slot)) {
            send(running.pid, number);
            count += 1;
        }
        match worker.filter(|_| count == 0) {
            Some(id) => Reply::Refused(404, format!("there is no worker {id}")),
            None => Reply::Json(json!({ "signalled": count })),
        }
    }

    fn send(&self, message: &serde_json::Value, worker: Option<u32>) -> Reply {
        let here = self.running.values().filter(|running| !running.reaped);
        if let Some(id) = worker.filter(|id| !here.clone().any(|running| running.slot == *id)) {
            return Reply::Refused(404, format!("there is no worker {id}"));
        }
        match self.sharing.hub() {
            Some(hub) => Reply::Json(json!({ "sent": hub.send(message, worker) })),
            None => Reply::Refused(
                409,
                "the workers have no channel for messages; start with --ipc on".to_owned(),
            ),
        }
    }

    fn logs(&self, slot: Option<u32>) -> Reply {
        let kept = |slot: &u32| self.rings.get(slot).map(|ring| ring.borrow().lines());
        let direct = self.running.values().any(|running| running.streams.is_empty());
        match slot {
            Some(id) if direct => Reply::Refused(
                409,
                format!(
                    "worker {id} writes straight to our own output, so nothing of it is kept; with two workers or more, or with --prefix on, it is"
                ),
            ),
            Some(id) => match kept(&id) {
                Some(lines) => Reply::Logs(lines),
                None => Reply::Refused(404, format!("there is no worker {id}")),
            },
            None => {
                let all = self.rings.keys().filter_map(|id| Some((*id, kept(id)?)));
                Reply::Logs(all.flat_map(|(id, lines)| control::prefixed(id, &lines)).collect())
            }
        }
    }

    fn connections(&self, worker: WorkerKey) -> Option<Connections> {
        let sockets::Connections { accepted, active, failed } = self.sharing.connections(worker)?;
        // Who hands a connection over does not hear of its end.
        let active = (self.config.share != Share::Node).then_some(active);
        Some(Connections { accepted, active, failed })
    }

    /// How everything stands.
    pub(super) fn status(&self) -> Status {
        let now = self.now();
        let view = self.fleet.view(now);
        let used = usage::by_group();
        let workers = view.workers.iter().filter_map(|worker| {
            let running = self.running.get(&worker.key)?;
            let used = used.get(&running.pid.as_raw()).copied().unwrap_or_default();
            let slot = view.slots.iter().find(|slot| slot.id == worker.slot);
            let known = self.measure.of(worker.key);
            let own = known.own.min(used.shared);
            let private = part(used.private, known.share.unwrap_or(1.0)) + own;
            Some(WorkerStatus {
                id: worker.slot,
                pid: running.pid.as_raw(),
                state: worker.state.to_owned(),
                ready: worker.ready,
                generation: worker.generation,
                uptime_seconds: seconds(now.saturating_sub(worker.started)),
                restarts: slot.map_or(0, |slot| slot.restarts),
                memory: Memory {
                    private_bytes: private,
                    shared_bytes: used.shared - own,
                    peak_bytes: known.peak.map(|peak| peak.max(private)),
                    p95_bytes: known.p95,
                    limit_bytes: self.isolation.limit(worker.key),
                },
                cpu_seconds: seconds(used.cpu),
                cpu_now: known.cpu.map(round),
                cpu_busiest: known.busiest.map(round),
                delayed: known.delayed.map(round),
                processes: used.processes,
                connections: self.connections(worker.key),
                status_text: running.status.clone(),
                last_exit: slot.and_then(|slot| last_exit(slot, now)),
            })
        });
        let vacant = view.slots.iter().filter(|slot| slot.state != "filled");
        let vacant = vacant.map(|slot| SlotStatus {
            id: slot.id,
            state: slot.state.to_owned(),
            retry_in_seconds: slot.retry_at.map(|at| seconds(at.saturating_sub(now))),
            restarts: slot.restarts,
            last_exit: last_exit(slot, now),
        });
        Status {
            schema: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.config.name.clone(),
            pid: std::process::id(),
            command: self.config.words.iter().map(|w| w.to_string_lossy().into_owned()).collect(),
            uptime_seconds: seconds(now),
            ready: view.is_ready(),
            stopping: view.stopping,
            target: view.target,
            planned: view.planned,
            pinned: view.pinned,
            adapted: view.change.and_then(|change| adapted(change, now)),
            upgrades: self.upgrades,
            upgrade_error: self.upgrade_error.clone(),
            bound_by: self.config.sized.bound_by.name().to_owned(),
            isolation: self.isolation.status(),
            rollout: rollout(&view),
            measured: self.measure.status(now),
            workers: workers.collect(),
            vacant: vacant.collect(),
        }
    }
}

/// The last change that was made by what was measured.
fn adapted(change: Change, now: Time) -> Option<Adapted> {
    let Change { at, from, to, why } = change;
    let why = super::reasons::why(why?);
    Some(Adapted { from, to, why, seconds_ago: seconds(now.saturating_sub(at)) })
}

fn rollout(view: &FleetView) -> Option<RolloutStatus> {
    view.rollout.map(|(kind, left)| RolloutStatus { kind: kind.name().to_owned(), left })
}

fn last_exit(slot: &SlotView, now: Time) -> Option<LastExit> {
    slot.last_end.map(|(end, at)| LastExit {
        status: end.how.status(),
        text: end.how.to_string(),
        asked: end.asked,
        seconds_ago: seconds(now.saturating_sub(at)),
    })
}

/// To the millisecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
