//! Whom the kernel says that it killed for memory, and where that had run out: its log, where we may read it.
//!
//! Its process ids and groups are those of the whole machine, so nothing is claimed from inside of a
//! namespace, where they would be somebody else's. Read only when a kill was counted.

use std::fs::{File, OpenOptions, read_link};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;

use crate::probe::{Host, memory_path};

/// The first namespaces of a machine have these numbers (`include/linux/proc_ns.h`).
const FIRST: [(&str, &str); 2] =
    [("/proc/self/ns/pid", "pid:[4026531836]"), ("/proc/self/ns/cgroup", "cgroup:[4026531835]")];
/// A record is no longer than this (`CONSOLE_EXT_LOG_MAX`).
const RECORD: usize = 8192;
/// Victims that nobody asks for; more are forgotten.
const MOST: usize = 64;

/// A process that the kernel chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) pid: i32,
    pub(super) name: String,
    /// Its memory that no file backs, bytes; told a moment later than the rest.
    pub(super) private: Option<u64>,
    /// The group that it was in.
    group: Option<String>,
    /// The group that had no memory left; none for the machine, or where nothing was said of it.
    full: Option<String>,
    machine: bool,
}

/// The kernel's log from our start on.
pub(super) struct Kmsg {
    log: Option<File>,
    /// Our own group, as the kernel calls it.
    own: String,
    victims: Vec<Victim>,
}

impl Kmsg {
    pub(super) fn open() -> Self {
        Self {
            log: log(),
            own: memory_path(&Host::live()).unwrap_or_default(),
            victims: Vec::new(),
        }
    }

    /// Takes in what was written since the last time.
    pub(super) fn read(&mut self) {
        let Some(log) = &mut self.log else { return };
        let mut record = [0; RECORD];
        loop {
            match log.read(&mut record) {
                Ok(1..) => take(&mut self.victims, &record),
                // The log went round: what came in between is lost.
                Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
                Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
                _ => break,
            }
            record.fill(0);
        }
        let more = self.victims.len().saturating_sub(MOST);
        self.victims.drain(..more);
    }

    /// The one with this pid, or in the group of this name where workers have their own.
    pub(super) fn claim(&mut self, pid: i32, group: Option<&str>) -> Option<Victim> {
        let of = |victim: &Victim| {
            let its = victim.group.as_ref().and_then(|path| path.rsplit('/').next());
            victim.pid == pid || (group.is_some() && its == group && within(victim, &self.own))
        };
        let at = self.victims.iter().position(of)?;
        Some(self.victims.remove(at))
    }

    /// Those of our group that no worker's end has been matched with.
    pub(super) fn others(&mut self) -> Vec<Victim> {
        let own = std::mem::take(&mut self.own);
        let mut victims = std::mem::take(&mut self.victims);
        victims.retain(|victim| within(victim, &own));
        self.own = own;
        victims
    }
}

impl Victim {
    /// `dd (pid 7)`, with its memory where that is known.
    pub(super) fn show(&self) -> String {
        let had = self.private.map(|bytes| format!(" with {}", crate::units::show_size(bytes)));
        let name = crate::units::printable(&self.name);
        format!("{name} (pid {}){}", self.pid, had.unwrap_or_default())
    }

    /// Where there was no memory left.
    pub(super) fn place(&self) -> Option<String> {
        match &self.full {
            Some(group) => {
                Some(format!("the cgroup {} had none left", crate::units::printable(group)))
            }
            None => self.machine.then(|| "the machine had none left".to_owned()),
        }
    }
}

/// Whether the group of a victim is ours, or below it. In the first group of all that says nothing.
fn within(victim: &Victim, own: &str) -> bool {
    let Some(group) = &victim.group else { return false };
    let below = group.strip_prefix(own).filter(|_| own.len() > 1);
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn log() -> Option<File> {
    let first =
        |(file, name): &(&str, &str)| read_link(file).is_ok_and(|is| is.as_os_str() == *name);
    if !FIRST.iter().all(first) {
        return None;
    }
    let mut log =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    log.seek(SeekFrom::End(0)).ok()?;
    Some(log)
}

/// One record: numbers, a semicolon, the text, and lines of keys behind it (`Documentation/ABI/testing/dev-kmsg`).
fn take(victims: &mut Vec<Victim>, record: &[u8]) {
    let record = String::from_utf8_lossy(record);
    let Some((_, text)) = record.split_once(';') else { return };
    let text = text.lines().next().unwrap_or_default();
    if let Some(victim) = chosen(text) {
        victims.push(victim);
    } else if let Some(victim) = killed(text) {
        // The same one again; where a whole group goes its neighbours too, who were not chosen.
        let none = victims.is_empty();
        match victims.iter_mut().rev().find(|known| known.pid == victim.pid) {
            Some(known) => known.private = victim.private,
            // What chose it is written ten times in five seconds at most.
            None if none => victims.push(victim),
            None => {}
        }
    }
}

/// `oom-kill:constraint=…,oom_memcg=/a,task_memcg=/a/b,task=dd,pid=7,uid=0` (`dump_oom_summary` in `mm/oom_kill.c`).
/// Names may hold commas.
fn chosen(text: &str) -> Option<Victim> {
    let text = text.strip_prefix("oom-kill:")?;
    let (text, _) = text.rsplit_once(",uid=")?;
    let (text, pid) = text.rsplit_once(",pid=")?;
    let (text, name) = text.rsplit_once(",task=")?;
    let (text, group) = text.rsplit_once(",task_memcg=")?;
    let full = text.split_once(",oom_memcg=").map(|(_, full)| full.to_owned());
    Some(Victim {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        private: None,
        group: Some(group.to_owned()),
        machine: full.is_none() && text.ends_with("global_oom"),
        full,
    })
}

/// `Memory cgroup out of memory: Killed process 7 (dd) total-vm:1kB, anon-rss:2kB, …`
fn killed(text: &str) -> Option<Victim> {
    let (_, text) = text.split_once("Killed process ")?;
    let (pid, text) = text.split_once(" (")?;
    let (name, text) = text.rsplit_once(") total-vm:")?;
    let private = text.split_once("anon-rss:").and_then(|(_, text)| text.split_once("kB"));
    let private = private.and_then(|(kib, _)| kib.parse::<u64>().ok());
    Some(Victim {
        pid: pid.trim_end_matches(',').parse().ok()?,
        name: name.to_owned(),
        private: private.map(|kib| kib.saturating_mul(1024)),
        ..Victim::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOSEN: &[u8] = b"6,700,9,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/box/throng-rs.worker-2.7,task_memcg=/box/throng-rs.worker-2.7,task=d,d,pid=171,uid=0\n SUBSYSTEM=x\n\0\0";
    const KILLED: &[u8] = b"3,701,9,-;Memory cgroup out of memory: Killed process 171 (d,d) total-vm:264404kB, anon-rss:58836kB, file-rss:0kB, shmem-rss:912kB, UID:0 pgtables:152kB oom_score_adj:100\n";
    const BESIDE: &[u8] = b"3,702,9,-;Memory cgroup out of memory: Killed process 131 (sh) total-vm:2260kB, anon-rss:4kB, file-rss:0kB\n";
    const MACHINE: &[u8] = b"6,700,9,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/other,task=a) total-vm,pid=9,uid=0\n";

    fn kmsg(own: &str, records: &[&[u8]]) -> Kmsg {
        let mut victims = Vec::new();
        for record in records {
            take(&mut victims, record);
        }
        Kmsg { log: None, own: own.to_owned(), victims }
    }

    #[test]
    fn who_was_chosen_is_one_however_many_went_with_it() {
        let mut kmsg =
            kmsg("/box", &[CHOSEN, KILLED, BESIDE, b"nonsense", b"6,1,1,-;oom-kill:pid=x"]);
        assert_eq!(kmsg.victims.len(), 1);
        assert_eq!(kmsg.claim(131, None), None);
        let victim = kmsg.claim(131, Some("throng-rs.worker-2.7")).unwrap();
        assert_eq!(victim.show(), "d,d (pid 171) with 57.4 MiB");
        assert_eq!(victim.place().unwrap(), "the cgroup /box/throng-rs.worker-2.7 had none left");
        assert!(kmsg.others().is_empty());
    }

    #[test]
    fn somebody_elses_is_not_ours() {
        let mut kmsg = kmsg("/box", &[CHOSEN, MACHINE]);
        assert_eq!(kmsg.others().iter().map(|victim| victim.pid).collect::<Vec<_>>(), [171]);
        for own in ["/bo", "/", "", "/box/throng-rs.worker-2"] {
            assert!(self::kmsg(own, &[CHOSEN]).others().is_empty(), "{own}");
            assert_eq!(
                self::kmsg(own, &[CHOSEN]).claim(1, Some("throng-rs.worker-2.7")),
                None,
                "{own}"
            );
        }
    }

    #[test]
    fn a_worker_is_known_by_its_pid_and_the_machine_by_its_word() {
        let mut kmsg = kmsg("/", &[MACHINE]);
        let victim = kmsg.claim(9, None).unwrap();
        assert_eq!(victim.place().unwrap(), "the machine had none left");
        assert_eq!(victim.show(), "a) total-vm (pid 9)");
    }

    #[test]
    fn without_the_line_that_chose_it_the_first_kill_counts() {
        let mut kmsg = kmsg("/box", &[KILLED, BESIDE]);
        assert_eq!(kmsg.claim(131, None), None);
        let victim = kmsg.claim(171, None).unwrap();
        assert_eq!((victim.private, victim.place()), (Some(58836 << 10), None));
    }
}
