//! The variables that keep a runtime inside its share: left alone, most of them size themselves for
//! the whole container, N times over. `docs/sizing.md` has the same table for users.

use super::reason::Variable;
use super::runtime::Runtime;
use crate::units::{MIB, show_size};

/// What the runtimes of a fleet may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// Bytes for one worker.
    pub(crate) worker: u64,
    /// Bytes for all workers together.
    pub(crate) all: u64,
    /// Workers.
    pub(crate) workers: u32,
    /// CPUs, a fraction.
    pub(crate) cpus: f64,
    /// Whether the command forks the workers itself (`--exec`).
    pub(crate) single_tree: bool,
}

impl Allowance {
    /// The share of one process that the variables reach, and its threads.
    fn of(self, runtime: Runtime) -> (u64, u64) {
        let alone = self.single_tree && runtime.is_one_process();
        let workers = if alone { 1 } else { self.workers };
        let exact = self.cpus / f64::from(workers);
        // N processes of k threads above the quota all stall together for the rest of the period.
        let threads = if workers == 1 { exact.ceil() } else { exact.floor() };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "float casts saturate"
        )]
        let threads = (threads as u64).max(1);
        (if alone { self.all } else { self.worker }, threads)
    }
}

/// The variables that hold `runtime` to its share. `set` gives what the user has set: a plain
/// variable of his is left alone, and a list of options only gets what it does not name.
pub(crate) fn limits(
    runtime: Runtime,
    allowance: Allowance,
    set: &dyn Fn(&str) -> Option<String>,
) -> Vec<Variable> {
    let (memory, threads) = allowance.of(runtime);
    let mut out = Limits { set, found: Vec::new() };
    let share = show_size(memory);
    match runtime {
        Runtime::Node => {
            // V8 takes half of the container by itself and never less than 256 MiB; the young
            // generation (3 × 16 MiB) comes on top of the old space.
            let heap = (memory / 5 * 4).saturating_sub(48 * MIB) / MIB;
            let heap = heap.max(64);
            out.options(
                "NODE_OPTIONS",
                &[("--max-old-space-size", &format!("--max-old-space-size={heap}"))],
                &["--max-heap-size", "--max-old-space-size-percentage"],
                &format!("V8's old generation at 80 % of {share} less 48 MiB for the young one"),
            );
        }
        Runtime::Jvm => {
            // Metaspace, code cache and stacks are about the same in a small JVM. Below some 200 MiB
            // HotSpot goes by the percentage that it calls minimal.
            let percent = if memory < 512 * MIB { 50 } else { 70 };
            out.options(
                "JAVA_TOOL_OPTIONS",
                &[
                    ("-XX:MaxRAM", &format!("-XX:MaxRAM={memory}")),
                    ("-XX:MaxRAMPercentage", &format!("-XX:MaxRAMPercentage={percent}")),
                    ("-XX:MinRAMPercentage", &format!("-XX:MinRAMPercentage={percent}")),
                    ("-XX:ActiveProcessorCount", &format!("-XX:ActiveProcessorCount={threads}")),
                ],
                &["-Xmx"],
                &format!(
                    "a heap of {percent} % of {share}; a percentage alone is of the whole container"
                ),
            );
        }
        Runtime::Dotnet => {
            out.plain(
                "DOTNET_GCHeapHardLimit",
                format!("0x{:X}", memory / 4 * 3),
                &format!("75 % of {share}, in hexadecimal"),
            );
            out.plain(
                "DOTNET_PROCESSOR_COUNT",
                threads.to_string(),
                "threads that fit the CPU share",
            );
            if threads < 2 {
                out.plain("DOTNET_gcServer", "0".to_owned(), "server GC wants a heap per CPU");
            }
        }
        Runtime::Python => {
            for name in [
                "OMP_NUM_THREADS",
                "OPENBLAS_NUM_THREADS",
                "MKL_NUM_THREADS",
                "NUMEXPR_NUM_THREADS",
                "LOKY_MAX_CPU_COUNT",
                "PYTHON_CPU_COUNT",
            ] {
                out.plain(name, threads.to_string(), "threads that fit the CPU share");
            }
            out.plain(
                "MALLOC_ARENA_MAX",
                "2".to_owned(),
                "glibc otherwise keeps eight arenas a CPU",
            );
        }
        Runtime::Ruby => out.plain(
            "MALLOC_ARENA_MAX",
            "2".to_owned(),
            "glibc otherwise keeps eight arenas a CPU",
        ),
        Runtime::Native => {
            let because = "threads that fit the CPU share, where the program is of that kind";
            out.plain("TOKIO_WORKER_THREADS", threads.to_string(), because);
            out.plain("RAYON_NUM_THREADS", threads.to_string(), because);
            out.plain("GOMAXPROCS", threads.to_string(), because);
            out.plain(
                "GOMEMLIMIT",
                (memory / 10 * 9).to_string(),
                &format!("90 % of {share}, where it is a Go program"),
            );
        }
        Runtime::Deno | Runtime::Bun | Runtime::Php | Runtime::Beam | Runtime::Other => {}
    }
    out.found
}

struct Limits<'a> {
    set: &'a dyn Fn(&str) -> Option<String>,
    found: Vec<Variable>,
}

impl Limits<'_> {
    fn push(&mut self, name: &str, value: String, because: &str) {
        self.found.push(Variable { name: name.to_owned(), value, because: because.to_owned() });
    }

    fn plain(&mut self, name: &str, value: String, because: &str) {
        if (self.set)(name).is_none() {
            self.push(name, value, because);
        }
    }

    /// Appends each option that is not there; none at all where the user has one of `instead`.
    fn options(&mut self, name: &str, wanted: &[(&str, &str)], instead: &[&str], because: &str) {
        let mut value = (self.set)(name).unwrap_or_default();
        // Node takes underscores for dashes.
        let present = value.replace('_', "-");
        let has = |option: &str| {
            present.split_ascii_whitespace().any(|word| {
                word.split('=').next() == Some(option)
                    || (option == "-Xmx" && word.starts_with(option))
            })
        };
        let skip_memory = instead.iter().any(|option| has(option));
        let mut added = false;
        for (option, text) in wanted {
            let memory = !option.ends_with("ProcessorCount");
            if has(option) || (memory && skip_memory) {
                continue;
            }
            if !value.trim().is_empty() {
                value.push(' ');
            }
            value.push_str(text);
            added = true;
        }
        if added {
            self.push(name, value, because);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowance() -> Allowance {
        Allowance { worker: 160 * MIB, all: 480 * MIB, workers: 3, cpus: 4.0, single_tree: false }
    }

    fn values(
        runtime: Runtime,
        allowance: Allowance,
        set: &[(&str, &str)],
    ) -> Vec<(String, String)> {
        let set = |name: &str| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        limits(runtime, allowance, &set).into_iter().map(|v| (v.name, v.value)).collect()
    }

    #[test]
    fn node_gets_a_heap_that_fits_unless_the_user_chose_one() {
        let ours = [("NODE_OPTIONS".to_owned(), "--max-old-space-size=80".to_owned())];
        assert_eq!(values(Runtime::Node, allowance(), &[]), ours);
        let kept = values(Runtime::Node, allowance(), &[("NODE_OPTIONS", "--enable-source-maps")]);
        assert_eq!(kept[0].1, "--enable-source-maps --max-old-space-size=80");
        for own in [
            "--max_old_space_size=99",
            "--max-old-space-size 99",
            "--max-old-space-size-percentage=50",
        ] {
            assert_eq!(values(Runtime::Node, allowance(), &[("NODE_OPTIONS", own)]), [], "{own}");
        }
    }

    #[test]
    fn java_gets_each_option_by_itself() {
        let own = [("JAVA_TOOL_OPTIONS", "-Xmx100m")];
        assert_eq!(
            values(Runtime::Jvm, allowance(), &own)[0].1,
            "-Xmx100m -XX:ActiveProcessorCount=1"
        );
    }

    #[test]
    fn what_the_user_set_stays() {
        let own = [("OMP_NUM_THREADS", "7")];
        let names: Vec<_> =
            values(Runtime::Python, allowance(), &own).into_iter().map(|v| v.0).collect();
        assert!(
            !names.contains(&"OMP_NUM_THREADS".to_owned())
                && names.contains(&"MKL_NUM_THREADS".to_owned())
        );
    }

    #[test]
    fn one_process_has_the_whole_budget_under_exec() {
        let tree = Allowance { single_tree: true, ..allowance() };
        let all = values(Runtime::Native, tree, &[]);
        assert!(all.contains(&("GOMAXPROCS".to_owned(), "4".to_owned())));
        assert!(all.contains(&("GOMEMLIMIT".to_owned(), (480 * MIB / 10 * 9).to_string())));
        assert_eq!(values(Runtime::Node, tree, &[]), values(Runtime::Node, allowance(), &[]));
    }
}
