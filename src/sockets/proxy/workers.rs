//! The workers as the proxy sees them.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::super::{Connections, Key};
use super::balance::Candidate;
use super::upstream::{Family, Upstream};

/// One worker process.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) key: Key,
    pub(super) slot: u32,
    pub(super) upstream: Upstream,
    /// On which of the two addresses it was met last.
    pub(super) family: Family,
    pub(super) state: Standing,
    /// It has been told that nothing is under way with it any more.
    pub(super) drained: bool,
    pub(super) counts: Connections,
}

/// Whether a worker may have connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Standing {
    Starting,
    Ready,
    /// Only those that it has.
    Draining,
    /// Its process has ended.
    Gone,
}

impl Worker {
    pub(super) fn is_v6(&self) -> bool {
        self.family == Family::V6
    }

    pub(super) fn set_v6(&mut self, is_v6: bool) {
        self.family = if is_v6 { Family::V6 } else { Family::V4 };
    }
}

/// All of them. A place is taken by another worker only when no connection names it any more.
#[derive(Debug, Default)]
pub(super) struct Workers {
    all: Vec<Option<Worker>>,
    /// What those who were in a slot before had, and lost.
    before: BTreeMap<u32, Connections>,
}

impl Workers {
    /// Adds one and returns its place.
    pub(super) fn add(&mut self, key: Key, slot: u32, upstream: Upstream) -> u32 {
        let worker = Worker {
            key,
            slot,
            upstream,
            family: Family::V4,
            state: Standing::Starting,
            drained: false,
            counts: Connections::default(),
        };
        let place = self.all.iter().position(Option::is_none).unwrap_or(self.all.len());
        if place == self.all.len() {
            self.all.push(None);
        }
        self.all[place] = Some(worker);
        u32::try_from(place).unwrap_or(u32::MAX)
    }

    pub(super) fn get(&self, place: u32) -> Option<&Worker> {
        self.all.get(usize::try_from(place).ok()?)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut Worker> {
        self.all.get_mut(usize::try_from(place).ok()?)?.as_mut()
    }

    pub(super) fn find(&self, key: Key) -> Option<u32> {
        let named = |worker: &Option<Worker>| worker.as_ref().is_some_and(|one| one.key == key);
        self.all.iter().position(named).and_then(|place| u32::try_from(place).ok())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.all.iter().flatten()
    }

    /// Forgets a worker that has gone, when nothing is under way with it.
    pub(super) fn clean(&mut self, place: u32) {
        let Some(place) = usize::try_from(place).ok().and_then(|place| self.all.get_mut(place))
        else {
            return;
        };
        let over =
            |worker: &mut Worker| worker.state == Standing::Gone && worker.counts.active == 0;
        if let Some(worker) = place.take_if(over) {
            self.remember(worker.slot, worker.counts);
        }
    }

    /// Adds to what a slot has had.
    pub(super) fn remember(&mut self, slot: u32, counts: Connections) {
        let before = self.before.entry(slot).or_default();
        before.accepted += counts.accepted;
        before.failed += counts.failed;
    }

    pub(super) fn before(&self) -> &BTreeMap<u32, Connections> {
        &self.before
    }

    /// Of a worker, with what those had who were in its slot before.
    pub(super) fn connections(&self, key: Key) -> Option<Connections> {
        let worker = self.iter().find(|worker| worker.key == key)?;
        let mut counts = self.before.get(&worker.slot).copied().unwrap_or_default();
        let gone = |one: &&Worker| one.slot == worker.slot && one.state == Standing::Gone;
        for one in self.iter().filter(gone).chain([worker]) {
            counts.accepted += one.counts.accepted;
            counts.failed += one.counts.failed;
        }
        counts.active = worker.counts.active;
        Some(counts)
    }

    /// Ports that were given away.
    pub(super) fn ports(&self) -> HashSet<u16> {
        let port = |worker: &Worker| match worker.upstream {
            Upstream::Port(port) => Some(port),
            Upstream::Unix(_) => None,
        };
        self.iter().filter_map(port).collect()
    }

    /// Who may have a connection that those of the mask `tried` would not take. While all stops,
    /// also who has to finish what he has.
    pub(super) fn candidates(&self, tried: u64, stopping: bool) -> impl Iterator<Item = Candidate> {
        let any_ready = self.iter().any(|worker| worker.state == Standing::Ready);
        let wanted = if stopping && !any_ready { Standing::Draining } else { Standing::Ready };
        let all = self.all.iter().enumerate();
        all.filter_map(move |(place, worker)| {
            let worker = worker.as_ref()?;
            let open = worker.state == wanted && !worker.drained && tried & mask(place) == 0;
            let active = u32::try_from(worker.counts.active).unwrap_or(u32::MAX);
            open.then_some(Candidate { place, slot: worker.slot, active })
        })
    }
}

/// The bit of a place in a mask of 64; beyond that, some share one.
pub(super) fn mask(place: usize) -> u64 {
    1 << (place % 64)
}
