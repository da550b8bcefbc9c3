//! The launcher that a calibration runs: this very program, asked over its control socket as by any user.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hyper::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkdtemp};
use serde_json::json;

use super::output::Output;
use crate::control::{Instance, Status};
use crate::sockets::LONGEST_PATH;

/// Tells the launcher that it is one of these, and whose: it ends when that one does.
pub(crate) const VARIABLE: &str = "THRONG_CALIBRATED_BY";
/// Longer than any grace that is meant.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(50);
/// How long a launcher that has closed its socket may take to end.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The launcher; it and its workers end with this.
pub(crate) struct Launcher {
    child: Child,
    output: Output,
    instance: Instance,
    _dir: Private,
}

/// The names of our folders begin so.
const PREFIX: &str = "throng-rs-calibrate-";
/// Of the control socket in one.
const SOCKET: &str = "control";

/// A folder that only we can enter, gone with its owner.
#[derive(Debug)]
struct Private(PathBuf);

impl Private {
    fn new() -> io::Result<Self> {
        // The second ones where TMPDIR names none, or one that is too long for a socket.
        let others = ["/tmp", "/run", "/dev/shm"].map(PathBuf::from);
        Self::within(&[&[std::env::temp_dir()], &others[..]].concat())
    }

    /// In the first of these where there can be a socket.
    fn within(folders: &[PathBuf]) -> io::Result<Self> {
        let mut tried = Vec::new();
        for folder in folders {
            let template = folder.join(format!("{PREFIX}XXXXXX"));
            let made = if template.join(SOCKET).as_os_str().len() > LONGEST_PATH {
                Err("too long for a socket".to_owned())
            } else {
                mkdtemp(&template).map_err(|error| error.desc().to_owned())
            };
            match made {
                Ok(path) => return Ok(Self(path)),
                Err(why) => tried.push(format!("{}: {why}", folder.display())),
            }
        }
        let tried = tried.join("; ");
        Err(io::Error::other(format!(
            "no folder for its control socket, give one by TMPDIR: {tried}"
        )))
    }

    /// The one that a control socket lies in, if it is of a calibration.
    fn of(control: &Path) -> Option<&Path> {
        let folder = control.parent()?;
        let ours = folder.file_name()?.to_str()?.starts_with(PREFIX);
        (ours && control.file_name()? == SOCKET).then_some(folder)
    }
}

/// Held by a launcher that a calibration has started: the folder of its control socket goes when both have,
/// whoever is the last.
#[derive(Debug)]
pub(crate) struct Inside(Option<PathBuf>);

impl Inside {
    pub(crate) fn of(control: Option<&Path>) -> Self {
        Self(control.and_then(Private::of).map(Path::to_owned))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            // Only when it is empty; the calibration may have removed it.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Launcher {
    /// Runs `program` with these words behind the way to its control socket. Must be called inside a `LocalSet`.
    pub(crate) fn start(program: &Path, args: &[OsString]) -> io::Result<Self> {
        let dir = Private::new()?;
        let control = dir.0.join(SOCKET);
        let (output, writer) = Output::new()?;
        let errors = writer.try_clone()?;
        let mut command = Command::new(program);
        command.arg("--control").arg(&control).args(args);
        command.env(VARIABLE, std::process::id().to_string());
        // A service manager that waits for us must not take it for us.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"] {
            command.env_remove(name);
        }
        // A Ctrl-C is for us alone, who stop it: a second one within its grace would kill its workers.
        command.process_group(0);
        let child = command.stdin(Stdio::null()).stdout(writer).stderr(errors).spawn()?;
        Ok(Self { child, output, instance: Instance { path: control }, _dir: dir })
    }

    /// How it stands; an error where it has ended, with its last words.
    pub(crate) async fn status(&mut self) -> Result<Status, String> {
        let begin = Instant::now();
        loop {
            match self.instance.status().await {
                Ok(status) => return Ok(status),
                // It may not be there yet.
                Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                Err(_) => {}
            }
            self.check().await?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// An error where it has ended.
    async fn check(&mut self) -> Result<(), String> {
        let ended = self.child.try_wait().map_err(|error| error.to_string())?;
        let Some(ended) = ended else { return Ok(()) };
        // The last words may still be on their way.
        tokio::time::sleep(PAUSE).await;
        Err(format!("the workers cannot be run:\n{}", self.said(ended)))
    }

    fn said(&self, ended: ExitStatus) -> String {
        let last = self.output.last(12);
        if last.is_empty() { format!("the launcher ended with {ended}") } else { last }
    }

    /// What the workers printed last, for an error.
    pub(crate) fn last_words(&self) -> String {
        self.output.last(6)
    }

    pub(crate) async fn scale(&mut self, workers: u32) -> Result<(), String> {
        let body = json!({ "workers": workers.to_string() });
        match self.instance.ask(Method::POST, "/v1/scale", Some(body)).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            // It may be about to end, and then tells better why.
            refused => {
                let begin = Instant::now();
                while begin.elapsed() < LAST_WORDS {
                    self.check().await?;
                    tokio::time::sleep(PAUSE).await;
                }
                refused?.sound().map(|_| ())
            }
        }
    }

    /// Stops it and waits for its end; kills it where that takes too long.
    pub(crate) async fn stop(mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && self.child.try_wait().is_ok_and(|end| end.is_none()) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // Its workers go with it. Both fail where it has ended.
        if self.child.try_wait().is_ok_and(|end| end.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_first_that_can_hold_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(100));
        fs::create_dir(&long).unwrap();
        let folders = [dir.path().join("nowhere"), long, dir.path().to_owned()];
        let made = Private::within(&folders).unwrap();
        assert_eq!(made.0.parent(), Some(dir.path()));
        let why = Private::within(&folders[..2]).unwrap_err().to_string();
        for word in ["TMPDIR", "nowhere: No such file", "too long for a socket"] {
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn only_a_folder_of_ours_is_removed_and_only_when_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let made = Private::within(&[dir.path().to_owned()]).unwrap();
        let control = made.0.join(SOCKET);
        fs::write(&control, "").unwrap();
        drop(Inside::of(Some(&control)));
        assert!(control.exists());
        fs::remove_file(&control).unwrap();
        drop(Inside::of(Some(&made.0.join("other"))));
        assert!(made.0.exists());
        drop(Inside::of(Some(&control)));
        assert!(!made.0.exists());
        drop(Inside::of(Some(&dir.path().join(SOCKET))));
        assert!(dir.path().exists());
    }
}
