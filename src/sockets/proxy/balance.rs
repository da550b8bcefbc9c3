//! Which worker a connection goes to. Pure: numbers in, a place out.

use std::net::IpAddr;

use super::super::Balance;

/// A worker that may be chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Where it stands in the table.
    pub(super) place: usize,
    pub(super) slot: u32,
    /// Its open connections.
    pub(super) active: u32,
}

/// The rule, and where the rotation stands.
#[derive(Debug)]
pub(super) struct Balancer {
    rule: Balance,
    /// The place whose turn is next.
    turn: usize,
}

impl Balancer {
    pub(super) fn new(rule: Balance) -> Self {
        Self { rule, turn: 0 }
    }

    /// Whether the client's address matters.
    pub(super) fn asks_who(&self) -> bool {
        self.rule == Balance::StickyIp
    }

    /// The place of the worker for a client, who has an address where he came by TCP.
    pub(super) fn choose(
        &mut self,
        candidates: impl Iterator<Item = Candidate>,
        client: Option<IpAddr>,
    ) -> Option<usize> {
        let turn = self.turn;
        // Those whose turn is still to come stand before those who had theirs.
        let after = |place: usize| (place < turn, place);
        if let (Balance::StickyIp, Some(client)) = (self.rule, client) {
            let chosen = candidates.max_by_key(|one| weight(client, one.slot));
            return chosen.map(|one| one.place);
        }
        let chosen = match self.rule {
            Balance::RoundRobin => candidates.min_by_key(|one| after(one.place)),
            _ => candidates.min_by_key(|one| (one.active, after(one.place))),
        };
        let place = chosen?.place;
        self.turn = place + 1;
        Some(place)
    }
}

/// Rendezvous hashing: the slot with the greatest weight has the client. One that comes or goes moves
/// no client between two others, and the same numbers come out of every program and on every machine.
fn weight(client: IpAddr, slot: u32) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
    let hash = match client.to_canonical() {
        IpAddr::V4(ip) => ip.octets().iter().fold(BASIS, fnv),
        IpAddr::V6(ip) => ip.octets().iter().fold(BASIS, fnv),
    };
    let hash = slot.to_le_bytes().iter().fold(hash, fnv);
    // FNV leaves the upper bits of short keys alike, and the greatest is what counts (the finish of
    // splitmix64).
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use super::*;

    fn workers(active: &[u32]) -> Vec<Candidate> {
        let all = active.iter().enumerate();
        all.map(|(place, active)| Candidate {
            place,
            slot: u32::try_from(place).unwrap() + 1,
            active: *active,
        })
        .collect()
    }

    fn choices(rule: Balance, active: &[u32], count: usize) -> Vec<usize> {
        let mut balancer = Balancer::new(rule);
        (0..count).map(|_| balancer.choose(workers(active).into_iter(), None).unwrap()).collect()
    }

    #[test]
    fn the_one_with_the_fewest_and_in_rotation_where_they_have_as_few() {
        assert_eq!(choices(Balance::LeastConnections, &[1, 0, 1, 0], 5), [1, 3, 1, 3, 1]);
        assert_eq!(choices(Balance::LeastConnections, &[2, 2, 2], 4), [0, 1, 2, 0]);
        assert_eq!(choices(Balance::RoundRobin, &[9, 0, 5], 4), [0, 1, 2, 0]);
        let mut balancer = Balancer::new(Balance::RoundRobin);
        assert_eq!(balancer.choose(std::iter::empty(), None), None);
    }

    #[test]
    fn round_robin_passes_over_who_is_away() {
        let mut balancer = Balancer::new(Balance::RoundRobin);
        let all = workers(&[0, 0, 0]);
        let without = |place: usize| all.clone().into_iter().filter(move |one| one.place != place);
        assert_eq!(balancer.choose(without(0), None), Some(1));
        assert_eq!(balancer.choose(without(2), None), Some(0));
        assert_eq!(balancer.choose(without(1), None), Some(2));
    }

    #[test]
    fn an_address_meets_the_same_worker_and_a_loss_moves_only_its_own() {
        let mut balancer = Balancer::new(Balance::StickyIp);
        let all = workers(&[0, 7, 0, 3]);
        let clients: Vec<IpAddr> =
            (0..4000).map(|n: u32| Ipv4Addr::from_bits(0x0a00_0000 + n * 7).into()).collect();
        let mut counts = BTreeMap::new();
        for client in &clients {
            let with = balancer.choose(all.iter().copied(), Some(*client)).unwrap();
            assert_eq!(balancer.choose(all.iter().rev().copied(), Some(*client)), Some(with));
            *counts.entry(with).or_insert(0) += 1;
            let left = all.iter().copied().filter(|one| one.place != 2);
            let without = balancer.choose(left, Some(*client)).unwrap();
            assert!(with == 2 || with == without);
        }
        assert!(counts.len() == 4 && counts.values().all(|count| (900..1100).contains(count)));
        // By whichever family he comes.
        let (v4, mapped): (IpAddr, IpAddr) =
            ("10.0.0.7".parse().unwrap(), "::ffff:10.0.0.7".parse().unwrap());
        assert_eq!(weight(v4, 3), weight(mapped, 3));
    }
}
