//! The sockets of slots: which of them get new connections, and what becomes of those that wait in one.

use std::time::Duration;

use super::handle::Carry;
use super::primary::{Effect, Primary, Timer};
use crate::sockets::slots::say_closed;
use crate::sockets::{Key, Slots};

/// Between two looks at a queue that its worker is to empty, and how many may find it empty in a row:
/// as long as a handshake may take over a slow line.
pub(super) const LOOK: Duration = Duration::from_millis(25);
const QUIET_LOOKS: u32 = 12;
/// After so many the worker is told to go with what is in its queue.
const MOST_LOOKS: u32 = 60;

impl Primary {
    /// Leads the kernel's choice to the slots in which somebody accepts.
    pub(super) fn spread(&mut self, key: &str) {
        let Some(handle) = self.handles.get_mut(key) else { return };
        let Carry::Slots(slots) = &mut handle.carry else { return };
        let serving = handle.members.iter().filter_map(|member| self.workers.get(member));
        let serving = serving.filter(|worker| !worker.drains && !worker.leaves);
        let mut to: Vec<u32> = serving.map(|worker| worker.slot).collect();
        if to.is_empty() {
            // Whoever comes next finds them in the queue.
            let staying = slots.members().filter_map(|(slot, _)| slot);
            to = staying.filter(|slot| *slot <= self.slots).collect();
        }
        // Where the kernel cannot be told, it spreads over all.
        let _ = slots.steer(to);
    }

    pub(super) fn spread_again(&mut self) {
        let keys: Vec<String> = self.handles.keys().cloned().collect();
        for key in &keys {
            self.spread(key);
        }
    }

    pub(super) fn has_queue(&self, slot: u32) -> bool {
        let mut groups = self.groups();
        groups.any(|group| group.members().any(|(member, _)| member == Some(slot)))
    }

    fn groups(&self) -> impl Iterator<Item = &Slots> {
        self.handles.values().filter_map(|handle| match &handle.carry {
            Carry::Slots(slots) => Some(slots),
            _ => None,
        })
    }

    pub(super) fn empty(&mut self, key: Key, quiet: u32, looks: u32) {
        let Some(slot) = self.workers.get(&key).map(|worker| worker.slot) else { return };
        let waits = self.groups().any(|group| group.has_waiting(slot));
        let quiet = if waits { 0 } else { quiet + 1 };
        if quiet >= QUIET_LOOKS || looks >= MOST_LOOKS {
            self.disconnect(key);
        } else {
            let timer = Timer::Empty { worker: key, quiet, looks: looks + 1 };
            self.effects.push_back(Effect::After(LOOK, timer));
        }
    }

    /// There are so many slots now.
    pub(super) fn resized(&mut self, slots: u32) {
        self.slots = slots;
        let filled: Vec<u32> = self.workers.values().map(|worker| worker.slot).collect();
        for handle in self.handles.values_mut() {
            if let Carry::Slots(group) = &mut handle.carry {
                let all: Vec<u32> = group.members().filter_map(|(slot, _)| slot).collect();
                let gone = |slot: &u32| *slot > slots && !filled.contains(slot);
                all.into_iter().filter(gone).for_each(|slot| retire(group, slot));
            }
        }
        self.spread_again();
    }

    /// Nobody will fill a slot again, or come for what waits there.
    pub(super) fn vacant(&mut self, slot: u32) {
        for handle in self.handles.values_mut() {
            if let Carry::Slots(group) = &mut handle.carry {
                say_closed(slot, group.dismiss(slot).unwrap_or(0));
            }
        }
        self.spread_again();
    }

    pub(super) fn retire(&mut self, slot: u32) {
        for handle in self.handles.values_mut() {
            if let Carry::Slots(group) = &mut handle.carry {
                retire(group, slot);
            }
        }
    }
}

/// A slot is no more, and with it what waits for it.
fn retire(group: &mut Slots, slot: u32) {
    let lost = group.dismiss(slot).unwrap_or(0);
    group.close(slot);
    say_closed(slot, lost);
}
