//! Who is asked or computed, in the order of the report, and what they say.

use super::opinion::{Belief, Lens, Opinion, Ours, Verdict, Whole};
use super::why::{Scale, same};
use super::{Case, asked, dotnet, finding, go, jvm, libuv, rust};
use crate::plan::Runtime;
use crate::units::{plural, show_size};

const fn opinion(id: &'static str, who: &'static str, asked: bool) -> Opinion {
    Opinion { id, who, asked, cpus: None, memory_bytes: None, heap_bytes: None }
}

pub(super) fn opinions(case: &Case<'_>, ours: &Ours) -> Vec<Opinion> {
    let machine = &case.evidence.machine;
    let online = machine.online.as_ref().map(crate::probe::CpuSet::count);
    let mask = machine.affinity.as_ref().map(|set| set.value.count());
    let set = mask.or(online).unwrap_or(0);
    let scale =
        Scale { ours, warnings: &case.evidence.warnings, set, ram: machine.memory.as_ref() };
    let all = [
        count_all(online, &scale),
        affinity(case, &scale),
        Some(standard_library(case, &scale)),
        sysinfo(case, &scale),
        Some(node(case, &scale)),
        Some(go(case, &scale)),
        automaxprocs(case, &scale),
        Some(java(case, &scale)),
        Some(net(case, &scale)),
    ];
    all.into_iter().flatten().collect()
}

fn count_all(online: Option<u32>, scale: &Scale<'_>) -> Option<Opinion> {
    let value = online?;
    let agrees = same(f64::from(value), scale.ours.cpus);
    let why = if agrees {
        "agrees".to_owned()
    } else {
        let ours = super::why::show_cpus(scale.ours.cpus);
        let by = scale.ours.cpus_source.as_deref().unwrap_or("an assumption");
        format!("counts the machine's CPUs, whoever may use them; what we may use is {ours} ({by})")
    };
    let cpus = Some(Verdict { value: Some(value), agrees: Some(agrees), why });
    Some(Opinion {
        cpus,
        ..opinion("online", "Online CPUs: os.cpus() of Node.js, os.cpu_count() of Python", false)
    })
}

fn affinity(case: &Case<'_>, scale: &Scale<'_>) -> Option<Opinion> {
    let live = case.host.is_live().then(asked::affinity).flatten();
    let set = live.unwrap_or(scale.set);
    if set == 0 {
        return None;
    }
    let scale = Scale { set, ..*scale };
    let cpus = Some(scale.cpus(&Belief::default(), Whole::Floor));
    let who = "sched_getaffinity(2): nproc, os.process_cpu_count() of Python";
    Some(Opinion { cpus, ..opinion("affinity", who, live.is_some()) })
}

fn standard_library(case: &Case<'_>, scale: &Scale<'_>) -> Opinion {
    let belief = rust::cpus(Lens::new(case.host));
    let live = (case.host.is_live() && !belief.fails).then(asked::parallelism).flatten();
    let mut cpus = scale.cpus(&belief, Whole::Floor);
    if let Some(asked) = live
        && cpus.value != Some(asked)
    {
        // The real answer counts; the reason that belongs to another one does not.
        let agrees = same(f64::from(asked), scale.ours.cpus);
        let why = if agrees {
            "agrees"
        } else {
            "comes to it in a way that its documentation does not tell"
        };
        cpus = Verdict { value: Some(asked), agrees: Some(agrees), why: why.to_owned() };
    }
    let who = "Rust: std::thread::available_parallelism()";
    Opinion { cpus: Some(cpus), ..opinion("rust-std", who, live.is_some()) }
}

fn sysinfo(case: &Case<'_>, scale: &Scale<'_>) -> Option<Opinion> {
    if !case.host.is_live() {
        return None;
    }
    let said = asked::sysinfo();
    let value = said.process.or(said.system).or(said.total)?;
    let ours = scale.ours.memory_bytes;
    let agrees = ours.is_some_and(|ours| ours.abs_diff(value) < 65_536);
    let each = |name: &str, value: Option<u64>| {
        format!("{name} says {}", value.map_or_else(|| "nothing".to_owned(), show_size))
    };
    let why = if agrees {
        "agrees".to_owned()
    } else {
        let source = scale.ours.memory_source.as_deref().unwrap_or("no file");
        let ours = ours.map_or_else(|| "no known memory".to_owned(), show_size);
        [
            each("Process::cgroup_limits()", said.process),
            each("System::cgroup_limits()", said.system),
            each("total_memory()", said.total),
            format!("ours is {ours}, from {source}"),
        ]
        .join("; ")
    };
    let memory_bytes = Some(Verdict { value: Some(value), agrees: Some(agrees), why });
    Some(Opinion { memory_bytes, ..opinion("sysinfo", "The crate sysinfo", true) })
}

fn node(case: &Case<'_>, scale: &Scale<'_>) -> Opinion {
    // Its mask has 1024 bits; on a longer one the call fails and it counts what is switched on.
    let cpus = scale.cpus(&libuv::cpus(Lens::new(case.host)), Whole::Floor);
    let memory = scale.memory(&libuv::memory(Lens::new(case.host)));
    let seen = memory.as_ref().and_then(|memory| memory.value);
    let heap = seen.map(|seen| {
        let each = libuv::heap(seen);
        let rule = "half of the memory that it sees, 256 MiB to 2 GiB (4 GiB where it sees much), and its young generation";
        heap(case, scale, Runtime::Node, each, rule)
    });
    let who = "Node.js 22 and later (libuv 1.52): os.availableParallelism()";
    Opinion {
        cpus: Some(cpus),
        memory_bytes: memory,
        heap_bytes: heap,
        ..opinion("node", who, false)
    }
}

fn go(case: &Case<'_>, scale: &Scale<'_>) -> Opinion {
    let mut belief = go::runtime(Lens::new(case.host));
    let told = case.env("GOMAXPROCS").and_then(|text| Some((text, text.parse().ok()?)));
    belief.told = told
        .filter(|(_, n)| *n > 0)
        .map(|(text, n)| (format!("GOMAXPROCS={text} in the environment"), n));
    belief.fails &= belief.told.is_none();
    let cpus = Some(scale.cpus(&belief, Whole::CeilTwo));
    Opinion { cpus, ..opinion("go", "Go 1.25 and later: GOMAXPROCS", false) }
}

fn automaxprocs(case: &Case<'_>, scale: &Scale<'_>) -> Option<Opinion> {
    if case.env("GOMAXPROCS").is_some() {
        return None;
    }
    let cpus = Some(scale.cpus(&go::automaxprocs(Lens::new(case.host)), Whole::Floor));
    Some(Opinion { cpus, ..opinion("automaxprocs", "Go with automaxprocs: GOMAXPROCS", false) })
}

fn java(case: &Case<'_>, scale: &Scale<'_>) -> Opinion {
    let ram = scale.ram.map_or(u64::MAX, |ram| ram.value);
    let cpus = scale.cpus(&jvm::cpus(Lens::new(case.host)), Whole::Ceil);
    let memory = scale.memory(&jvm::memory(Lens::new(case.host), ram));
    let seen = memory.as_ref().and_then(|memory| memory.value);
    let heap = seen.map(|seen| {
        let rule = "a quarter of the memory that it sees, half where that is little";
        heap(case, scale, Runtime::Jvm, jvm::heap(seen), rule)
    });
    let who = "JVM 25 (HotSpot): availableProcessors(), heap by default";
    Opinion {
        cpus: Some(cpus),
        memory_bytes: memory,
        heap_bytes: heap,
        ..opinion("jvm", who, false)
    }
}

fn net(case: &Case<'_>, scale: &Scale<'_>) -> Opinion {
    let cpus = scale.cpus(&dotnet::cpus(Lens::new(case.host)), Whole::Ceil);
    let belief = dotnet::memory(Lens::new(case.host));
    let memory = scale.memory(&belief);
    let limited =
        memory.as_ref().and_then(|memory| memory.value).filter(|_| belief.limit.is_some());
    let heap = limited.map(|seen| {
        heap(
            case,
            scale,
            Runtime::Dotnet,
            dotnet::heap(seen),
            "three quarters of the limit that it sees",
        )
    });
    let who = ".NET: Environment.ProcessorCount, heap limit of the GC";
    Opinion {
        cpus: Some(cpus),
        memory_bytes: memory,
        heap_bytes: heap,
        ..opinion("dotnet", who, false)
    }
}

/// How far one heap may grow, and all of ours together.
fn heap(
    case: &Case<'_>,
    scale: &Scale<'_>,
    runtime: Runtime,
    each: u64,
    rule: &str,
) -> Verdict<u64> {
    let told = finding::runtime::told(case, runtime);
    let (each, rule) = match told {
        Some((bytes, by)) => (bytes, format!("told so by {by}")),
        None => (each, rule.to_owned()),
    };
    let workers = case.plan.workers;
    let all = each.saturating_mul(u64::from(workers));
    let together = match scale.ours.memory_bytes {
        Some(ours) if workers > 1 => format!(
            "; {} together up to {} of our {}",
            plural(workers, "worker"),
            show_size(all),
            show_size(ours)
        ),
        Some(ours) if each > ours => format!(", more than our {}", show_size(ours)),
        _ => String::new(),
    };
    Verdict { value: Some(each), agrees: None, why: format!("{rule}{together}") }
}
