//! What a command really runs: through `env`, `npx`, `bundle exec` and their like, symbolic links,
//! interpreter lines and ELF notes, to the runtime whose memory and threads have to fit.
//!
//! Depends on `plan` for the runtimes. The parts are pure; this file reads.

mod cluster;
mod elf;
mod forks;
mod wrappers;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::plan::Runtime;
pub(crate) use cluster::{Script, cluster, inspect_option};
pub(crate) use forks::{forks, runner};

/// A script that is run by a script, that is run by …: no real chain is longer.
const DEEPEST: usize = 5;
/// Two pages hold every interpreter line, ELF header and Go's note.
const HEAD: u64 = 8192;
/// A configuration or a main script that is longer is not looked through.
const LONGEST: u64 = 256 << 10;

/// What a command was found to be.
#[derive(Clone, Debug)]
pub(crate) struct Recognised {
    pub(crate) runtime: Runtime,
    /// How that is known, to be read after the runtime's name.
    pub(crate) because: String,
    /// The words without what stands in front of the real program.
    pub(crate) words: Vec<String>,
}

/// Recognises `words`; `find` looks a program up as a shell does.
pub(crate) fn recognise(
    words: &[String],
    find: &dyn Fn(&str) -> Option<PathBuf>,
) -> Option<Recognised> {
    let words = wrappers::unwrap(words);
    let program = words.first()?;
    let (runtime, because) = of_program(program, find(program).as_deref(), DEEPEST, find);
    Some(Recognised { runtime, because, words })
}

fn of_program(
    program: &str,
    file: Option<&Path>,
    depth: usize,
    find: &dyn Fn(&str) -> Option<PathBuf>,
) -> (Runtime, String) {
    let head = file.map(|file| read(file, HEAD)).unwrap_or_default();
    let by_name = Runtime::by_name(program);
    if by_name.is_none() && elf::is_go(&head) {
        return (Runtime::Go, "its file has Go's build note".to_owned());
    }
    if let Some(runtime) = by_name {
        return (runtime, "by its name".to_owned());
    }
    let real = file.and_then(|file| file.canonicalize().ok());
    if let Some(real) = &real
        && let Some(runtime) = Runtime::by_name(&real.to_string_lossy())
    {
        return (runtime, format!("{program} leads to {}", real.display()));
    }
    if let Some(interpreter) = interpreter(&head) {
        let because = format!("{program} is run by {interpreter}");
        if let Some(runtime) = Runtime::by_name(&interpreter) {
            return (runtime, because);
        }
        let next = if interpreter.contains('/') {
            Some(PathBuf::from(&interpreter))
        } else {
            find(&interpreter)
        };
        if depth > 0 {
            let (runtime, why) = of_program(&interpreter, next.as_deref(), depth - 1, find);
            if runtime != Runtime::Other {
                return (runtime, format!("{because}, {why}"));
            }
        }
        return (Runtime::Other, because);
    }
    if head.starts_with(b"\x7fELF") {
        return (Runtime::Native, "its file is an ELF program".to_owned());
    }
    (Runtime::Other, "nothing tells more".to_owned())
}

/// The program of an interpreter line (`execve(2)`); behind `env` the one that it looks up.
fn interpreter(head: &[u8]) -> Option<String> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let words: Vec<String> = line.split_ascii_whitespace().map(str::to_owned).collect();
    wrappers::unwrap(&words).into_iter().next()
}

/// The beginning of a regular file; empty where there is none. A pipe in its place must not hold us up.
fn read(file: &Path, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let opened = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(file);
    if let Ok(file) = opened
        && file.metadata().is_ok_and(|info| info.is_file())
    {
        // What cannot be read tells nothing.
        let _ = file.take(most).read_to_end(&mut bytes);
    }
    bytes
}

/// A small text file; empty where it is none.
fn text(file: &Path) -> String {
    String::from_utf8(read(file, LONGEST)).unwrap_or_default()
}

/// Everything pure on any input, for the fuzz targets.
#[cfg(fuzzing)]
pub(crate) fn fuzz(words: &[String], file: &[u8]) {
    let _ = (elf::is_go(file), interpreter(file));
    let nowhere = Path::new("/nonexistent");
    if let Some(found) = recognise(words, &|_| None) {
        let same = |name: &str| Some(name.to_owned());
        let fork = forks(&found.words, &same, nowhere);
        let _ = (fork.map(|fork| fork.warning(2)), runner(&found.words, nowhere));
        let _ = cluster(words, &found);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn of(words: &[&str], dir: &Path) -> (Runtime, String) {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let find = |name: &str| {
            let file = if name.contains('/') { PathBuf::from(name) } else { dir.join(name) };
            file.exists().then_some(file)
        };
        let found = recognise(&words, &find).unwrap();
        (found.runtime, found.because)
    }

    #[test]
    fn the_real_executable_decides() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("www", "#!/usr/bin/env -S node --no-warnings\nrun()");
        put("app", "#!/usr/bin/env RAILS_ENV=production ruby\n");
        put("own", &format!("#!{}\n", dir.path().join("www").display()));
        put("start", "#!/bin/sh\nexec node server.js\n");
        put("no-end", "#!/usr/bin/python3");
        put("junk", "\u{7f}ELF");
        put("python3.11", "");
        symlink(dir.path().join("python3.11"), dir.path().join("interpreter")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (words, runtime) in [
            (&["www"][..], Runtime::Node),
            (&["app"], Runtime::Ruby),
            (&["own"], Runtime::Node),
            (&["start"], Runtime::Other),
            (&["no-end"], Runtime::Python),
            (&["junk"], Runtime::Native),
            (&["interpreter"], Runtime::Python),
            (&["pipe"], Runtime::Other),
            (&["missing"], Runtime::Other),
            (&["env", "-i", "A=b", "node", "x"], Runtime::Node),
            (&["npx", "-y", "tsx", "server.ts"], Runtime::Node),
            (&["bundle", "exec", "puma"], Runtime::Ruby),
            (&["sh", "-c", "exec node server.js"], Runtime::Node),
            (&["sh", "-c", "node a.js & node b.js"], Runtime::Other),
            (&["timeout", "-k", "5", "60", "python3", "x.py"], Runtime::Python),
        ] {
            assert_eq!(of(words, dir.path()).0, runtime, "{words:?}");
        }
        assert!(of(&["own"], dir.path()).1.contains("www"), "the chain is told");
    }

    #[test]
    fn a_real_go_program_is_one_also_without_its_symbols() {
        // What Docker is made of is Go; where none is installed the bytes of elf's tests stand alone.
        for file in ["/usr/bin/docker", "/usr/sbin/dockerd", "/usr/bin/containerd"] {
            if Path::new(file).exists() {
                assert_eq!(of(&[file], Path::new("/")).0, Runtime::Go, "{file}");
            }
        }
        assert_eq!(of(&["/bin/ls"], Path::new("/")).0, Runtime::Native);
    }
}
