//! Which file the command names, found before anything starts, so that a typing error is one clear
//! message with status 126 or 127 and not N crashing workers.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{AccessFlags, access};

use super::user::User;
use crate::exit::{CANNOT_EXECUTE, Failure, NOT_FOUND};

/// What the shell searches where PATH is unset (`confstr(_CS_PATH)` plus the usual local places).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program's absolute path, by the rules of `execvp(3)`, seen from `dir`.
pub(crate) fn find(program: &OsStr, path: Option<&OsStr>, dir: &Path) -> Result<PathBuf, Failure> {
    let failure = |status, message| Failure::Command { status, message };
    if program.is_empty() {
        return Err(failure(
            NOT_FOUND,
            "the command's name is empty; give one after --".to_owned(),
        ));
    }
    if program.as_bytes().contains(&b'/') {
        let file = dir.join(program);
        return match check(&file) {
            Verdict::Good => Ok(file),
            Verdict::Missing => Err(failure(
                NOT_FOUND,
                format!("command not found: {} does not exist", file.display()),
            )),
            Verdict::Bad(why) => {
                Err(failure(CANNOT_EXECUTE, format!("cannot execute {}: {why}", file.display())))
            }
        };
    }
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    let mut found_bad = None;
    for part in path.as_bytes().split(|b| *b == b':') {
        let file = dir.join(OsStr::from_bytes(part)).join(program);
        match check(&file) {
            Verdict::Good => return Ok(file),
            Verdict::Missing => {}
            Verdict::Bad(why) => found_bad = found_bad.or(Some((file, why))),
        }
    }
    let name = program.display();
    Err(match found_bad {
        Some((file, why)) => {
            failure(CANNOT_EXECUTE, format!("cannot execute {}: {why}", file.display()))
        }
        None if program.as_bytes().contains(&b' ') => failure(
            NOT_FOUND,
            format!(
                "command not found: \"{name}\" is one word; give the command and its arguments without quotes around them all"
            ),
        ),
        None => failure(
            NOT_FOUND,
            format!("command not found: \"{name}\" is in no directory of PATH={}", path.display()),
        ),
    })
}

enum Verdict {
    Good,
    Missing,
    Bad(&'static str),
}

fn check(file: &Path) -> Verdict {
    match std::fs::metadata(file) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Verdict::Missing
        }
        Err(_) => Verdict::Bad("its directory cannot be read"),
        Ok(info) if info.is_dir() => Verdict::Bad("it is a directory"),
        Ok(info) if !info.is_file() => Verdict::Bad("it is not a regular file"),
        Ok(_) if access(file, AccessFlags::X_OK).is_err() => {
            Verdict::Bad("it is not executable (chmod +x)")
        }
        Ok(_) => Verdict::Good,
    }
}

/// The arguments with `{id}` and its like replaced, as `--template` asks.
pub(crate) fn expand(words: &[OsString], values: &[(&str, String)]) -> Vec<OsString> {
    words
        .iter()
        .map(|word| {
            // Only text can hold a placeholder; other bytes are passed on as they are.
            let Some(text) = word.to_str() else { return word.clone() };
            let mut text = text.to_owned();
            for (name, value) in values {
                text = text.replace(&format!("{{{name}}}"), value);
            }
            OsString::from(text)
        })
        .collect()
}

/// Makes this process the command; returns only where that failed.
pub(crate) fn replace(
    program: &Path,
    words: &[OsString],
    env: &[(OsString, OsString)],
    dir: Option<&Path>,
    user: Option<&User>,
) -> io::Error {
    let mut command = Command::new(program);
    command
        .args(words.iter().skip(1))
        .env_clear()
        .envs(env.iter().map(|(name, value)| (name, value)));
    if let Some(word) = words.first() {
        command.arg0(word);
    }
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    if let Some(Err(errno)) = user.map(User::take_on) {
        return errno.into();
    }
    command.exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(program: &str, path: Option<&str>) -> u8 {
        match find(OsStr::new(program), path.map(OsStr::new), Path::new("/")) {
            Ok(_) => 0,
            Err(failure) => failure.status(),
        }
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert_eq!(find(OsStr::new("sh"), None, Path::new("/")).unwrap(), Path::new("/usr/bin/sh"));
        assert_eq!(status("bin/sh", None), 0);
        assert_eq!(status("/nonexistent/x", None), 127);
        assert_eq!(status("nonexistent-x", None), 127);
        assert_eq!(status("", None), 127);
        assert_eq!(status("/etc", None), 126);
        assert_eq!(status("/etc/passwd", None), 126);
        assert_eq!(status("passwd", Some("/etc")), 126);
        assert_eq!(status("sh", Some("/nonexistent:/bin")), 0);
    }

    #[test]
    fn templates() {
        let words = ["--id={id}", "{other}", "{id}{id}"].map(OsString::from);
        assert_eq!(expand(&words, &[("id", "3".to_owned())]), ["--id=3", "{other}", "33"]);
    }
}
