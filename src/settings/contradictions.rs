//! Settings that are sound one by one and cannot hold together.

use super::Settings;
use crate::exit::{Failure, usage};
use crate::fleet::MostMemory;
use crate::plan::Adapt;

impl Settings {
    /// What cannot hold together is refused.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let clash = |low: (&'static str, u32), high: (&'static str, u32)| {
            let (from, to) = (self.origin(low.0), self.origin(high.0));
            usage(format!(
                "{from} ({}) is above {to} ({}); change one or leave it out",
                low.1, high.1
            ))
        };
        let least = self.sizing.min_workers.value;
        let most = self.sizing.max_workers.as_ref().map(|most| most.value);
        // A number of WEB_CONCURRENCY is no flag: bounds move it and the report says so.
        let asked =
            self.sizing.workers.as_ref().filter(|given| !given.is_from("env:WEB_CONCURRENCY"));
        let asked = asked.map(|given| given.value);
        if let Some(most) = most.filter(|most| *most < least) {
            return Err(clash(("min-workers", least), ("max-workers", most)));
        }
        if let Some((asked, most)) = asked.zip(most).filter(|(asked, most)| asked > most) {
            return Err(clash(("workers", asked), ("max-workers", most)));
        }
        if let Some(asked) = asked.filter(|asked| *asked < least) {
            return Err(clash(("min-workers", least), ("workers", asked)));
        }
        self.check_adapting(asked)?;
        if self.output.quiet && self.output.verbose {
            let (quiet, verbose) = (self.origin("quiet"), self.origin("verbose"));
            return Err(usage(format!(
                "{quiet} and {verbose} contradict each other; leave one out"
            )));
        }
        Ok(())
    }

    /// A number in the environment stays, too, and is no contradiction: the platform may have set it.
    pub(super) fn warn_of_a_told_number(&mut self) {
        if self.sizing.adapt == Adapt::On && self.sizing.workers.is_some() {
            let adapt = self.origin("adapt");
            self.warnings.push(format!(
                "{adapt} (on) moves nothing, because WEB_CONCURRENCY says the number; --workers auto lets it move"
            ));
        }
    }

    /// A number that moves is not told, and a guard that is off replaces nobody.
    fn check_adapting(&self, asked: Option<u32>) -> Result<(), Failure> {
        let adapt = self.origin("adapt");
        if self.sizing.adapt == Adapt::On {
            if let Some(workers) = asked {
                let told = self.origin("workers");
                return Err(usage(format!(
                    "{adapt} (on) moves the number of workers, and {told} ({workers}) says it; leave one out, or give --min-workers and --max-workers"
                )));
            }
            if self.exec {
                let exec = self.origin("exec");
                return Err(usage(format!(
                    "{adapt} (on) starts and stops workers, and with {exec} the command does that by itself; leave one out"
                )));
            }
        }
        if !self.workers.guard && self.workers.max_memory != MostMemory::Off {
            let (guard, most) = (self.origin("guard"), self.origin("max-worker-memory"));
            return Err(usage(format!(
                "{guard} (off) and {most} contradict each other: it is the guard that replaces workers for their memory; leave one out"
            )));
        }
        Ok(())
    }
}
