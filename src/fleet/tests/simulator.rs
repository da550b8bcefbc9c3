//! A box with servers in it, for the controller to be tried on: a closed model of clients that wait for
//! their answers, workers that need CPU, time and memory for each, and a limit above which the kernel kills.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a model"
)]

use std::collections::BTreeMap;

use super::*;

pub(super) const MIB: u64 = 1 << 20;
/// Nothing shorter happens here.
const TICK: Duration = Duration::from_millis(100);

/// A server, as one worker of it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    /// For one request: CPU seconds, and seconds of waiting for somebody else.
    pub(super) cpu: f64,
    pub(super) wait: f64,
    /// Many at a time in one thread; else one at a time.
    pub(super) event_loop: bool,
    /// Private memory of an idle worker, MiB.
    pub(super) idle: f64,
    /// What is added within some times `requests` requests.
    pub(super) warm: f64,
    pub(super) requests: f64,
    /// What each request takes while it is under way.
    pub(super) request: f64,
    /// What each second under load leaves behind.
    pub(super) leak: f64,
    /// CPU seconds of a start.
    pub(super) start: f64,
    /// Accepts nothing, and does nothing.
    pub(super) hangs: bool,
}

pub(super) const SERVER: Server = Server {
    cpu: 0.02,
    wait: 0.0,
    event_loop: false,
    idle: 12.0,
    warm: 3.0,
    requests: 60.0,
    request: 0.0,
    leak: 0.0,
    start: 0.15,
    hangs: false,
};

/// What there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) cpus: f64,
    pub(super) memory: u64,
    /// What is used beside the workers, MiB.
    pub(super) base: f64,
}

#[derive(Clone, Copy, Debug)]
struct Process {
    /// CPU seconds that its start still needs.
    starting: f64,
    since: Time,
    /// When it will have finished what it has.
    leaves: Option<Time>,
    memory: f64,
    warmth: f64,
    peak: f64,
    cpu: f64,
    busy: f64,
}

/// Everything, with its clock.
pub(super) struct Sim {
    pub(super) bench: Bench,
    server: Server,
    pub(super) limits: Limits,
    /// How many clients there are at a moment.
    clients: Box<dyn Fn(f64) -> f64>,
    processes: BTreeMap<WorkerKey, Process>,
    /// More than these at once do not come to serve: there are no more ports, locks, descriptors.
    pub(super) places: usize,
    random: fastrand::Rng,
    next_look: Time,
    looked: Time,
    used_before: f64,
    cpu: f64,
    queue: f64,
    busy_share: f64,
    /// When the number changed, and to what.
    pub(super) changes: Vec<(Time, Note)>,
    pub(super) recycled: u32,
    pub(super) killed: Option<Time>,
    /// Requests served, and the seconds for which clients had nobody who serves.
    pub(super) served: f64,
    pub(super) unserved: f64,
}

pub(super) fn bounds(workers: u32, by_cpu: u32) -> Bounds {
    Bounds {
        workers,
        by_cpu,
        most: 10_000,
        told: false,
        share: Some(128 * MIB),
        budget: Some(0),
        limit: None,
        headroom: None,
    }
}

impl Sim {
    pub(super) fn new(
        server: Server,
        limits: Limits,
        bounds: Bounds,
        policy: Policy,
        clients: impl Fn(f64) -> f64 + 'static,
    ) -> Self {
        let seed = policy.seed;
        let fleet = Fleet::new(policy, bounds);
        let mut sim = Self {
            bench: Bench { fleet, now: Time::ZERO, log: Vec::new() },
            server,
            limits,
            clients: Box::new(clients),
            processes: BTreeMap::new(),
            places: usize::MAX,
            random: fastrand::Rng::with_seed(seed),
            next_look: 5 * SECOND,
            looked: Time::ZERO,
            used_before: limits.base,
            cpu: 0.0,
            queue: 0.0,
            busy_share: 0.0,
            changes: Vec::new(),
            recycled: 0,
            killed: None,
            served: 0.0,
            unserved: 0.0,
        };
        sim.event(Event::Start);
        sim
    }

    pub(super) fn workers(&self) -> u32 {
        self.bench.fleet.target()
    }

    pub(super) fn event(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.bench.fleet.step(self.bench.now, event) {
                self.perform(action, &mut events);
            }
        }
    }

    fn perform(&mut self, action: Action, events: &mut Vec<Event>) {
        let now = self.bench.now;
        match action {
            Action::Spawn(to) => {
                let fails = self.processes.len() >= self.places;
                let process = Process {
                    starting: self.server.start,
                    since: now,
                    leaves: fails.then_some(now + SECOND / 5),
                    memory: self.server.idle / 2.0,
                    warmth: 0.0,
                    peak: 0.0,
                    cpu: 0.0,
                    busy: 0.0,
                };
                self.processes.insert(to.worker, process);
            }
            Action::Drain(key) | Action::AskLeader(key) => {
                let last = Duration::from_secs_f64(0.2 + self.server.cpu + self.server.wait);
                self.processes.get_mut(&key).unwrap().leaves.get_or_insert(now + last);
            }
            Action::Kill(key) => self.processes.get_mut(&key).unwrap().leaves = Some(now),
            Action::Recycle { slot, fresh } => {
                let needs = fresh as f64 / MIB as f64 * 1.25;
                let surge = u32::from(self.left() >= needs);
                self.recycled += 1;
                events.push(Event::Renew { kind: Kind::Grown, slot: Some(slot), surge });
            }
            Action::Say(note @ (Note::Adapted { .. } | Note::Resized { .. })) => {
                self.promise(note);
                self.changes.push((now, note));
            }
            _ => {}
        }
    }

    /// Never above what measured memory allows: all at once with their peaks, and as many more as the largest. A look
    /// does not meet all requests, so it is not exact.
    fn promise(&self, note: Note) {
        let Note::Adapted { from, to, why } = note else { return };
        if to <= from {
            return;
        }
        let shown = |one: &Process| one.peak.max(one.memory);
        let largest = self.processes.values().map(shown).fold(0.0, f64::max);
        let all = self.limits.base + self.processes.values().map(shown).sum::<f64>();
        let then = all + f64::from(to - from) * largest;
        assert!(then <= self.mib() * 0.93, "{then} MiB by {from} -> {to}: {why:?}");
    }

    fn mib(&self) -> f64 {
        let limit = self.limits.memory as f64;
        limit / MIB as f64
    }

    fn used(&self) -> f64 {
        let each = |one: &Process| one.memory + one.busy * self.server.request;
        self.limits.base + self.processes.values().map(each).sum::<f64>()
    }

    fn left(&self) -> f64 {
        self.mib() - self.used()
    }

    /// One tick of everything.
    fn turn(&mut self) {
        let dt = TICK.as_secs_f64();
        self.bench.now += TICK;
        let now = self.bench.now;
        if self.bench.fleet.deadline().is_some_and(|at| at <= now) {
            self.event(Event::Tick);
        }
        let gone: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, one)| one.leaves.is_some_and(|at| at <= now))
            .map(|(key, _)| *key)
            .collect();
        for worker in gone {
            self.processes.remove(&worker);
            self.event(Event::Ended { worker, how: Ended::Signal(15), group: false });
        }
        let ready = self.work(dt);
        for worker in ready {
            self.event(Event::Told { worker, what: Told::Ready });
        }
        if self.used() > self.mib() {
            self.killed.get_or_insert(now);
        }
        if now >= self.next_look {
            self.look();
        }
    }

    /// Who starts and who serves share the CPUs. The answer is who has just become ready.
    fn work(&mut self, dt: f64) -> Vec<WorkerKey> {
        let Server { cpu, wait, event_loop, warm, requests, leak, idle, .. } = self.server;
        let noise = 0.95 + self.random.f64() / 10.0;
        let clients = (self.clients)(self.bench.now.as_secs_f64()).max(0.0);
        let starting = self.processes.values().filter(|one| one.starting > 0.0).count() as f64;
        let serving = self
            .processes
            .values()
            .filter(|one| one.starting <= 0.0 && one.leaves.is_none())
            .count() as f64;
        // Requests in a second, were there CPUs without end.
        let most = if self.server.hangs {
            0.0
        } else if event_loop {
            (clients / (cpu + wait)).min(serving / cpu.max(1e-9))
        } else {
            clients.min(serving) / (cpu + wait)
        };
        let wanted = most * cpu * noise + starting;
        let scale = (self.limits.cpus / wanted.max(1e-9)).min(1.0);
        let rate = most * scale;
        let at_once = match (self.server.hangs, event_loop) {
            (true, _) => 0.0,
            (false, true) => clients,
            (false, false) => clients.min(serving),
        };
        self.cpu += wanted.min(self.limits.cpus) * dt;
        self.queue = if event_loop && !self.server.hangs { 0.0 } else { clients - at_once };
        self.busy_share = if serving > 0.0 { rate * cpu * noise / serving } else { 0.0 };
        self.served += rate * dt;
        if clients > 0.0 && serving == 0.0 {
            self.unserved += dt;
        }
        let mut ready = Vec::new();
        for (key, one) in &mut self.processes {
            if one.starting > 0.0 {
                let before = one.starting;
                one.starting -= dt * (self.limits.cpus / wanted.max(1e-9)).min(1.0);
                one.cpu += (before - one.starting).min(before);
                one.memory = idle;
                // It imports, connects, and only then listens.
                if one.starting <= 0.0 || self.bench.now < one.since + SECOND / 2 {
                    one.starting = one.starting.max(if self.bench.now < one.since + SECOND / 2 {
                        1e-6
                    } else {
                        0.0
                    });
                }
                if one.starting <= 0.0 {
                    ready.push(*key);
                }
            } else if one.leaves.is_none() {
                let share = rate / serving.max(1.0);
                let grown = warm * (1.0 - (-share * dt / requests).exp()) * (1.0 - one.warmth);
                one.warmth += grown / warm.max(1e-9);
                one.memory += grown + if clients > 0.0 { leak * dt } else { 0.0 };
                one.cpu += share * cpu * noise * dt;
                one.busy = at_once / serving.max(1.0);
            } else {
                one.busy = 0.0;
            }
            one.peak = one.peak.max(one.memory + one.busy.ceil() * self.server.request);
        }
        ready
    }

    fn look(&mut self) {
        let now = self.bench.now;
        let span = now.saturating_sub(self.looked);
        let seconds = span.as_secs_f64();
        let bytes = |mib: f64| (mib * MIB as f64) as u64;
        let used = self.used();
        let cpu = self.cpu / seconds;
        let random = &mut self.random;
        let request = self.server.request;
        let mut sum = 0.0;
        let workers = self.processes.iter_mut().map(|(key, one)| {
            let ran = one.cpu;
            // A look meets a request, or it does not.
            let busy = if random.f64() < one.busy { request } else { 0.0 };
            let measured = Measured {
                worker: *key,
                private: bytes(one.memory + busy),
                peak: bytes(one.peak),
                shared: bytes(8.0),
                cpu: ran / seconds,
                busiest: (ran / seconds).min(1.0),
                delayed: 0.0,
                active: None,
            };
            one.cpu = 0.0;
            sum += ran / seconds;
            measured
        });
        let workers = workers.collect();
        let cpu = sum.min(cpu + 0.01);
        let throttled = if cpu >= 0.99 * self.limits.cpus { 0.9 } else { 0.1 };
        let waiting = self.queue.round() as u32;
        let sample = Sample {
            span,
            memory: Some(Memory {
                limit: self.limits.memory,
                used: bytes(used),
                stalled: Some(0.0),
                hits: 0,
                divided: false,
                shmem: 0,
            }),
            cpu: Cpu { usable: self.limits.cpus, used: cpu, throttled },
            waiting: Some(waiting),
            workers,
        };
        let grows = used - self.used_before > self.mib() * 0.005 * seconds;
        let busy = cpu > 0.05 * self.limits.cpus || waiting > 0;
        self.next_look = now
            + match (grows, busy) {
                (true, _) => SECOND / 4,
                (false, true) => SECOND,
                (false, false) => 5 * SECOND,
            };
        (self.looked, self.used_before, self.cpu) = (now, used, 0.0);
        self.event(Event::Measured(Box::new(sample)));
    }

    /// Lets it run, and tells how many requests were served in a second.
    pub(super) fn run(&mut self, time: Duration) -> f64 {
        let (end, before) = (self.bench.now + time, self.served);
        while self.bench.now < end {
            self.turn();
        }
        (self.served - before) / time.as_secs_f64()
    }

    /// The most that any number of workers would serve at `clients` and leave some of the limit free, and that number.
    pub(super) fn best(&self, clients: f64) -> (u32, f64) {
        let Server { cpu, wait, event_loop, idle, warm, request, .. } = self.server;
        let mut best = (1, 0.0);
        for workers in 1..=100 {
            let count = f64::from(workers);
            let at_once = clients.min(count);
            let used = self.limits.base + count * (idle + warm) + at_once * request;
            let most = if event_loop {
                (clients / (cpu + wait)).min(count / cpu)
            } else {
                at_once / (cpu + wait)
            };
            let rate = most.min(self.limits.cpus / cpu.max(1e-9));
            if used <= self.mib() * 0.92 && rate > best.1 * 1.001 {
                best = (workers, rate);
            }
        }
        best
    }
}
