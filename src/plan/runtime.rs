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
    pub(crate) fn is_one_process(self) -> bool {
        matches!(self, Self::Jvm | Self::Dotnet | Self::Beam | Self::Native)
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
}
