//! The promises of single requests: duplicates, waiting for durability, limits, a full store.

mod master_support;

use master_support::*;
use rekindle_core::master::Master;
use rekindle_core::master::tablets::SlotRange;
use rekindle_core::status::Status;

#[test]
fn duplicates_get_the_saved_answer_or_are_stale() {
    let master = master(64 << 20);
    master.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&master, 9);
    let write = |rpc_id, value: &[u8]| Op {
        kind: 2,
        table_id: 1,
        key: b"k".to_vec(),
        value: value.to_vec(),
        rpc_id,
        ..Op::default()
    };
    let first = client.send(0, &[write(1, b"a")]);
    let position = client.position;
    let second = client.send(0, &[write(2, b"b")]);
    assert_eq!(second[0].version, first[0].version + 1);
    assert_eq!(client.send(0, &[write(1, b"a")]), first);
    assert_eq!(
        client.position, position,
        "the saved answer waits as the first did"
    );
    master
        .set_durable(master.appended_position().expect("open"))
        .expect("known");
    assert_eq!(client.send(0, &[write(1, b"a")]), first);
    assert_eq!(client.position, 0);
    client.send(1, &[]);
    assert_eq!(
        client.send(0, &[write(1, b"a")])[0].status,
        Status::StaleRpc as u16
    );
    assert_eq!(client.read(b"k").value, b"b");
    // Not remembered: an operation that failed for want of the tablet.
    let other = Op {
        table_id: 2,
        ..write(3, b"c")
    };
    let refused = client.send(1, std::slice::from_ref(&other));
    assert_eq!(refused[0].status, Status::UnknownTablet as u16);
    master
        .take_tablet(SlotRange {
            table_id: 2,
            ..WHOLE
        })
        .expect("taken");
    assert_eq!(client.send(1, &[other])[0].status, 0);
    // Remembered: a reject.
    let reject = Op {
        reject: 2,
        ..write(4, b"d")
    };
    let rejected = client.send(1, std::slice::from_ref(&reject));
    assert_eq!(rejected[0].status, Status::ObjectExists as u16);
    client.send(
        1,
        &[Op {
            kind: 3,
            rpc_id: 5,
            value: Vec::new(),
            ..write(5, b"")
        }],
    );
    assert_eq!(client.send(1, &[reject]), rejected);
}

#[test]
fn answers_wait_for_what_they_depend_on() {
    let master = master(64 << 20);
    master.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&master, 1);
    let durable = || {
        let appended = master.appended_position().expect("open");
        master.set_durable(appended).expect("known");
    };
    client.write(b"k", b"v");
    let written = client.position;
    assert_eq!(written, master.appended_position().expect("open"));
    client.read(b"k");
    assert_eq!(client.position, written);
    client.read(b"absent");
    assert_eq!(client.position, 0);
    durable();
    client.read(b"k");
    assert_eq!(client.position, 0);
    client.remove(b"k");
    let removed = client.position;
    assert!(removed > written);
    assert_eq!(client.read(b"k").status, Status::ObjectNotFound as u16);
    assert_eq!(
        client.position, removed,
        "a negative answer waits for the tombstone"
    );
    client.remove(b"k");
    assert_eq!(client.position, removed);
    durable();
    client.read(b"k");
    assert_eq!(client.position, 0);
}

#[test]
fn bad_requests_are_refused_one_by_one_or_whole() {
    let master = master(64 << 20);
    master.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&master, 1);
    assert_eq!(client.write(b"", b"v").status, Status::InvalidKey as u16);
    let large = vec![1; (1 << 20) + 1];
    assert_eq!(
        client.write(b"k", &large).status,
        Status::ValueTooLarge as u16
    );
    assert_eq!(client.write(b"k", &large[1..]).status, 0);
    let longest = vec![b'k'; 65_535];
    assert_eq!(client.write(&longest, &large[1..]).status, 0);
    assert_eq!(client.write(&longest, b"").status, 0);
    let appended = master.appended_position().expect("open");
    let mut reply = vec![0; 1000];
    for garbage in [&b""[..], &[0xff; 24], &[0xff; 4096]] {
        let refused = master.execute(garbage, &mut reply, 0);
        assert_eq!(refused, Err(Status::MalformedRequest));
    }
    let reads = vec![
        Op {
            kind: 1,
            table_id: 1,
            key: b"k".to_vec(),
            ..Op::default()
        };
        70
    ];
    let refused = master.execute(&body(1, 0, &reads), &mut reply, 0);
    assert_eq!(
        refused,
        Err(Status::MalformedRequest),
        "not even empty results fit"
    );
    let done = master
        .execute(&body(1, 0, &reads[..60]), &mut reply, 0)
        .expect("sound");
    let retry = |answer: &Answer| answer.status == Status::Retry as u16;
    assert!(
        answers(&reply[..done.reply_bytes]).iter().all(retry),
        "no room for the value"
    );
    assert_eq!(master.appended_position().expect("open"), appended);
}

#[test]
fn a_full_store_says_no_and_still_removes() {
    let master = master_without_backups(256 << 20);
    master.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&master, 1);
    let value = vec![7; 100_000];
    let mut written = 0u32;
    loop {
        let answer = client.write(&written.to_le_bytes(), &value);
        match answer.status {
            0 => written += 1,
            status if status == Status::Retry as u16 => std::thread::yield_now(),
            status => {
                assert_eq!(status, Status::OutOfMemory as u16);
                break;
            }
        }
    }
    assert!(written > 1_900, "most of the memory is usable: {written}");
    for key in 0..written {
        assert_eq!(client.remove(&key.to_le_bytes()).status, 0, "{key}");
    }
    assert_eq!(
        client.read(&0u32.to_le_bytes()).status,
        Status::ObjectNotFound as u16
    );
    master.roll_head().expect("the last segment is for a head");
}

#[test]
fn who_writes_little_does_not_wait_for_who_writes_much() {
    // With backups, and nobody here who ends a pass of the cleaner: memory stays short.
    let master = master(64 << 20);
    master.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&master, 1);
    let value = vec![7; 100_000];
    let mut written = 0u64;
    while client.write(&(written % 8).to_le_bytes(), &value).status == 0 {
        written += 1;
    }
    assert!(written > 200, "some blocks are for writes: {written}");
    let bulk = |client: &mut Client| client.write(b"bulk", &value).status;
    assert_eq!(bulk(&mut client), Status::Retry as u16);
    for key in 0..1_000u32 {
        let small = client.write(&key.to_le_bytes(), b"small").status;
        assert_eq!(small, 0, "{key}");
    }
    assert_eq!(bulk(&mut client), Status::Retry as u16);
}

#[test]
fn a_dropped_tablet_is_gone_and_a_closed_master_refuses() {
    let master = master(64 << 20);
    master.take_tablet(WHOLE).expect("taken");
    master.take_tablet(WHOLE).expect("taken twice is once");
    master
        .take_tablet(SlotRange {
            table_id: 2,
            ..WHOLE
        })
        .expect("taken");
    let mut client = Client::new(&master, 1);
    for key in 0..2_000u32 {
        client.write(&key.to_le_bytes(), b"one");
        let key = key.to_le_bytes().to_vec();
        client.one(Op {
            kind: 2,
            table_id: 2,
            key,
            value: b"two".to_vec(),
            ..Op::default()
        });
    }
    master.drop_tablet(WHOLE).expect("dropped");
    master.drop_tablet(WHOLE).expect("dropped twice is once");
    assert_eq!(client.read(&[0; 4]).status, Status::UnknownTablet as u16);
    master.take_tablet(WHOLE).expect("taken");
    assert_eq!(client.read(&[0; 4]).status, Status::ObjectNotFound as u16);
    let read = Op {
        kind: 1,
        table_id: 2,
        key: vec![0; 4],
        ..Op::default()
    };
    assert_eq!(client.one(read).value, b"two");
    assert_eq!(stats(&master)["objects"], 2_000);
    master.close().expect("closed");
    assert_eq!(master.appended_position(), Err(Status::InvalidArgument));
    assert_eq!(master.close(), Err(Status::InvalidArgument));
}

#[test]
fn a_key_with_dead_versions_in_many_segments_names_them_all() {
    let mut random = Random::new();
    let master = master(256 << 20);
    master.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&master, 1);
    let before = |master: &Master| master.appended_position().expect("open");
    for round in 0..17u64 {
        for key in [&b"kept"[..], b"removed"] {
            assert_eq!(client.write(key, b"value").status, 0);
        }
        let start = before(&master);
        client.write(b"kept", b"value");
        // 15 segments and its own do not fit into one entry: a tombstone takes the 15.
        let entry_bytes = match round {
            15 => 48 + 8 + 160,
            16 => 48 + 2 * 8,
            _ => 48 + (round + 1) * 8,
        };
        assert_eq!(before(&master) - start, entry_bytes, "{round}");
        if round == 15 {
            let start = before(&master);
            client.remove(b"removed");
            assert_eq!(before(&master) - start, 160 + 48);
        }
        log_bytes(&master, &mut random);
        master.roll_head().expect("rolled");
    }
    assert_eq!(client.read(b"kept").value, b"value");
    assert_eq!(client.read(b"removed").value, b"value");
}
