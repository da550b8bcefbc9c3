//! With sockets and connections of a real kernel.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

use super::*;

const END: RawFd = 40;

fn bind(address: &str) -> Slots {
    Slots::bind(address.parse().unwrap(), None, 64, END).unwrap()
}

fn group(slots: u32) -> Slots {
    let mut group = bind("127.0.0.1:0");
    for slot in 1..=slots {
        assert!(group.socket(slot).unwrap().as_raw_fd() >= END);
    }
    group
}

/// Connects that often and tells which slot got how many, by taking them.
fn spread(group: &Slots, connections: u32) -> BTreeMap<u32, u32> {
    let mut found = BTreeMap::new();
    // In parts that no queue is too short for.
    for part in 0..connections.div_ceil(32) {
        let here = 32.min(connections - part * 32);
        let clients: Vec<_> =
            (0..here).map(|_| TcpStream::connect(group.address()).unwrap()).collect();
        for slot in group.members.iter().filter_map(|member| member.slot) {
            let count = group.dismiss(slot).unwrap();
            assert!(!group.has_waiting(slot));
            if count > 0 {
                *found.entry(slot).or_default() += count;
            }
        }
        drop(clients);
    }
    assert_eq!(found.values().sum::<u32>(), connections);
    found
}

fn slots(group: &Slots) -> Vec<u32> {
    spread(group, 320).into_keys().collect()
}

#[test]
fn new_connections_go_to_the_slots_that_they_are_led_to() {
    let mut group = group(4);
    assert_eq!(slots(&group), [1, 2, 3, 4]);
    group.steer([1, 3, 4]).unwrap();
    assert_eq!(slots(&group), [1, 3, 4]);
    group.steer([2]).unwrap();
    assert_eq!(slots(&group), [2]);
    // A new one has nobody who accepts yet.
    group.socket(5).unwrap();
    assert_eq!(slots(&group), [2]);
    group.steer([2, 5]).unwrap();
    assert_eq!(slots(&group), [2, 5]);
    group.steer([]).unwrap();
    assert_eq!(slots(&group), [1, 2, 3, 4, 5]);
}

#[test]
fn shares_are_even() {
    let mut group = group(4);
    group.steer(1..=4).unwrap();
    // Of 6400 the share of one has a standard deviation of 0.54 points: seven of them.
    for count in spread(&group, 6400).values() {
        assert!((1600 - 245..=1600 + 245).contains(count), "{count}");
    }
}

#[test]
fn when_one_closes_the_last_takes_its_place_and_nothing_is_mixed_up() {
    for gone in 1..=4 {
        let mut group = group(4);
        group.steer([2, 4]).unwrap();
        // As a worker, or what it has left behind, would hold it.
        let held = group.socket(gone).unwrap().try_clone().unwrap();
        group.close(gone);
        let left: Vec<_> = [2, 4].into_iter().filter(|slot| *slot != gone).collect();
        assert_eq!(slots(&group), left, "without {gone}");
        group.steer([1, 3]).unwrap();
        let left: Vec<_> = [1, 3].into_iter().filter(|slot| *slot != gone).collect();
        assert_eq!(slots(&group), left, "without {gone}");
        drop(held);
        group.socket(gone).unwrap();
        group.steer([gone]).unwrap();
        assert_eq!(slots(&group), [gone], "{gone} again");
    }
}

#[test]
fn what_waits_stays_for_the_next_worker_while_others_are_led_elsewhere() {
    let mut group = group(2);
    group.steer([1]).unwrap();
    let waiting = TcpStream::connect(group.address()).unwrap();
    assert!(group.has_waiting(1) && !group.has_waiting(2));
    group.steer([2]).unwrap();
    assert_eq!(slots_of_one(&group), 2);
    assert!(group.has_waiting(1));
    // Another slot goes, whose place in the order is the last or not.
    group.close(2);
    let listener = TcpListener::from(group.socket(1).unwrap().try_clone().unwrap());
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(accepted.peer_addr().unwrap(), waiting.local_addr().unwrap());
}

fn slots_of_one(group: &Slots) -> u32 {
    let _client = TcpStream::connect(group.address()).unwrap();
    let found = group.members.iter().filter_map(|member| member.slot);
    let found: Vec<_> = found.filter(|slot| *slot != 1 && group.has_waiting(*slot)).collect();
    assert_eq!(found.len(), 1);
    group.dismiss(found[0]).unwrap();
    found[0]
}

#[test]
fn what_a_worker_has_shut_down_is_had_anew() {
    for gone in 1..=3 {
        let mut group = group(3);
        group.steer([1, 2, 3]).unwrap();
        let theirs = group.socket(gone).unwrap();
        shutdown(theirs.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
        group.socket(gone).unwrap();
        group.steer([gone]).unwrap();
        assert_eq!(slots(&group), [gone]);
        group.steer([1, 2, 3]).unwrap();
        assert_eq!(slots(&group), [1, 2, 3]);
    }
}

#[test]
fn a_second_run_of_the_same_user_is_found() {
    let group = group(3);
    let again = Slots::bind(group.address(), None, 64, END).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    let all = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), group.address().port());
    let again = Slots::bind(all, None, 64, END).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn the_address_is_free_when_the_last_has_gone_and_is_taken_again_on_demand() {
    let mut group = group(2);
    let address = group.address();
    group.close(1);
    group.close(2);
    let other = TcpListener::bind(address).unwrap();
    assert_eq!(group.socket(1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(other);
    group.socket(2).unwrap();
    assert_eq!(slots(&group), [2]);
    let again = Slots::bind(address, None, 64, END).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn a_group_goes_on_from_its_descriptors() {
    let mut before = group(3);
    before.close(1);
    before.steer([2]).unwrap();
    let fds = before.members().map(|(slot, fd)| (slot, fd.try_clone_to_owned().unwrap()));
    let fds: Vec<_> = fds.collect();
    let like = fds[0].1.try_clone().unwrap();
    drop(before);
    let mut after = Slots::restore(fds, &like, 64, END).unwrap();
    drop(like);
    assert_eq!(slots(&after), [2], "as it was steered before");
    after.socket(4).unwrap();
    after.steer([3, 4]).unwrap();
    assert_eq!(slots(&after), [3, 4]);
}

#[test]
fn ipv6_alone_and_with_ipv4() {
    let all = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    for only in [false, true] {
        let mut group = match Slots::bind(all, Some(only), 64, END) {
            Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
                eprintln!("skipped: no IPv6 here");
                return;
            }
            group => group.unwrap(),
        };
        for slot in 1..=3 {
            group.socket(slot).unwrap();
        }
        group.steer([2, 3]).unwrap();
        let port = group.address().port();
        let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
        assert_eq!(TcpStream::connect(v4).is_ok(), !only);
        TcpStream::connect(v6).unwrap();
        assert!(!group.has_waiting(1));
        assert!(group.has_waiting(2) || group.has_waiting(3));
    }
}
