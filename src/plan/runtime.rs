//! Which runtime a command runs on, and what one worker of it is assumed to cost.
//!
//! The table's figures and their sources are in `docs/sizing.md`; keep both in step.

use crate::units::MIB;

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
    /// Go.
    Go,
    /// Another compiled program.
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
            "ruby",
            "bundle",
            "puma",
            "unicorn",
            "rails",
            "rackup",
            "sidekiq",
            "sidekiqswarm",
            "falcon",
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
    Profile { runtime: Runtime::Go, name: "Go", memory: 100, tasks: 12, programs: &[] },
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

    /// The runtime of a program of this name or path; a version behind the name is allowed.
    #[must_use]
    pub fn by_name(program: &str) -> Option<Self> {
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

    /// Whether one process uses all the CPUs by threads, so that with `--exec` there is no tree to share with.
    pub(crate) fn is_one_process(self) -> bool {
        matches!(self, Self::Jvm | Self::Dotnet | Self::Beam | Self::Go | Self::Native)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn programs_are_known_by_their_names() {
        for (program, runtime) in [
            ("node", Some(Runtime::Node)),
            ("/usr/bin/python3.12", Some(Runtime::Python)),
            ("/app/venv/bin/gunicorn", Some(Runtime::Python)),
            ("php-fpm8.2", Some(Runtime::Php)),
            ("sh", Some(Runtime::Other)),
            ("nodemon-like", None),
            ("./server", None),
        ] {
            assert_eq!(Runtime::by_name(program), runtime, "{program}");
        }
    }
}
