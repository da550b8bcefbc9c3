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
/// variable of his is left alone, and a list of options only gets what neither it nor the command's
/// `words` name.
pub(crate) fn limits(
    runtime: Runtime,
    allowance: Allowance,
    words: &[String],
    set: &dyn Fn(&str) -> Option<String>,
) -> Vec<Variable> {
    let (memory, threads) = allowance.of(runtime);
    let mut out = Limits { words, set, found: Vec::new() };
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
        Runtime::Deno => {
            let heap = (memory / 5 * 4).saturating_sub(48 * MIB) / MIB;
            let heap = heap.max(64);
            out.options(
                "DENO_V8_FLAGS",
                &[("--max-old-space-size", &format!("--max-old-space-size={heap}"))],
                &["--max-heap-size"],
                &format!("V8's old generation at 80 % of {share} less 48 MiB for the young one"),
            );
        }
        Runtime::Jvm => jvm(&mut out, memory, threads),
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
            out.plain("OMP_NUM_THREADS", threads.to_string(), because);
        }
        Runtime::Go => {
            out.plain("GOMAXPROCS", threads.to_string(), "threads that fit the CPU share");
            out.plain("GOMEMLIMIT", (memory / 10 * 9).to_string(), &format!("90 % of {share}"));
        }
        Runtime::Beam => {
            // Schedulers and those that are on line (erl(1), +S); one a CPU of the machine by itself.
            let both = format!("+S {threads}:{threads}");
            out.options("ERL_FLAGS", &[("+S", &both)], &[], "schedulers that fit the CPU share");
        }
        // Neither reads a limit from a variable.
        Runtime::Bun | Runtime::Php | Runtime::Other => {}
    }
    out.found
}

/// The heap below a JVM's share: what else it needs is taken off, as Paketo's memory calculator does,
/// with regions for a small server. From 512 MiB on that is about 70 %, which then holds.
fn jvm(out: &mut Limits<'_>, memory: u64, threads: u64) {
    /// Direct memory, metaspace with its classes, the code cache, 40 stacks.
    const REST: u64 = (10 + 60 + 48 + 40) * MIB;
    let small = memory < 512 * MIB;
    let percent =
        if small { (memory.saturating_sub(REST) * 100 / memory.max(1)).max(25) } else { 70 };
    let (most, maximum, minimum, processors) = (
        format!("-XX:MaxRAM={memory}"),
        format!("-XX:MaxRAMPercentage={percent}"),
        format!("-XX:MinRAMPercentage={percent}"),
        format!("-XX:ActiveProcessorCount={threads}"),
    );
    let mut wanted = vec![
        ("-XX:MaxRAM", most.as_str()),
        ("-XX:MaxRAMPercentage", maximum.as_str()),
        ("-XX:MinRAMPercentage", minimum.as_str()),
        ("-XX:ActiveProcessorCount", processors.as_str()),
    ];
    if small {
        wanted.push(("-XX:ReservedCodeCacheSize", "-XX:ReservedCodeCacheSize=48m"));
    }
    let share = show_size(memory);
    out.options(
        "JAVA_TOOL_OPTIONS",
        &wanted,
        &["-Xmx"],
        &format!("a heap of {percent} % of {share}; a percentage alone is of the whole container"),
    );
}

struct Limits<'a> {
    words: &'a [String],
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
        // Said on the command line, or where the JVM looks too, it is said. Node takes underscores for
        // dashes.
        let elsewhere =
            ["JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"].iter().filter_map(|name| (self.set)(name));
        let mut present = [&[value.clone()], self.words].concat();
        present.extend(elsewhere);
        let present = present.join(" ").replace('_', "-");
        let has = |option: &str| {
            present.split_ascii_whitespace().any(|word| {
                word.split('=').next() == Some(option)
                    || (option == "-Xmx" && word.starts_with(option))
            })
        };
        let skip_memory = instead.iter().any(|option| has(option));
        let mut added = false;
        for (option, text) in wanted {
            let memory = !option.ends_with("ProcessorCount") && !option.ends_with("CacheSize");
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
        limits(runtime, allowance, &[], &set).into_iter().map(|v| (v.name, v.value)).collect()
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
            "-Xmx100m -XX:ActiveProcessorCount=1 -XX:ReservedCodeCacheSize=48m"
        );
        let own = [("_JAVA_OPTIONS", "-Xmx100m -XX:ActiveProcessorCount=3")];
        let big = Allowance { worker: 600 * MIB, ..allowance() };
        assert_eq!(values(Runtime::Jvm, big, &own), []);
    }

    #[test]
    fn a_small_javas_heap_leaves_room_for_the_rest_of_it() {
        let percent = |mib: u64| {
            let options = values(Runtime::Jvm, Allowance { worker: mib * MIB, ..allowance() }, &[]);
            let text = options[0].1.split("MaxRAMPercentage=").nth(1).unwrap().to_owned();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        assert_eq!((percent(4096), percent(512)), (70, 70));
        assert!((68..=70).contains(&percent(511)), "no jump");
        assert_eq!((percent(300), percent(160)), (47, 25));
    }

    #[test]
    fn what_the_command_line_says_counts_too() {
        let words = ["node", "--max-old-space-size=300", "server.js"].map(str::to_owned);
        assert!(limits(Runtime::Node, allowance(), &words, &|_| None).is_empty());
        let words = ["java", "-Xmx1g", "-jar", "x"].map(str::to_owned);
        let found = limits(Runtime::Jvm, allowance(), &words, &|_| None);
        assert!(!found[0].value.contains("MaxRAM"), "{found:?}");
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
        let all = values(Runtime::Go, tree, &[]);
        assert!(all.contains(&("GOMAXPROCS".to_owned(), "4".to_owned())));
        assert!(all.contains(&("GOMEMLIMIT".to_owned(), (480 * MIB / 10 * 9).to_string())));
        assert_eq!(values(Runtime::Node, tree, &[]), values(Runtime::Node, allowance(), &[]));
    }
}
