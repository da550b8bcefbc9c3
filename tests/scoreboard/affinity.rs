//! The one thing that no folder can hold: which CPUs the kernel lets a process run on.
//!
//! The peers get it from the C library's `sched_getaffinity`. A program's own function of that name
//! goes before the library's, so the one below is what the standard library and `num_cpus` call, and
//! it answers as the recorded machine's kernel would. It does not reach what makes the system call
//! without the C library; nobody here does.

#![expect(unsafe_code, reason = "it takes the place of a function of the C library")]

use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc;

/// The machine's CPUs, with how many ids its kernel has.
#[derive(Debug)]
pub(crate) struct Cpus {
    pub(crate) allowed: Vec<usize>,
    pub(crate) ids: usize,
}

static MACHINE: OnceLock<Cpus> = OnceLock::new();

/// From here on this process runs on these.
pub(crate) fn become_machine(cpus: Cpus) {
    MACHINE.set(cpus).unwrap();
}

/// `sched_getaffinity(2)` as the C library has it: 0, or -1 with `errno`.
#[unsafe(no_mangle)]
extern "C" fn sched_getaffinity(pid: libc::pid_t, size: usize, mask: *mut u8) -> libc::c_int {
    let Some(machine) = MACHINE.get() else {
        // SAFETY: the caller's own arguments are handed on; the kernel checks all three.
        let written = unsafe { libc::syscall(libc::SYS_sched_getaffinity, pid, size, mask) };
        let Ok(written) = usize::try_from(written) else { return -1 };
        // SAFETY: the caller's mask has `size` bytes, of which the kernel wrote the first.
        unsafe { mask.add(written).write_bytes(0, size - written) };
        return 0;
    };
    // The kernel refuses a mask that is too short for its CPUs, whether they are there or not.
    if size * 8 < machine.ids {
        Errno::EINVAL.set();
        return -1;
    }
    // SAFETY: the caller's mask has `size` bytes, by the contract of the function.
    let mask = unsafe {
        mask.write_bytes(0, size);
        std::slice::from_raw_parts_mut(mask, size)
    };
    for cpu in &machine.allowed {
        mask[cpu / 8] |= 1 << (cpu % 8);
    }
    0
}
