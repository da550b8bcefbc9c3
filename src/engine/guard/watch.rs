//! The guard's own side. It holds nothing but its end of the pipe, hears no signal but KILL, and
//! allocates nothing: its heap is a copy of the launcher's and is given back at once, so that a guard
//! costs a few pages, and none can be refused when it matters.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::prctl::set_name;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chdir, getpid, read, setsid};

use super::super::isolate::Inheritance;
use super::super::spawn::{Extent, list, read_at_rest, shed, signal_by};
use super::tidy::Remains;

/// What `ps` and `top` show; without the name that a `pkill` of the launcher would match.
const NAME: &std::ffi::CStr = c"throng-guard";
/// One message.
pub(super) const RECORD: usize = 8;
/// Twice as many groups as there can be workers. Beyond them the mark alone has to find everybody.
const MOST_GROUPS: usize = 20_000;
/// A longer mark would not be found; ours have some fifty bytes.
const MOST_MARK: usize = 256;
/// How long is looked for survivors: KILL does not end what is stuck in the kernel.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The waits between two looks: doubled from the first to the last.
pub(super) const SOON: Duration = Duration::from_millis(1);
pub(super) const LATER: Duration = Duration::from_millis(50);

/// The groups, zero where a place is free. Pages that are never touched cost nothing.
static GROUPS: [AtomicI32; MOST_GROUPS] = [const { AtomicI32::new(0) }; MOST_GROUPS];

/// What the launcher tells: a group by the pid of its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Begins(i32),
    Gone(i32),
}

impl From<Record> for [u8; RECORD] {
    fn from(record: Record) -> Self {
        let (kind, group) = match record {
            Record::Begins(group) => (1u32, group),
            Record::Gone(group) => (2, group),
        };
        let mut bytes = [0; RECORD];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..].copy_from_slice(&group.to_ne_bytes());
        bytes
    }
}

impl Record {
    fn read(bytes: &[u8]) -> Option<Self> {
        let kind = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        let group = i32::from_ne_bytes(bytes.get(4..RECORD)?.try_into().ok()?);
        match kind {
            1 => Some(Self::Begins(group)),
            2 => Some(Self::Gone(group)),
            _ => None,
        }
    }
}

/// Waits for the launcher's end, in a process of our own, and ends what it leaves behind.
pub(super) fn run(
    pipe: &OwnedFd,
    mark: &[u8],
    groups: &BTreeSet<i32>,
    inheritance: Option<&Inheritance>,
) {
    // A key pressed on the launcher's terminal is not for us.
    let _ = setsid();
    let _ = set_name(NAME);
    // No file system stays busy because of us.
    let _ = chdir("/");
    for group in groups {
        begins(*group);
    }
    // On the stack: the heap goes.
    let mut own = [0; MOST_MARK];
    let length = mark.len().min(MOST_MARK);
    own[..length].copy_from_slice(&mark[..length]);
    let remains = Remains::of(inheritance);
    let extent = extent().unwrap_or_default();
    listen(shed(pipe, NAME, extent), extent);
    clean_up(&own[..length]);
    if let Some(remains) = remains {
        remains.put_back();
    }
}

/// Where the launcher's memory lies, of which we are a copy: the last fields of `/proc/self/stat`.
fn extent() -> Option<Extent> {
    let mut text = [0; 1024];
    let text = file(AT_FDCWD, "/proc/self/stat", &mut text)?;
    // Counted from the third, the state, which comes after the name in parentheses.
    let field = |number: usize| -> Option<usize> {
        let text = after_name(text)?.split(|b| *b == b' ').nth(number - 3)?;
        std::str::from_utf8(text).ok()?.trim_end().parse().ok()
    };
    Some(Extent {
        code_end: field(27)?,
        heap: field(47)?,
        words: field(48)?,
        words_end: field(49)?,
        env_end: field(51)?,
    })
}

/// Reads until nobody holds the other end any more.
fn listen(pipe: BorrowedFd<'_>, extent: Extent) {
    let mut bytes = [0; 64 * RECORD];
    loop {
        match read_at_rest(pipe, &mut bytes, extent) {
            Ok(0) => return,
            Ok(length) => {
                // Records are written whole, and this is a multiple of them.
                for record in bytes[..length].chunks(RECORD).filter_map(Record::read) {
                    match record {
                        Record::Begins(group) => begins(group),
                        Record::Gone(group) => replace(group, 0),
                    }
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn begins(group: i32) {
    // 0 and 1 would be everybody.
    if group > 1 {
        replace(0, group);
    }
}

fn replace(from: i32, to: i32) {
    let place = GROUPS.iter().find(|place| place.load(Ordering::Relaxed) == from);
    if let Some(place) = place {
        place.store(to, Ordering::Relaxed);
    }
}

fn groups() -> impl Iterator<Item = i32> {
    let all = GROUPS.iter().map(|place| place.load(Ordering::Relaxed));
    all.filter(|group| *group != 0)
}

/// Kills until nobody is left, as far as that can be had.
fn clean_up(mark: &[u8]) {
    let deadline = Instant::now() + PATIENCE;
    let mut wait = SOON;
    // Who forks and ends while we look may be missed once.
    let mut clear = 0;
    while clear < 2 && Instant::now() < deadline {
        for group in groups() {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        match kill_survivors(mark) {
            Some(0) => clear += 1,
            // No /proc: the groups are all that can be found.
            None => return,
            Some(_) => {
                clear = 0;
                sleep(wait);
                wait = (wait * 2).min(LATER);
            }
        }
    }
}

/// Looks at every process and kills those of the run; says how many there were.
fn kill_survivors(mark: &[u8]) -> Option<usize> {
    let proc = openat(AT_FDCWD, "/proc", FOLDER, Mode::empty()).ok()?;
    let me = getpid().as_raw();
    let mut entries = [0; 4096];
    let mut found = 0;
    loop {
        let length = list(proc.as_fd(), &mut entries).ok()?;
        if length == 0 {
            return Some(found);
        }
        let mut rest = &entries[..length];
        // struct linux_dirent64 (getdents64(2)): two numbers of eight bytes, the entry's own length in
        // two, the kind in one, and the name.
        while let Some(size) = rest.get(16..18) {
            let size = usize::from(u16::from_ne_bytes([size[0], size[1]]));
            let name = rest.get(19..size).unwrap_or_default();
            rest = rest.get(size.max(19)..).unwrap_or_default();
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            let Ok(name) = std::str::from_utf8(name) else { continue };
            let Ok(pid) = name.parse() else { continue };
            if pid != me && killed(proc.as_fd(), name, pid, mark) == Some(true) {
                found += 1;
            }
        }
    }
}

pub(super) const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Kills a process that lives and belongs to the run; `None` where it has just gone.
fn killed(proc: BorrowedFd<'_>, name: &str, pid: i32, mark: &[u8]) -> Option<bool> {
    // This folder stays that process's, also when its number is given to another one.
    let folder = openat(proc, name, FOLDER, Mode::empty()).ok()?;
    let mut stat = [0; 512];
    let stat = file(folder.as_fd(), "stat", &mut stat)?;
    let mut fields = after_name(stat)?.split(|b| *b == b' ');
    let state = fields.next()?;
    let group: i32 = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
    if state == b"Z" || state == b"X" {
        return Some(false);
    }
    if !groups().any(|known| known == group) && !carries(folder.as_fd(), mark) {
        return Some(false);
    }
    // An old kernel or a sandbox may not know that call, and says so in many ways.
    let killed = match signal_by(folder.as_fd(), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(_) => kill(Pid::from_raw(pid), Signal::SIGKILL),
    };
    // Who may not be killed is not waited for.
    Some(killed.is_ok())
}

/// Whether the mark is one of the variables that a process was started with.
fn carries(folder: BorrowedFd<'_>, mark: &[u8]) -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let Ok(environ) = openat(folder, "environ", flags, Mode::empty()) else { return false };
    let mut search = Search::new(mark);
    let mut bytes = [0; 4096];
    loop {
        match read(&environ, &mut bytes) {
            Ok(0) => return search.take(0),
            Ok(length) => {
                if bytes[..length].iter().any(|byte| search.take(*byte)) {
                    return true;
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Finds one entry in a list of them, each of which ends with a NUL, byte by byte.
struct Search<'a> {
    mark: &'a [u8],
    /// How much of the entry is the same so far.
    same: Option<usize>,
}

impl<'a> Search<'a> {
    fn new(mark: &'a [u8]) -> Self {
        Self { mark, same: Some(0) }
    }

    /// Takes the next byte in; true where it ends the entry that is looked for.
    fn take(&mut self, byte: u8) -> bool {
        if byte == 0 {
            let whole = !self.mark.is_empty() && self.same == Some(self.mark.len());
            self.same = Some(0);
            return whole;
        }
        self.same = self.same.filter(|same| self.mark.get(*same) == Some(&byte));
        self.same = self.same.map(|same| same + 1);
        false
    }
}

/// As much of a file as `bytes` hold.
fn file<'a>(folder: BorrowedFd<'_>, name: &str, bytes: &'a mut [u8]) -> Option<&'a [u8]> {
    let file = openat(folder, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut length = 0;
    while length < bytes.len() {
        match read(&file, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
    bytes.get(..length)
}

/// The fields of a `stat` behind the name, which may hold anything.
fn after_name(stat: &[u8]) -> Option<&[u8]> {
    let end = stat.iter().rposition(|b| *b == b')')?;
    stat.get(end + 2..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back() {
        for record in [Record::Begins(7), Record::Gone(4_194_304)] {
            let bytes: [u8; RECORD] = record.into();
            assert_eq!(Record::read(&bytes), Some(record));
        }
        assert_eq!(Record::read(&[9; RECORD]), None);
        assert_eq!(Record::read(&[1, 0, 0]), None);
    }

    #[test]
    fn a_mark_is_found_as_a_whole_entry_only() {
        let found = |text: &[u8]| {
            let mut search = Search::new(b"A=12");
            text.iter().chain(&[0]).any(|byte| search.take(*byte))
        };
        assert!(found(b"A=12"));
        assert!(found(b"X=1\0A=12\0B=2"));
        assert!(found(b"\0\0A=12\0"));
        for other in [&b""[..], b"A=1", b"A=123", b"BA=12", b"X=A=12", b"A=1\x002", b"a=12"] {
            assert!(!found(other), "{other:?}");
        }
        assert!(!Search::new(b"").take(0), "no mark is nobody's");
    }

    #[test]
    fn a_name_may_hold_anything() {
        assert_eq!(after_name(b"12 (a) b) (c) S 1 7 7"), Some(&b"S 1 7 7"[..]));
        assert_eq!(after_name(b"12 (a)"), None);
        assert_eq!(after_name(b""), None);
    }
}
