//! What may change while a fleet runs, read anew: the configuration on a reload, the machine when its
//! limits move.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use super::run::{Prepared, Read};
use super::size::{Sized, environment};
use crate::engine::{self, Orders, Renewed};
use crate::exit::Failure;
use crate::fleet::Bounds;
use crate::probe::{Host, Others, Resources};
use crate::settings::Settings;
use crate::sockets::{Address, Share};
use crate::units::{show_number, show_size};

/// Where a running fleet's orders come from: the configuration and the machine.
pub(super) struct Source {
    /// As they were read last.
    settings: RefCell<Rc<Settings>>,
    read: Read,
    share: Share,
    program: Option<PathBuf>,
    sockets: Vec<(Address, String)>,
    others: Others,
}

impl Source {
    pub(super) fn new(
        settings: Settings,
        read: Read,
        share: Share,
        program: Option<PathBuf>,
        sockets: Vec<(Address, String)>,
        others: Others,
    ) -> Self {
        let settings = RefCell::new(Rc::new(settings));
        Self { settings, read, share, program, sockets, others }
    }

    fn renewed(&self, settings: &Settings) -> Result<Renewed, Failure> {
        let host = Host::live();
        let prepared =
            Prepared::new(settings, self.share, &host, self.program.clone(), Some(&self.others))?;
        let env = prepared.workers_env(settings, self.share, &self.sockets);
        let Prepared { program, words, sized, .. } = prepared;
        Ok(Renewed { program, words, env, sized: sized.orders(settings) })
    }
}

impl Orders for Source {
    fn reload(&self) -> Result<Renewed, String> {
        let again = || {
            let settings = (self.read)()?;
            let renewed = self.renewed(&settings)?;
            self.settings.replace(Rc::new(settings));
            Ok(renewed)
        };
        again().map_err(|failure: Failure| failure.to_string())
    }

    fn replan(&self) -> Result<Renewed, String> {
        let settings = Rc::clone(&self.settings.borrow());
        self.renewed(&settings).map_err(|failure| failure.to_string())
    }
}

impl Sized {
    /// What a running fleet may make of it.
    fn bounds(&self, settings: &Settings) -> Bounds {
        let plan = &self.plan;
        let memory = &plan.resources.memory;
        let headroom = settings.sizing.headroom.as_ref().and(plan.allows.headroom);
        Bounds {
            workers: plan.workers,
            by_cpu: plan.allows.cpu,
            most: plan.up_to.unwrap_or(plan.workers),
            told: settings.sizing.workers.is_some(),
            share: plan.worker_memory,
            budget: plan.all_memory,
            limit: memory.limit.as_ref().or(memory.ram.as_ref()).map(|fact| fact.value),
            headroom,
        }
    }

    /// What the engine needs of it.
    pub(super) fn orders(&self, settings: &Settings) -> engine::Sized {
        let plan = &self.plan;
        let Resources { memory, cpu, tasks, .. } = &plan.resources;
        // A file has an absolute path; what pretends may itself come from one.
        let is_told = settings.what_if.memory.is_some();
        let told = memory.limit.as_ref().filter(|limit| is_told || !limit.source.starts_with('/'));
        let told = told.map(|limit| (limit.value, limit.source.clone()));
        let memory = memory.limit.as_ref().or(memory.ram.as_ref());
        let from = |source: Option<&String>| {
            source.map(|source| format!(" ({source})")).unwrap_or_default()
        };
        let memory = memory
            .map(|fact| format!("{} of memory{}", show_size(fact.value), from(Some(&fact.source))));
        let cpus = format!("{} CPUs{}", show_number(cpu.usable), from(cpu.source.as_ref()));
        let tasks = tasks.limit.as_ref();
        let tasks = tasks.map(|fact| format!("{} tasks{}", fact.value, from(Some(&fact.source))));
        engine::Sized {
            bounds: self.bounds(settings),
            bound_by: plan.bound_by,
            plan: plan.to_json(),
            runtime: environment(settings, plan).into_iter().collect(),
            limits: memory.into_iter().chain([cpus]).chain(tasks).collect(),
            cpus: cpu.usable,
            told,
            room: plan.room,
            cost: plan.cost,
            others: self.others.clone(),
        }
    }
}
