//! Who listens on what, and what remains of it.

use super::*;

#[test]
fn kernel_each_slot_has_a_socket_and_its_next_worker_has_the_same() {
    run(async || {
        let mut bed = Bed::new(Balance::Kernel);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let (reply, first) = one.listen(0).await;
        assert_eq!(bed.told().await, (1, News::Listens));
        assert_eq!(
            (&reply["errno"], &reply["key"]),
            (&json!(0), &json!("127.0.0.1:0:4:undefined:0"))
        );
        let (_, second) = two.listen(0).await;
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(local(&first), local(&second));
        let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
        assert_ne!(inode(&first), inode(&second));
        let flags = nix::fcntl::fcntl(&first, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert_ne!(flags & nix::libc::O_NONBLOCK, 0, "libuv takes it as it is");
        // The worker dies; what waits for it waits for the next one.
        drop((one, first));
        bed.hub.gone(1);
        let mut next = bed.worker(3, 1);
        let (_, third) = next.listen(0).await;
        assert_ne!(inode(&third.unwrap()), inode(&second));
        assert_eq!(bed.hub.connections(3), None);
    });
}

#[test]
fn while_a_slot_is_empty_nothing_new_comes_to_it() {
    run(async || {
        let bed = Bed::new(Balance::Kernel);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        let (_, first) = one.listen(0).await;
        let (_, second) = two.listen(0).await;
        drop((one, first));
        bed.hub.gone(1);
        let listener = std::net::TcpListener::from(second.unwrap());
        for _ in 0..40 {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (taken, _) = listener.accept().unwrap();
            assert_eq!(taken.peer_addr().unwrap(), client.local_addr().unwrap());
        }
    });
}

#[test]
fn a_reply_whose_descriptor_is_lost_comes_again_three_times() {
    run(async || {
        let bed = Bed::new(Balance::Kernel);
        let mut one = bed.worker(1, 1);
        one.query(0);
        for _ in 0..4 {
            assert!(one.hear().await.1.is_some());
            one.say(&json!({ "cmd": "NODE_HANDLE_NACK" }));
        }
        let seq = one.act(json!({ "act": "exitedAfterDisconnect" }));
        let (message, fd) = one.hear().await;
        assert_eq!((message["ack"].as_u64(), fd.is_none()), (Some(seq), true));
    });
}

#[test]
fn a_drained_worker_hears_so_gets_nothing_new_and_its_replacement_has_its_sockets() {
    run(async || {
        for balance in [Balance::Kernel, Balance::RoundRobin] {
            let mut bed = Bed::new(balance);
            let mut one = bed.worker(1, 1);
            let (reply, fd) = one.listen(0).await;
            let port = fd.as_ref().map_or_else(|| port(&reply), local);
            assert_eq!(bed.told().await, (1, News::Listens));
            bed.hub.drain(1, false);
            assert_eq!(one.hear().await.0["act"], "disconnect");
            one.act(json!({ "act": "close", "key": reply["key"] }));
            // Nobody listens, and nobody is refused.
            let mut client = TcpStream::connect(at(port)).unwrap();
            drop((one, fd));
            assert_eq!(bed.told().await, (1, News::Drained));
            let mut next = bed.worker(2, 1);
            let (_, fd) = next.listen(0).await;
            if let Some(fd) = fd {
                let (taken, _) = std::net::TcpListener::from(fd).accept().unwrap();
                assert_eq!(taken.peer_addr().unwrap(), client.local_addr().unwrap());
            } else {
                assert!(belong(next.take().await, &mut client));
            }
        }
    });
}

#[test]
fn a_server_that_closes_for_good_leaves_its_port() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let mut one = bed.worker(1, 1);
        let (reply, _) = one.listen(0).await;
        one.act(json!({ "act": "close", "key": reply["key"] }));
        let seq = one.act(json!({ "act": "exitedAfterDisconnect" }));
        assert_eq!(one.hear().await.0["ack"], seq);
        // The task that held it is gone with the next turn.
        tokio::task::yield_now().await;
        assert!(TcpStream::connect(at(port(&reply))).is_err());
    });
}

#[test]
fn errors_have_their_number_and_the_data_of_who_asked_first() {
    run(async || {
        let bed = Bed::new(Balance::RoundRobin);
        let holder = std::net::TcpListener::bind(at(0)).unwrap();
        let taken = holder.local_addr().unwrap().port();
        let mut one = bed.worker(1, 1);
        let seq = one.query(taken);
        let (reply, _) = one.hear().await;
        assert_eq!(
            (&reply["errno"], &reply["ack"]),
            (&json!(-(Errno::EADDRINUSE as i32)), &json!(seq))
        );
        drop(holder);
        // The key is forgotten: it may try again.
        let (reply, _) = one.listen(taken).await;
        assert!(reply["errno"].is_null());
        one.query(taken);
        let (reply, _) = one.hear().await;
        assert_eq!(reply["errno"], -(Errno::EADDRINUSE as i32), "twice in one process");
        let ask = |keys: &str| {
            json!({ "act": "queryServer", "index": 0, "data": { "ticketKeys": keys }, "address": "127.0.0.1",
                "port": 0, "addressType": 4, "flags": 0 })
        };
        one.act(ask("aa"));
        assert_eq!(one.hear().await.0["data"]["ticketKeys"], "aa");
        let mut two = bed.worker(2, 2);
        two.act(ask("bb"));
        assert_eq!(two.hear().await.0["data"]["ticketKeys"], "aa", "one key for all");
    });
}

#[test]
fn listen_narrows_what_a_worker_asks_for_and_what_was_passed_has_its_number() {
    run(async || {
        let passed = std::net::TcpListener::bind(at(0)).unwrap();
        let there = passed.local_addr().unwrap();
        let port = std::net::TcpListener::bind(at(0)).unwrap().local_addr().unwrap().port();
        let cluster = Cluster {
            balance: Balance::RoundRobin,
            asked: Some(Address::Tcp(at(port))),
            passed: vec![std::rc::Rc::new(OwnedFd::from(passed))],
            user: None,
            end: END,
        };
        let bed = Bed::with(Setup { cluster: Some(cluster), stop_message: None, patience: LIMIT });
        let mut one = bed.worker(1, 1);
        one.act(json!({ "act": "queryServer", "index": 0, "address": null, "port": port, "addressType": 4 }));
        let (reply, _) = one.hear().await;
        assert_eq!(reply["sockname"]["address"], "127.0.0.1");
        one.act(json!({ "act": "queryServer", "index": 0, "address": null, "port": null, "addressType": null, "fd": 3 }));
        let (reply, _) = one.hear().await;
        assert_eq!(reply["sockname"]["port"], there.port());
        let mut client = TcpStream::connect(there).unwrap();
        assert!(belong(one.take().await, &mut client));
        one.act(json!({ "act": "queryServer", "index": 0, "address": null, "port": null, "addressType": null, "fd": 4 }));
        assert_eq!(one.hear().await.0["errno"], -(Errno::EBADF as i32));
    });
}
