//! Messages of users, what makes no sense, and going on in another program.

use super::*;

#[test]
fn a_handle_of_the_user_is_acknowledged_and_what_is_unknown_does_no_harm() {
    run(async || {
        let bed = Bed::new(Balance::Kernel);
        let mut one = bed.worker(1, 1);
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        for line in [
            "no json",
            "",
            "\u{2}{}",
            "[",
            "{\"cmd\":\"NODE_CLUSTER\",\"act\":\"news\"}",
            "{\"cmd\":\"NODE_SOCKET_ALL_CLOSED\"}",
            "{\"cmd\":\"NODE_CLUSTER\",\"act\":\"queryServer\"}",
            "{\"cmd\":\"NODE_HANDLE_ACK\"}",
            "{\"cmd\":\"NODE_HANDLE_NACK\"}",
            "{\"cmd\":\"NODE_CLUSTER\",\"ack\":99,\"accepted\":false}",
            "{\"cmd\":\"NODE_CLUSTER\",\"act\":\"close\",\"key\":\"none\"}",
        ] {
            one.write(&format!("{line}\n"), None);
        }
        one.act(json!({ "act": "online" }));
        one.write(
            "{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Socket\",\"msg\":\"here\"}\n",
            Some(&file),
        );
        assert_eq!(one.hear().await.0, json!({ "cmd": "NODE_HANDLE_ACK" }));
    });
}

#[test]
fn messages_reach_workers_that_listen_and_their_siblings() {
    run(async || {
        let mut bed = Bed::new(Balance::RoundRobin);
        let (mut one, mut two) = (bed.worker(1, 1), bed.worker(2, 2));
        // Before a worker listens, a message would be lost in it.
        assert_eq!(bed.hub.send(&json!({ "first": 1 }), None), 2);
        one.listen(0).await;
        two.listen(0).await;
        assert_eq!(one.hear().await.0, json!({ "first": 1 }));
        assert_eq!(two.hear().await.0, json!({ "first": 1 }));
        assert_eq!(bed.hub.send(&json!("x"), Some(2)), 1);
        assert_eq!(two.hear().await.0, json!("x"));
        one.say(&json!({ "throng": { "to": "others", "message": [1] } }));
        let from = |message: Value| json!({ "throng": { "from": 1, "message": message } });
        assert_eq!(two.hear().await.0, from(json!([1])));
        one.say(&json!({ "throng": { "to": "all", "message": 2 } }));
        assert_eq!(one.hear().await.0, from(json!(2)));
        assert_eq!(two.hear().await.0, from(json!(2)));
        one.say(&json!("ready"));
        let mut told = Vec::new();
        while told.len() < 3 {
            told.push(bed.told().await);
        }
        assert_eq!(told[2], (1, News::SaidReady));
    });
}

#[test]
fn who_does_not_read_costs_no_memory_and_nobody_waits() {
    run(async || {
        let bed = Bed::with(Setup { cluster: None, stop_message: None, patience: LIMIT });
        let (fd, env) = bed.hub.join(1, 1).unwrap().unwrap();
        assert!(!env.iter().any(|(name, _)| *name == "NODE_UNIQUE_ID"));
        bed.hub.ready(1);
        let message = json!("x".repeat(10_000));
        let sent = (0..1000).filter(|_| bed.hub.send(&message, None) == 1).count();
        assert!((10..200).contains(&sent), "{sent}");
        // What was taken arrives whole.
        let mut stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(false).unwrap();
        let expected = sent * (10_000 + 3);
        let read = std::thread::spawn(move || {
            let mut buffer = vec![0; expected];
            stream.read_exact(&mut buffer).map(|()| memchr::memchr_iter(b'\n', &buffer).count())
        });
        while !read.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(read.join().unwrap().unwrap(), sent);
    });
}

#[test]
fn a_stop_message_comes_first_and_a_plain_channel_drains_when_it_closes() {
    run(async || {
        let stop_message = Some(json!("shutdown"));
        let mut bed = Bed::with(Setup { cluster: None, stop_message, patience: LIMIT });
        let mut one = bed.worker(1, 1);
        bed.hub.ready(1);
        bed.hub.drain(1, true);
        assert_eq!(one.hear().await.0, json!("shutdown"));
        drop(one);
        assert_eq!(bed.told().await, (1, News::Drained));
    });
}

#[test]
fn one_that_leaves_by_itself_is_heard_and_one_that_says_nothing_is_named() {
    run(async || {
        let cluster = Cluster {
            balance: Balance::Kernel,
            asked: None,
            passed: Vec::new(),
            user: None,
            end: END,
        };
        let patience = Duration::from_millis(50);
        let mut bed = Bed::with(Setup { cluster: Some(cluster), stop_message: None, patience });
        let mut one = bed.worker(1, 1);
        let seq = one.act(json!({ "act": "exitedAfterDisconnect" }));
        assert_eq!(one.hear().await.0["ack"], seq);
        assert_eq!(bed.told().await, (1, News::Leaves));
        let _silent = bed.hub.join(2, 2).unwrap().unwrap();
        assert_eq!(bed.told().await, (2, News::Deaf));
        assert!(!bed.hub.give_up() && bed.hub.give_up());
        assert!(bed.hub.join(3, 3).unwrap().is_none());
    });
}

#[test]
fn everything_goes_on_in_another_program() {
    run(async || {
        for balance in [Balance::RoundRobin, Balance::Kernel] {
            let before = Bed::new(balance);
            let (mut one, mut two) = (before.worker(1, 1), before.worker(2, 2));
            let (reply, fd) = one.listen(0).await;
            let port = fd.as_ref().map_or_else(|| port(&reply), local);
            drop(fd);
            two.listen(0).await;
            // Half a line is read, a connection is with a worker that has not answered, one waits.
            let mut clients = Vec::new();
            let mut held = None;
            if balance == Balance::RoundRobin {
                clients.push(TcpStream::connect(at(port)).unwrap());
                held = Some(one.connection().await.0);
            }
            one.write("{\"throng\":{\"to\":\"oth", None);
            two.act(json!({ "act": "exitedAfterDisconnect" }));
            two.hear().await;
            let mut kept = Vec::new();
            let saved = before.hub.save(&mut |fd| {
                let copy = fd.try_clone_to_owned()?;
                kept.push(copy);
                Ok(kept.last().unwrap().as_raw_fd())
            });
            let saved = serde_json::to_string(&saved.unwrap()).unwrap();
            let saved: crate::sockets::node::Saved = serde_json::from_str(&saved).unwrap();
            let mut numbers = saved.descriptors();
            let mut all: Vec<_> = kept.iter().map(AsRawFd::as_raw_fd).collect();
            numbers.sort_unstable();
            all.sort_unstable();
            assert_eq!(numbers, all, "each is named once");
            // As an exec leaves it: what was here is gone, but for what is kept.
            before.hub.forget();
            drop(before);
            let after = Bed::new(balance);
            after.hub.restore(&saved).unwrap();
            drop(kept);
            after.hub.resume(2);
            one.write("ers\",\"message\":7}}\n", None);
            assert_eq!(two.hear().await.0["throng"]["message"], 7);
            if let Some(seq) = held {
                one.answer(seq, true);
                clients.push(TcpStream::connect(at(port)).unwrap());
                // The other one is leaving.
                let (_, fd) = one.connection().await;
                assert!(belong(fd, &mut clients[1]));
                assert_eq!(after.hub.connections(1).unwrap().accepted, 1);
            }
            // The third worker is the third for Node too.
            let (_end, env) = after.hub.join(3, 2).unwrap().unwrap();
            assert!(env.contains(&("NODE_UNIQUE_ID", "3".to_owned())));
        }
    });
}
