//! Whether a new worker may run beside the old one while it becomes ready.

use std::net::SocketAddr;

use tracing::{error, info};

use super::{Engine, Renewed, ports, usage};
use crate::fleet::{Event, Kind};
use crate::probe::{Host, Resources};
use crate::sockets::Upstream;
use crate::units::show_size;

/// How many new workers may run beside those that they replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surge {
    /// One, unless workers bind a port of their own that only one process can have.
    Auto,
    Most(u32),
}

/// What a new worker may need beyond the largest that runs: it is warming up.
const MARGIN: f64 = 1.25;

impl Engine {
    /// Replaces all workers, by what the configuration says now. The error tells why not.
    pub(super) fn reload(&mut self) -> Result<(), String> {
        match self.config.orders.reload() {
            Ok(renewed) => {
                let bounds = renewed.sized.bounds;
                self.take_orders(renewed);
                self.renew(Kind::Reload, None);
                self.tell(Event::Planned { bounds, at_once: true });
                Ok(())
            }
            Err(why) => {
                error!(
                    event = "reload_refused",
                    "nothing is reloaded, and the workers stay as they are: {why}"
                );
                Err(why)
            }
        }
    }

    /// From now on these hold, for every worker that starts.
    pub(super) fn take_orders(&mut self, renewed: Renewed) {
        let Renewed { program, words, mut env, sized } = renewed;
        env.set("NOTIFY_SOCKET", &self.name);
        if let Ok(mut plan) = self.control.plan.write() {
            plan.clone_from(&sized.plan);
        }
        (self.config.program, self.config.words, self.config.env) = (program, words, env);
        self.config.sized = sized;
        self.isolation.share_out(self.fleet.target(), &self.config.sized);
    }

    /// Replaces all workers, or the one of a slot.
    pub(super) fn renew(&mut self, kind: Kind, slot: Option<u32>) {
        let surge = self.surge(slot, None);
        self.tell(Event::Renew { kind, slot, surge });
    }

    /// Replaces a worker that has too much memory by one that takes `fresh` bytes.
    pub(super) fn recycle(&mut self, slot: u32, fresh: u64) {
        let surge = self.surge(Some(slot), Some(fresh));
        self.tell(Event::Renew { kind: Kind::Grown, slot: Some(slot), surge });
    }

    /// The surge that was chosen, less where there is no room for it, and says so. `fresh`: what a new worker takes,
    /// where that is not what the largest has.
    fn surge(&self, slot: Option<u32>, fresh: Option<u64>) -> u32 {
        let wanted = match self.config.surge {
            Surge::Most(0) => return 0,
            Surge::Most(most) => most,
            Surge::Auto => {
                if let Some((id, port)) = self.own_port(slot) {
                    info!(
                        event = "surge",
                        surge = 0,
                        "worker {id} listens on port {port} by itself, which a second one could not have: the old worker stops first"
                    );
                    return 0;
                }
                1
            }
        };
        let Some((room, each)) = self.memory_room() else { return wanted };
        let each = fresh.unwrap_or(each).max(1);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let fits = room as f64 / (each as f64 * MARGIN);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let fits = fits as u32;
        if fits < wanted {
            info!(
                event = "surge",
                surge = fits,
                room_bytes = room,
                worker_bytes = each,
                "{} of memory are left and a worker takes {}: {}",
                show_size(room),
                show_size(each),
                if fits == 0 {
                    "the old worker stops first".to_owned()
                } else {
                    format!("{fits} instead of {wanted} run beside the old ones")
                }
            );
        }
        fits.min(wanted)
    }

    /// A worker that listens on a port which nobody else can bind, and which is not ours to share.
    fn own_port(&self, slot: Option<u32>) -> Option<(u32, u16)> {
        let ours = self.sharing.ours();
        let running = self.running.iter().filter(|(_, running)| !running.reaped);
        running.filter(|(_, one)| slot.is_none_or(|slot| slot == one.slot)).find_map(
            |(key, running)| {
                let addresses = ports::listening(running.pid, &ours).into_iter();
                // The next one has another place.
                let told = self.sharing.upstream(*key);
                let own = |address: &SocketAddr| told == Some(Upstream::Port(address.port()));
                let mut others = addresses.filter(|address| !own(address));
                let taken = others.find(|address| !ports::is_shared(address));
                taken.map(|address| (running.slot, address.port()))
            },
        )
    }

    /// Bytes that are left, and what the largest worker has for itself alone.
    fn memory_room(&self) -> Option<(u64, u64)> {
        // What the kernel says: a variable says nothing of what is left.
        let kernel = Host::live().with_env(std::iter::empty::<(String, String)>());
        let room = Resources::of(&kernel).memory.available?;
        let used = usage::by_group();
        let groups = self.running.iter().filter_map(|(key, running)| {
            let usage = used.get(&running.pid.as_raw())?;
            Some(usage.private + self.measure.of(*key).own.min(usage.shared))
        });
        let each = groups.max().filter(|bytes| *bytes > 0)?;
        Some((room, each))
    }
}
