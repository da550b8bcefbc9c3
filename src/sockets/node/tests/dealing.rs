//! Connections that are handed out: turns, windows, refusals, deaths.

use super::*;

#[test]
fn round_robin_is_strict_and_interleaved_up_to_the_window() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let (reply, fd) = one.listen(0).await;
        assert!(fd.is_none() && reply["errno"].is_null());
        let port = port(&reply);
        two.listen(0).await;
        let mut clients: Vec<_> = (0..40).map(|_| TcpStream::connect(at(port)).unwrap()).collect();
        // Nothing is taken: each has its window, the rest waits in the kernel.
        let mut held = Vec::new();
        for (index, client) in clients.iter_mut().enumerate().take(16) {
            let peer = if index % 2 == 0 { &mut one } else { &mut two };
            let (seq, fd) = peer.connection().await;
            assert!(belong(fd, client), "connection {index}");
            held.push(seq);
        }
        for (index, seq) in held.into_iter().enumerate() {
            let peer = if index % 2 == 0 { &mut one } else { &mut two };
            peer.answer(seq, true);
        }
        for (index, client) in clients.iter_mut().enumerate().skip(16) {
            let peer = if index % 2 == 0 { &mut one } else { &mut two };
            assert!(belong(peer.take().await, client), "connection {index}");
        }
        // What was answered is heard before a question behind it is.
        let leaving = one.act(json!({ "act": "exitedAfterDisconnect" }));
        assert_eq!(one.hear().await.0["ack"], leaving);
        assert_eq!(bed.hub.connections(1).unwrap().accepted, 20);
    });
}

#[test]
fn who_had_no_room_gets_its_turns_later() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let port = port(&one.listen(0).await.0);
        two.listen(0).await;
        let connect = |count| -> Vec<_> {
            (0..count).map(|_| TcpStream::connect(at(port)).unwrap()).collect()
        };
        // One is busy with its window; the other takes what comes.
        let clients = connect(32);
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(one.connection().await.0);
        }
        for _ in 0..24 {
            drop(two.take().await);
        }
        for seq in held {
            one.answer(seq, true);
        }
        // Few at a time, so that there is room: one gets the sixteen that it missed, then both get as many.
        let (mut ones, mut twos) = (8, 24);
        for _ in 0..20 {
            let _pair = connect(2);
            for _ in 0..2 {
                tokio::select! {
                    fd = one.take() => { ones += 1; drop(fd); }
                    fd = two.take() => { twos += 1; drop(fd); }
                }
            }
        }
        assert_eq!((ones, twos), (36, 36));
        drop(clients);
    });
}

#[test]
fn a_worker_that_dies_costs_only_what_had_arrived() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let port = port(&one.listen(0).await.0);
        two.listen(0).await;
        let mut clients: Vec<_> = (0..4).map(|_| TcpStream::connect(at(port)).unwrap()).collect();
        // The first has arrived and is not taken, the third is on its way.
        let (_, first) = one.connection().await;
        one.say(&json!({ "cmd": "NODE_HANDLE_ACK" }));
        drop(two.take().await);
        let (_, third) = one.connection().await;
        let leaving = one.act(json!({ "act": "exitedAfterDisconnect" }));
        assert_eq!(one.hear().await.0["ack"], leaving);
        drop((one, first, third));
        bed.hub.gone(1);
        let mut got = Vec::new();
        for _ in 0..2 {
            got.push(two.take().await);
        }
        assert!(got.into_iter().any(|fd| belong(fd, &mut clients[2])));
        // The first is closed, and its client is told so.
        assert!(matches!(clients[0].read(&mut [0]), Ok(0) | Err(_)));
    });
}

#[test]
fn one_that_is_refused_goes_to_another_and_is_asked_for_again_later() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let port = port(&one.listen(0).await.0);
        two.listen(0).await;
        let mut client = TcpStream::connect(at(port)).unwrap();
        for _ in 0..3 {
            let (seq, _) = one.connection().await;
            one.answer(seq, false);
            let (seq, _) = two.connection().await;
            two.answer(seq, false);
        }
        assert!(belong(one.take().await, &mut client));
        assert_eq!(bed.hub.connections(2).unwrap().accepted, 0);
    });
}

#[test]
fn a_worker_without_descriptors_is_left_alone_for_a_while() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let mut one = bed.worker(1, 1);
        let port = port(&one.listen(0).await.0);
        let mut client = TcpStream::connect(at(port)).unwrap();
        one.connection().await;
        let began = tokio::time::Instant::now();
        one.say(&json!({ "cmd": "NODE_HANDLE_NACK" }));
        let (seq, fd) = one.connection().await;
        assert!(began.elapsed() >= Duration::from_millis(70));
        assert!(belong(fd, &mut client));
        one.answer(seq, true);
        // In vain again and again: it is closed, and counted.
        let mut client = TcpStream::connect(at(port)).unwrap();
        for _ in 0..3 {
            one.connection().await;
            one.say(&json!({ "cmd": "NODE_HANDLE_NACK" }));
        }
        client.set_nonblocking(true).unwrap();
        while client.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock) {
            tokio::task::yield_now().await;
        }
        assert_eq!(bed.hub.connections(1).unwrap().failed, 1);
    });
}

#[test]
fn sticky_ip_keeps_to_the_slot_of_an_address_through_replacements() {
    run(async || {
        let bed = Bed::new(Balance::StickyIp);
        let mut peers = vec![bed.worker(1, 1), bed.worker(2, 2), bed.worker(3, 3)];
        let port = port(&peers[0].listen(0).await.0);
        peers[1].listen(0).await;
        peers[2].listen(0).await;
        let clients: Vec<_> = (0..6).map(|_| TcpStream::connect(at(port)).unwrap()).collect();
        // All come from one address, so to one worker.
        let mut chosen = None;
        for _ in 0..clients.len() {
            let [one, two, three] = &mut peers[..] else { panic!("three") };
            let (index, (seq, _)) = tokio::select! {
                connection = one.connection() => (0, connection),
                connection = two.connection() => (1, connection),
                connection = three.connection() => (2, connection),
            };
            peers[index].answer(seq, true);
            assert_eq!(*chosen.get_or_insert(index), index);
        }
        let chosen = chosen.unwrap();
        let slot = u32::try_from(chosen).unwrap() + 1;
        drop(peers.swap_remove(chosen));
        bed.hub.gone(u64::from(slot));
        let mut next = bed.worker(9, slot);
        next.listen(0).await;
        let _client = TcpStream::connect(at(port)).unwrap();
        next.take().await;
    });
}
