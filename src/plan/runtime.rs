//! What a worker of each runtime is assumed to cost, and the limits that keep a runtime inside its
//! share: left alone, most of them size themselves for the whole container, N times over.
//!
//! The table's figures and their sources are in `docs/sizing.md`; keep both in step.

use super::reason::Variable;
use crate::units::{MIB, show_size};

/// A language runtime, as far as it matters for memory and threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Node.js.
    Node,
    /// Deno.
    Deno,
    /// Bun.
    Bun,
    /// Python and its servers.
    Python,
    /// Ruby and its servers.
    Ruby,
    /// PHP.
    Php,
    /// Java and other languages on its virtual machine.
    Jvm,
    /// .NET.
    Dotnet,
    /// Erlang and Elixir.
    Beam,
    /// A compiled program.
    Native,
    /// A shell script or anything else.
    Other,
}

/// One row of the table.
struct Profile {
    runtime: Runtime,
    name: &'static str,
    /// Private memory of one worker under load, MiB.
    memory: u64,
    /// Processes and threads of one worker.
    tasks: u64,
    /// Names of programs that run on it; a version behind (`python3.12`) is allowed.
    programs: &'static [&'static str],
}

const PROFILES: &[Profile] = &[
    Profile {
        runtime: Runtime::Node,
        name: "Node.js",
        memory: 300,
        tasks: 12,
        programs: &["node", "nodejs", "npm", "npx", "yarn", "pnpm", "ts-node", "tsx", "next"],
    },
    Profile { runtime: Runtime::Deno, name: "Deno", memory: 300, tasks: 12, programs: &["deno"] },
    Profile {
        runtime: Runtime::Bun,
        name: "Bun",
        memory: 300,
        tasks: 12,
        programs: &["bun", "bunx"],
    },
    Profile {
        runtime: Runtime::Python,
        name: "Python",
        memory: 150,
        tasks: 4,
        programs: &[
            "python",
            "pypy",
            "gunicorn",
            "uvicorn",
            "hypercorn",
            "daphne",
            "celery",
            "flask",
            "uwsgi",
            "granian",
        ],
    },
    Profile {
        runtime: Runtime::Ruby,
        name: "Ruby",
        memory: 300,
        tasks: 8,
        programs: &[
            "ruby", "bundle", "puma", "unicorn", "rails", "rackup", "sidekiq", "thin", "falcon",
        ],
    },
    Profile {
        runtime: Runtime::Php,
        name: "PHP",
        memory: 128,
        tasks: 1,
        programs: &["php", "php-fpm", "frankenphp"],
    },
    Profile { runtime: Runtime::Jvm, name: "the JVM", memory: 512, tasks: 40, programs: &["java"] },
    Profile {
        runtime: Runtime::Dotnet,
        name: ".NET",
        memory: 300,
        tasks: 24,
        programs: &["dotnet"],
    },
    Profile {
        runtime: Runtime::Beam,
        name: "the BEAM",
        memory: 300,
        tasks: 32,
        programs: &["erl", "beam.smp", "elixir", "iex", "mix"],
    },
    Profile {
        runtime: Runtime::Native,
        name: "a compiled program",
        memory: 100,
        tasks: 8,
        programs: &[],
    },
    Profile {
        runtime: Runtime::Other,
        name: "an unknown program",
        memory: 100,
        tasks: 8,
        programs: &["sh", "bash", "dash", "ash"],
    },
];

impl Runtime {
    fn profile(self) -> &'static Profile {
        // The table has a row for each; its own test holds that.
        PROFILES.iter().find(|row| row.runtime == self).unwrap_or(&PROFILES[PROFILES.len() - 1])
    }

    /// The name for a report: "assumed for Node.js".
    #[must_use]
    pub fn name(self) -> &'static str {
        self.profile().name
    }

    /// Assumed private memory of one worker, in bytes.
    #[must_use]
    pub fn worker_memory(self) -> u64 {
        self.profile().memory * MIB
    }

    /// Assumed processes and threads of one worker.
    #[must_use]
    pub fn tasks(self) -> u64 {
        self.profile().tasks
    }

    /// Recognises a program by its name and the first bytes of its file.
    ///
    /// `head` decides where the name says nothing: an interpreter line names the runtime, an ELF
    /// header a compiled program.
    #[must_use]
    pub fn recognise(program: &str, head: &[u8]) -> Self {
        Self::by_name(program).or_else(|| Self::by_head(head)).unwrap_or(Self::Other)
    }

    fn by_name(program: &str) -> Option<Self> {
        let name = program.rsplit('/').next()?;
        let matches = |known: &str| {
            let version = name.strip_prefix(known)?;
            version.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '-').then_some(())
        };
        let row = PROFILES
            .iter()
            .find(|row| row.programs.iter().any(|known| matches(known).is_some()))?;
        Some(row.runtime)
    }

    fn by_head(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"\x7fELF") {
            return Some(Self::Native);
        }
        let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_ascii_whitespace();
        let interpreter = words.next()?;
        if interpreter.ends_with("/env") {
            // `env -S node --flag`, `env NAME=value python3`.
            return Self::by_name(
                words.find(|word| !word.starts_with('-') && !word.contains('='))?,
            );
        }
        Self::by_name(interpreter)
    }

    /// Whether one process uses all the CPUs by threads, so that with `--exec` there is no tree to share with.
    fn is_one_process(self) -> bool {
        matches!(self, Self::Jvm | Self::Dotnet | Self::Beam | Self::Native)
    }
}

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
        Runtime::Jvm => out.options(
            "JAVA_TOOL_OPTIONS",
            &[
                ("-XX:MaxRAM", &format!("-XX:MaxRAM={memory}")),
                ("-XX:MaxRAMPercentage", "-XX:MaxRAMPercentage=70"),
                ("-XX:ActiveProcessorCount", &format!("-XX:ActiveProcessorCount={threads}")),
            ],
            &["-Xmx"],
            &format!("a heap of 70 % of {share}; a percentage alone is of the whole container"),
        ),
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
    fn every_runtime_has_one_row_and_no_program_two() {
        let mut programs: Vec<_> = PROFILES.iter().flat_map(|row| row.programs).collect();
        let all = programs.len();
        programs.sort_unstable();
        programs.dedup();
        assert_eq!(programs.len(), all);
        for row in PROFILES {
            assert_eq!(row.runtime.name(), row.name);
        }
    }

    #[test]
    fn programs_are_recognised_by_name_then_by_their_first_bytes() {
        for (program, head, runtime) in [
            ("node", &b""[..], Runtime::Node),
            ("/usr/bin/python3.12", b"", Runtime::Python),
            ("/app/venv/bin/gunicorn", b"#!/app/venv/bin/python3\n", Runtime::Python),
            ("./start", b"#!/usr/bin/env -S node --no-warnings\nrun()", Runtime::Node),
            ("./start", b"#!/usr/bin/env RAILS_ENV=production ruby\n", Runtime::Ruby),
            ("./server", b"\x7fELF\x02", Runtime::Native),
            ("./start", b"#!/bin/sh\nexec node server.js\n", Runtime::Other),
            ("nodemon-like", b"", Runtime::Other),
            ("./server", b"", Runtime::Other),
        ] {
            assert_eq!(Runtime::recognise(program, head), runtime, "{program}");
        }
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
