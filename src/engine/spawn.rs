//! Starting one process: everything that has to happen between fork and exec, in this order.
//!
//! `std::process::Command` forks, sets up the standard descriptors and reports a failed exec; the
//! closure does the rest and calls `execve` itself, because only the child knows its pid, which
//! `LISTEN_PID` must hold (`sd_listen_fds(3)`).
#![expect(unsafe_code, reason = "between fork and exec there is no safe interface")]

use std::ffi::{CStr, CString, OsString};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};
use nix::unistd::{
    ForkResult, Pid, SysconfVar, execve, fork, getpid, getppid, setpgid, sysconf, tcsetpgrp,
};

use super::user::User;
use crate::fleet::Ended;
use crate::sockets::FIRST_FD;
pub(super) use crate::sockets::above;

/// How much more likely than us the kernel is to kill a worker (`proc_pid_oom_score_adj(5)`).
const OOM_RAISE: i32 = 100;
const OOM_MOST: i32 = 1000;

/// What all starts have in common.
#[derive(Debug)]
pub(crate) struct Spawner {
    /// The signal mask that we were started with.
    pub(crate) mask: SigSet,
    pub(crate) user: Option<User>,
    pub(crate) dir: Option<std::path::PathBuf>,
    /// How many descriptors a worker inherits, from [`FIRST_FD`] on.
    inherited: usize,
    /// Open files at the places where they will be put, so that nothing else gets there.
    places: Vec<OwnedFd>,
    pub(crate) limits: (u64, u64),
    oom_score: Option<i32>,
}

/// One start.
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Path,
    pub(crate) words: &'a [OsString],
    pub(crate) env: Vec<CString>,
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    /// Inherited from [`FIRST_FD`] on and announced; they lie behind all places.
    pub(crate) sockets: &'a [Rc<OwnedFd>],
    /// Inherited under the number after them.
    pub(crate) channel: Option<BorrowedFd<'a>>,
    /// The terminal to hand over.
    pub(crate) terminal: Option<BorrowedFd<'a>>,
    /// The `cgroup.procs` of a group to join.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

impl Spawner {
    /// Raises the limit of open files for us; children get theirs back. From now on no descriptor of ours
    /// gets one of the numbers that the `inherited` ones will have in the workers.
    pub(crate) fn new(
        mask: SigSet,
        user: Option<User>,
        dir: Option<std::path::PathBuf>,
        inherited: usize,
    ) -> io::Result<Self> {
        let limits = getrlimit(Resource::RLIMIT_NOFILE)?;
        // A failure leaves us with what we have.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, limits.1, limits.1);
        let oom_score = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
        let oom_score = oom_score.and_then(|text| text.trim().parse().ok());
        let mut spawner =
            Self { mask, user, dir, inherited, places: Vec::new(), limits, oom_score };
        spawner.hold_places();
        Ok(spawner)
    }

    /// Fills every number that a worker's descriptors will have, so that nothing else gets there.
    pub(crate) fn hold_places(&mut self) {
        let end = FIRST_FD + i32::try_from(self.inherited).unwrap_or(0);
        // Each open takes the lowest free number. Where none is left, none of those is free either.
        while self.inherited > 0
            && let Ok(place) = OpenOptions::new().read(true).open("/dev/null")
            && place.as_raw_fd() < end
        {
            self.places.push(place.into());
        }
    }

    /// Starts a process and returns its pid. The caller reaps it.
    pub(crate) fn spawn(&self, launch: Launch<'_>) -> io::Result<Pid> {
        let program = CString::new(launch.program.as_os_str().as_bytes())?;
        let words: Vec<CString> = launch
            .words
            .iter()
            .map(|word| CString::new(word.as_bytes()))
            .collect::<Result<_, _>>()?;
        let mut command = Command::new(launch.program);
        command.stdin(launch.stdin).stdout(launch.stdout).stderr(launch.stderr);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let sockets = launch.sockets.iter().map(AsRawFd::as_raw_fd);
        let child = Child {
            program,
            words,
            env: launch.env,
            parent: getpid(),
            oom_score: self.oom_score.map(|score| (score + OOM_RAISE).min(OOM_MOST)),
            cgroup: launch.cgroup.map(|fd| fd.as_raw_fd()),
            terminal: launch.terminal.map(|fd| fd.as_raw_fd()),
            limits: self.limits,
            user: self.user.clone(),
            announced: !launch.sockets.is_empty(),
            descriptors: sockets.chain(launch.channel.map(|fd| fd.as_raw_fd())).collect(),
            mask: self.mask,
        };
        // SAFETY: this process has one thread (no blocking pool is ever used, and the runtime is
        // single-threaded), so after the fork no lock can be held by a thread that does not exist in
        // the child, and the closure may allocate and call what it likes. It touches only its own
        // copies and descriptors that stay open in the parent until `spawn` returns.
        unsafe {
            command.pre_exec(move || child.become_program());
        }
        let child = command.spawn()?;
        Ok(Pid::from_raw(child.id().cast_signed()))
    }
}

/// What the child needs; made before the fork.
struct Child {
    program: CString,
    words: Vec<CString>,
    env: Vec<CString>,
    parent: Pid,
    oom_score: Option<i32>,
    cgroup: Option<RawFd>,
    terminal: Option<RawFd>,
    limits: (u64, u64),
    user: Option<User>,
    descriptors: Vec<RawFd>,
    /// Whether it is told of them.
    announced: bool,
    mask: SigSet,
}

impl Child {
    /// Runs in the child and returns only where the exec failed.
    fn become_program(&self) -> io::Result<()> {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        // Before the user changes: afterwards the file belongs to root. No /proc, no raise.
        if let Some(score) = self.oom_score
            && let Ok(mut file) = OpenOptions::new().write(true).open("/proc/self/oom_score_adj")
        {
            let _ = write!(file, "{score}");
        }
        if let Some(procs) = self.cgroup {
            // SAFETY: the parent keeps this descriptor open until the spawn has returned.
            nix::unistd::write(unsafe { BorrowedFd::borrow_raw(procs) }, b"0")?;
        }
        setrlimit(Resource::RLIMIT_NOFILE, self.limits.0, self.limits.1)?;
        if let Some(user) = &self.user {
            user.take_on()?;
        }
        // After the user has changed, which clears it (`PR_SET_PDEATHSIG(2const)`).
        set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != self.parent {
            return Err(io::Error::other("the launcher has gone"));
        }
        self.place_descriptors()?;
        if let Some(terminal) = self.terminal {
            // SAFETY: as above.
            tcsetpgrp(unsafe { BorrowedFd::borrow_raw(terminal) }, getpid())?;
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None)?;
        self.exec()
    }

    fn place_descriptors(&self) -> io::Result<()> {
        for (place, fd) in (FIRST_FD..).zip(&self.descriptors) {
            // SAFETY: dup2 onto a number that a placeholder holds; its owner is in the parent, and
            // this child only ever execs. The copy does not close on exec, which is the point.
            Errno::result(unsafe { libc::dup2(*fd, place) })?;
        }
        Ok(())
    }

    fn exec(&self) -> io::Result<()> {
        let mut env: Vec<&CStr> = self.env.iter().map(CString::as_c_str).collect();
        let own_pid;
        if self.announced {
            own_pid = CString::new(format!("LISTEN_PID={}", getpid()))?;
            env.push(&own_pid);
        }
        let failure = match execve(&self.program, &self.words, &env) {
            // A script without an interpreter line: execvp(3) and every shell run it by sh.
            Err(Errno::ENOEXEC) => {
                let mut words: Vec<&CStr> = vec![c"sh", &self.program];
                words.extend(self.words.iter().skip(1).map(CString::as_c_str));
                execve(c"/bin/sh", &words, &env)
            }
            other => other,
        };
        match failure {
            Ok(never) => match never {},
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Sends a signal by its number: nix has no real-time signals. A process that has gone is no failure.
pub(crate) fn send(pid: Pid, number: i32) {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    unsafe { libc::kill(pid.as_raw(), number) };
}

/// What became of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Ended(Ended),
    Stopped,
}

/// A child that has ended or stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waited {
    pub(crate) pid: Pid,
    pub(crate) change: Change,
    /// The most memory that it had, bytes.
    pub(crate) peak: u64,
}

/// The next child of ours, adopted ones included, that has ended (and is hereby reaped) or stopped.
///
/// By hand because nix's `waitpid` cannot name real-time signals: the child would be reaped and lost.
pub(crate) fn wait_any() -> Option<Waited> {
    loop {
        let mut status = 0;
        // SAFETY: zero is a value that every field of this plain structure may have.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        let options = libc::WNOHANG | libc::WUNTRACED;
        // SAFETY: wait4 writes one int and one rusage, which are ours.
        let pid = unsafe { libc::wait4(-1, &raw mut status, options, &raw mut usage) };
        if pid == -1 && Errno::last() == Errno::EINTR {
            continue;
        }
        if pid <= 0 {
            return None;
        }
        let change = if libc::WIFEXITED(status) {
            Change::Ended(Ended::Code(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX)))
        } else if libc::WIFSIGNALED(status) {
            Change::Ended(Ended::Signal(libc::WTERMSIG(status)))
        } else {
            Change::Stopped
        };
        let peak = u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024);
        return Some(Waited { pid: Pid::from_raw(pid), change, peak });
    }
}

/// Gives the pages of our own code and constants back: most were touched once, by the start, and
/// count as ours alone as long as they are mapped. What is needed again is read from the page cache.
pub(crate) fn forget_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let here = forget_code as fn() as usize;
    let range = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
    };
    let lines: Vec<&str> = maps.lines().collect();
    let code = lines.iter().enumerate().find_map(|(index, line)| {
        let (from, to) = range(line)?;
        ((from..to).contains(&here) && line.contains(" r-xp ")).then_some((index, from, to))
    });
    let Some((index, mut from, to)) = code else { return };
    // The constants lie right before the code. Those behind it are relocated data, which would be lost.
    if let Some((start, end)) = index.checked_sub(1).and_then(|before| range(lines[before]))
        && end == from
        && lines[index - 1].contains(" r--p ")
    {
        from = start;
    }
    // SAFETY: both mappings are private, of a file, and never written to (no text relocations in
    // Rust programs), so every page comes back from the file as it was. A failure changes nothing.
    unsafe {
        libc::madvise(std::ptr::with_exposed_provenance_mut(from), to - from, libc::MADV_DONTNEED);
    }
}

/// Forks a process that does `work` and ends. It begins with every signal blocked.
pub(crate) fn fork_apart(work: impl FnOnce()) -> nix::Result<Pid> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let forked = unsafe { fork() };
    if let Ok(ForkResult::Child) = forked {
        // A panic must not go on into the frames of the launcher.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: this ends the process, and nothing of the launcher's is written or undone twice.
        unsafe { libc::_exit(0) }
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    match forked? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => Err(Errno::ENOTSUP),
    }
}

/// Where memory of this process lies: addresses, zero where they are not known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extent {
    /// Where our code ends, before which lie our constants and nothing else of the program.
    pub(crate) code_end: usize,
    pub(crate) heap: usize,
    /// The words of the command line, right behind which the environment lies.
    pub(crate) words: usize,
    pub(crate) words_end: usize,
    pub(crate) env_end: usize,
}

/// Lets go of everything that a fork has copied but `keep`: descriptors, the command line (`name`
/// stands there then), the environment, the heap. For [`fork_apart`] alone, whose `work` must not
/// allocate, free or use anything that lies on the heap afterwards.
pub(crate) fn shed(keep: &OwnedFd, name: &CStr, extent: Extent) -> BorrowedFd<'static> {
    /// More than this function and those that it calls have on the stack, and more than a thread's own
    /// variables take.
    const IN_USE: usize = 12 << 10;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|page| usize::try_from(page).ok()).unwrap_or(64 << 10);
    // SAFETY: the child that this runs in owns its copies of all descriptors, and uses none but 0
    // from now on. The memory that is overwritten was made by the kernel for words and environment;
    // std has its own copies, on the heap. The pages given back are the heap behind the place where a
    // static C library keeps this thread's own variables, and stack below this function's frames.
    unsafe {
        libc::dup2(keep.as_raw_fd(), 0);
        if libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0) != 0 {
            let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |limits| limits.0);
            for fd in 1..i32::try_from(most).unwrap_or(i32::MAX) {
                libc::close(fd);
            }
        }
        let Extent { heap, words, words_end, env_end, .. } = extent;
        if words < words_end && words_end <= env_end {
            let room: *mut u8 = std::ptr::with_exposed_provenance_mut(words);
            std::ptr::write_bytes(room, 0, env_end - words);
            let text = name.to_bytes();
            room.copy_from_nonoverlapping(text.as_ptr(), text.len().min(env_end - words - 1));
            // So the kernel knows that a name is told here and the text ends at the first NUL.
            if words_end - words > text.len() {
                room.add(words_end - words - 1).write(b' ');
            }
        }
        let own = libc::__errno_location().expose_provenance();
        let end = libc::sbrk(0).expose_provenance();
        let from = if (heap..end).contains(&own) { own + IN_USE } else { heap };
        let from = from.next_multiple_of(page);
        if heap != 0 && from < end {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(from),
                end - from,
                libc::MADV_DONTNEED,
            );
        }
        let here = (&raw const extent).expose_provenance().saturating_sub(IN_USE) & !(page - 1);
        let depth = here.min(1 << 20);
        libc::madvise(
            std::ptr::with_exposed_provenance_mut(here - depth),
            depth,
            libc::MADV_DONTNEED,
        );
        BorrowedFd::borrow_raw(0)
    }
}

/// Reads, and gives the pages of our own code back before that: they count as ours alone while we wait.
/// Both calls go through one function of the C library, because each place of the code that is used
/// brings all the pages around it back.
pub(crate) fn read_at_rest(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    extent: Extent,
) -> nix::Result<usize> {
    // SAFETY: our constants and our code are private mappings of a file that are never written to, so
    // every page comes back as it was. The kernel reads no more than fits, into memory that is ours.
    let length = unsafe {
        // The program's headers stand at its beginning.
        let begin = usize::try_from(libc::getauxval(libc::AT_PHDR)).unwrap_or(0) & !0xfff;
        if begin != 0 && begin < extent.code_end {
            let length = extent.code_end - begin;
            libc::syscall(libc::SYS_madvise, begin, length, libc::MADV_DONTNEED);
        }
        libc::syscall(libc::SYS_read, fd.as_raw_fd(), bytes.as_mut_ptr(), bytes.len())
    };
    Errno::result(length).map(|length| usize::try_from(length).unwrap_or(0))
}

/// Entries of an open folder, as getdents64(2) writes them; 0 bytes at the end. Allocates nothing.
pub(crate) fn list(folder: BorrowedFd<'_>, entries: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the kernel writes no more than the length that it is told, into memory that is ours.
    let length = unsafe {
        libc::syscall(libc::SYS_getdents64, folder.as_raw_fd(), entries.as_mut_ptr(), entries.len())
    };
    Errno::result(length).map(|length| usize::try_from(length).unwrap_or(0))
}

/// Signals the process whose folder below `/proc` this is, and none that has its number by now.
pub(crate) fn signal_by(folder: BorrowedFd<'_>, signal: Signal) -> nix::Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: no memory of ours is read or written.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, folder.as_raw_fd(), signal as i32, none, 0)
    };
    Errno::result(sent).map(drop)
}

/// An extended attribute of a file, as far as its first byte (`getxattr(2)`).
pub(crate) fn attribute(path: &Path, name: &CStr) -> Option<u8> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut value = [0u8; 16];
    // SAFETY: both names end with a NUL, and the kernel writes no more than the length that it is told.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    (length > 0).then_some(value[0])
}

/// Makes ended children stay until they are reaped, also where our parent had ignored `SIGCHLD`.
pub(crate) fn keep_zombies() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    unsafe { sigaction(Signal::SIGCHLD, &default) }?;
    Ok(())
}
