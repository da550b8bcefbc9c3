//! Which socket of a group gets a new connection, as a program for the kernel.
//!
//! The kernel keeps the sockets of a group in the order in which they began to listen, and asks the
//! program once for each connection, at its SYN (`reuseport_select_sock`, `net/core/sock_reuseport.c`): the
//! answer is an index. One that is not there makes the kernel choose for itself, among all.
//!
//! Classic BPF keeps no state, so there is no rotation; of what it can read, the kernel's random number
//! gives the evenest shares. A hash of addresses and ports is no more even over many clients and far less
//! so over few. And a SYN that comes again, because a queue was full, does not come to the same queue.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc::{
    BPF_ABS, BPF_ADD, BPF_ALU, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_MOD, BPF_RET, BPF_W,
    SKF_AD_OFF, SKF_AD_RANDOM, sock_filter, sock_fprog,
};
use nix::sys::socket::{setsockopt, sockopt};

/// `BPF_A`: the answer is what the accumulator holds.
const BPF_A: u32 = 0x10;
/// Gaps that a program goes around. With four bytes of code and two instructions for each it stays below
/// what a socket may hold (`net.core.optmem_max`, once 20 KiB) and what classic BPF allows (4096).
const MOST_GAPS: usize = 1000;

/// Leads new connections of the group that `member` belongs to, and that has `total` sockets, to those at
/// `indices` (ascending, at least one), evenly.
pub(super) fn steer(member: &OwnedFd, total: usize, indices: &[usize]) -> io::Result<()> {
    let mut code = program(total, indices);
    let program = sock_fprog {
        len: u16::try_from(code.len()).unwrap_or(u16::MAX),
        filter: code.as_mut_ptr(),
    };
    // The kernel copies it.
    Ok(setsockopt(member, sockopt::AttachReusePortCbpf, &program)?)
}

fn program(total: usize, indices: &[usize]) -> Vec<sock_filter> {
    let word = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let mut code = vec![
        code(BPF_LD | BPF_W | BPF_ABS, (SKF_AD_OFF + SKF_AD_RANDOM).cast_unsigned()),
        code(BPF_ALU | BPF_MOD | BPF_K, word(indices.len().max(1))),
    ];
    // Counts over the gaps: what has come to the first index of one goes on behind it.
    for (start, length) in gaps(total, indices).into_iter().take(MOST_GAPS) {
        code.push(sock_filter { jf: 1, ..self::code(BPF_JMP | BPF_JGE | BPF_K, word(start)) });
        code.push(self::code(BPF_ALU | BPF_ADD | BPF_K, word(length)));
    }
    code.push(self::code(BPF_RET | BPF_A, 0));
    code
}

/// The runs of indices that are left out, each with its length.
fn gaps(total: usize, indices: &[usize]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut next = 0;
    for index in indices.iter().copied().chain([total]) {
        if index > next {
            found.push((next, index - next));
        }
        next = index + 1;
    }
    found
}

fn code(code: u32, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or_default(), jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers to `random`, by a reading of classic BPF of our own.
    fn run(program: &[sock_filter], random: u32) -> u32 {
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let one = &program[at];
            at += 1;
            match u32::from(one.code) {
                op if op == BPF_LD | BPF_W | BPF_ABS => a = random,
                op if op == BPF_ALU | BPF_MOD | BPF_K => a %= one.k,
                op if op == BPF_ALU | BPF_ADD | BPF_K => a += one.k,
                op if op == BPF_JMP | BPF_JGE | BPF_K => {
                    at += usize::from(if a >= one.k { one.jt } else { one.jf });
                }
                op if op == BPF_RET | BPF_A => return a,
                op => panic!("{op:#x}"),
            }
        }
    }

    #[test]
    fn each_index_that_is_meant_comes_up_equally_often_and_no_other() {
        for total in 1..=9_usize {
            for set in 1..1_u32 << total {
                let indices: Vec<_> = (0..total).filter(|index| set >> index & 1 == 1).collect();
                let program = program(total, &indices);
                let rounds = u32::try_from(indices.len()).unwrap() * 3;
                let mut hits: Vec<_> = (0..rounds).map(|random| run(&program, random)).collect();
                hits.sort_unstable();
                let want = indices.iter().flat_map(|i| [u32::try_from(*i).unwrap(); 3]);
                assert_eq!(hits, want.collect::<Vec<_>>(), "{indices:?} of {total}");
            }
        }
    }

    #[test]
    fn a_program_never_outgrows_what_the_kernel_takes() {
        let every_other: Vec<_> = (0..10_000).filter(|index| index % 2 == 1).collect();
        assert!(program(10_000, &every_other).len() < 2048);
    }
}
