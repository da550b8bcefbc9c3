//! Connections that nobody has accepted yet: those in our own listening sockets, and those in sockets that
//! the workers opened themselves.
//!
//! One question to the kernel tells of all sockets that listen; whose they are is found by the open files of
//! the workers, when one appears that is not known. That costs a system call for each file, so it is done in
//! small parts, and of each process the first files have to do: who listens began with it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant};

use super::super::diag;
use crate::fleet::Time;

/// Between the end of one search and the next.
const SEARCHED: Duration = Duration::from_secs(10);
/// What a part of a search may take.
const PART: Duration = Duration::from_millis(2);
/// Files of one process that are looked at.
const MOST_FILES: usize = 512;
/// After an answer that the kernel would not give.
const REFUSED: Duration = Duration::from_mins(1);

/// What is known of listening sockets, by their inodes.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Whether a worker has it.
    known: HashMap<u64, bool>,
    search: Option<Search>,
    next_search: Time,
    next_ask: Time,
}

#[derive(Debug)]
struct Search {
    wanted: HashSet<u64>,
    left: Vec<i32>,
}

impl Queues {
    /// How many wait in the sockets `ours` and in those of the workers, whose processes `members` lists; none
    /// where there is no such socket, or none that can be seen.
    pub(super) fn look(
        &mut self,
        now: Time,
        ours: &HashSet<u64>,
        members: impl FnOnce() -> Vec<i32>,
    ) -> Option<u32> {
        if now < self.next_ask {
            return None;
        }
        let Ok(all) = diag::queues() else {
            self.next_ask = now + REFUSED;
            return None;
        };
        let here: HashSet<u64> = all.iter().map(|(inode, _)| *inode).collect();
        self.known.retain(|inode, _| here.contains(inode));
        if self.search.is_none() && now >= self.next_search {
            let unknown = here
                .iter()
                .filter(|inode| !ours.contains(inode) && !self.known.contains_key(inode));
            let wanted: HashSet<u64> = unknown.copied().collect();
            if !wanted.is_empty() {
                self.search = Some(Search { wanted, left: members() });
            }
        }
        self.search_on(now);
        let counts = |inode: &u64| ours.contains(inode) || self.known.get(inode) == Some(&true);
        let mut counted = all.iter().filter(|(inode, _)| counts(inode)).peekable();
        counted.peek()?;
        Some(counted.fold(0, |sum, (_, waiting)| sum.saturating_add(*waiting)))
    }

    /// Processes have come: what was nobody's may be theirs.
    pub(super) fn forget_others(&mut self) {
        self.known.retain(|_, theirs| *theirs);
    }

    fn search_on(&mut self, now: Time) {
        let Some(search) = &mut self.search else { return };
        let begun = Instant::now();
        while !search.wanted.is_empty() && begun.elapsed() < PART {
            let Some(pid) = search.left.pop() else { break };
            for inode in sockets(pid) {
                if search.wanted.remove(&inode) {
                    self.known.insert(inode, true);
                }
            }
        }
        if search.wanted.is_empty() || search.left.is_empty() {
            self.known.extend(search.wanted.iter().map(|inode| (*inode, false)));
            self.search = None;
            self.next_search = now + SEARCHED;
        }
    }
}

/// The sockets among the first files of a process.
fn sockets(pid: i32) -> Vec<u64> {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = files.take(MOST_FILES).flatten().filter_map(|file| fs::read_link(file.path()).ok());
    links.filter_map(|link| inode(link.to_str()?)).collect()
}

/// `socket:[4242]`
fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::engine::ports;

    #[test]
    fn a_workers_own_socket_is_found_and_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = ports::inode(&listener).unwrap();
        let _clients = [0; 3].map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let us = std::process::id().cast_signed();
        let nobody = HashSet::new();
        let mut queues = Queues::default();
        // A part of the search in each look.
        let mut now = Duration::ZERO;
        while !queues.known.contains_key(&own) {
            queues.look(now, &nobody, || vec![us]);
            now += Duration::from_secs(1);
            assert!(now < Duration::from_mins(10));
        }
        assert!(queues.known[&own]);
        // Other tests in this process listen as well.
        assert!(queues.look(now, &nobody, Vec::new) >= Some(3));
    }

    #[test]
    fn ours_count_without_a_search_and_strangers_never() {
        let (ours, other) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let _client = TcpStream::connect(ours.local_addr().unwrap()).unwrap();
        let _stranger = TcpStream::connect(other.local_addr().unwrap()).unwrap();
        let mut queues = Queues::default();
        assert_eq!(queues.look(Duration::ZERO, &HashSet::new(), Vec::new), None);
        let ours = HashSet::from([ports::inode(&ours).unwrap()]);
        assert_eq!(queues.look(Duration::from_secs(20), &ours, Vec::new), Some(1));
    }

    #[test]
    fn links_of_proc() {
        assert_eq!(inode("socket:[4242]"), Some(4242));
        for other in ["pipe:[4242]", "/dev/null", "socket:[x]", "anon_inode:[eventpoll]"] {
            assert_eq!(inode(other), None);
        }
    }
}
