//! Ports that are taken, and clients that talk nonsense on those that are ours.

use crate::{
    common::until,
    rig::{self, Member, http},
};
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

/// Resident memory of an agent may grow by so much under abuse, KiB; the buffers of as many
/// connections as are let in.
const GROWTH_MAX_KIB: u64 = 64 << 10;

#[test]
fn a_port_in_use_is_named() {
    let folder = rig::folder();
    let member = Member::new(folder.path(), "m1", "");
    member.sempre(&["init"]).ok();
    for (what, address) in member.addresses() {
        let taken = TcpListener::bind(address).unwrap();
        let said = member.run_to_its_end();
        said.refused(1, "SEMPRE-0050", &[&address.to_string(), "ss -ltnp"]);
        drop(taken);
        assert!(!said.err.contains("panicked"), "{what}: {}", said.err);
    }
    // Nothing was lost by it.
    let member = {
        let mut member = member;
        member.start();
        member
    };
    member.until("it serves", |status| status["writable"] == true);
}

fn resident_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Bytes without sense, the same at each run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// What is sent, each on a connection of its own.
fn nonsense() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![0; 64],
        vec![0xff; 4096],
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /\0 HTTP/1.1\r\nhost: \xff\r\n\r\n".to_vec(),
        b"POST /switchover HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /v1/switchover HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_vec(),
        [b"GET /".to_vec(), vec![b'a'; 200_000], b" HTTP/1.1\r\n\r\n".to_vec()].concat(),
        [b"GET / HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(50_000)].concat(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec(),
        // A TLS record header that promises much; a hello cut short; an alert.
        [&[0x16, 3, 1, 0xff, 0xff][..], &noise(3, 70_000)].concat(),
        [&[0x16, 3, 3, 0, 200, 1, 0, 0, 196, 3, 3][..], &noise(5, 100)].concat(),
        vec![0x15, 3, 3, 0, 2, 2, 40],
        // PostgreSQL start-up packets: too long, too short, negative, unknown, without an end.
        vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        vec![0, 0, 0, 4],
        vec![0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        vec![0, 0, 0, 8, 0xde, 0xad, 0xbe, 0xef],
        [&[0, 0, 0, 40, 0, 3, 0, 0][..], &[b'u'; 32]].concat(),
        // "Encrypt", then no TLS; "cancel" for a key that is nobody's.
        [&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f][..], &noise(7, 300)].concat(),
        vec![0, 0, 0, 16, 4, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 0, 0, 0, 2],
    ];
    all.extend((0..24).map(|seed| noise(seed * 77 + 1, 1 << (seed % 16))));
    all
}

/// Sends it, and reads what comes back for a moment. Refusals are no fault here.
fn send(address: SocketAddr, bytes: &[u8]) {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(5)) else {
        return;
    };
    let short = Some(Duration::from_millis(200));
    stream.set_read_timeout(short).unwrap();
    stream.set_write_timeout(short).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = [0; 4096];
    while matches!(stream.read(&mut answer), Ok(n) if n > 0) {}
}

/// Every port but the database's own: it says what it always says, and the agent lives on.
#[test]
fn garbage_on_every_port() {
    let folder = rig::folder();
    let set = ["route_read_only_fallback=true"];
    let mut member = Member::new(folder.path(), "m1", "").serving(&set);
    member.open();
    member.sql("create table kept (i int); insert into kept values (42)");
    let pid = member.agent_pid();
    let before = resident_kib(pid);
    let generation = member.status().unwrap()["generation"].clone();

    // Nonsense.
    let senders: Vec<_> = member
        .addresses()
        .map(|(_, address)| {
            std::thread::spawn(move || nonsense().iter().for_each(|bytes| send(address, bytes)))
        })
        .into();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    assert!(member.agent_lives());

    // Half-open and slow ones: many that say nothing, or a byte, and stay.
    let mut idle = Vec::new();
    for (_, address) in member.addresses() {
        for number in 0..150 {
            let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(5))
            else {
                continue;
            };
            if number % 2 == 0 {
                let _ = stream.write_all(&[0x16]);
            }
            idle.push(stream);
        }
    }
    assert!(member.agent_lives());
    assert!(idle.len() > 400, "only {} connections", idle.len());
    // With them there, everybody else is served as ever.
    works(&member, "among idle connections");
    // Each is ended by and by: by its own limit of time.
    let held = [1_u16, 2, 3, 4].map(|offset| member.port + offset);
    until("those that say nothing are let go", || {
        let mut open = [0; 4];
        for stream in &mut idle {
            stream.set_nonblocking(true).unwrap();
            let mut answer = [0; 512];
            let is_open = loop {
                match stream.read(&mut answer) {
                    Ok(0) => break false,
                    Ok(_) => {}
                    Err(error) => break error.kind() == ErrorKind::WouldBlock,
                }
            };
            let port = stream.peer_addr().map_or(0, |peer| peer.port());
            if let Some(index) = held.iter().position(|held| *held == port) {
                open[index] += u32::from(is_open);
            }
        }
        (open == [0; 4]).then_some(())
    });
    drop(idle);

    // Bytes that come one after the other, for ever.
    let slow = std::thread::spawn({
        let addresses = member.addresses();
        move || {
            let mut streams: Vec<_> =
                addresses.iter().filter_map(|(_, at)| TcpStream::connect(at).ok()).collect();
            for byte in b"GET /patroni HTTP/1.1\r\nx-slow: ".iter().chain(&[b'a'; 30]) {
                for stream in &mut streams {
                    let _ = stream.write_all(&[*byte]);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    works(&member, "beside slow clients");
    slow.join().unwrap();

    let grown = resident_kib(pid).saturating_sub(before);
    assert!(grown < GROWTH_MAX_KIB, "the agent grew by {grown} KiB");
    assert_eq!(member.status().unwrap()["generation"], generation);
    assert_eq!(member.sql("select i from kept"), "42");
    assert!(!member.log().contains("panicked"));
    assert!(member.agent_lives());
    assert_eq!(member.agent_pid(), pid);
}

/// Both routed ports, REST and the peers' port serve.
fn works(member: &Member, when: &str) {
    let [(_, read_write), (_, read_only), (_, rest), _] = member.addresses();
    for address in [read_write, read_only] {
        let mut psql = crate::common::psql();
        psql.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
        psql.args(["-U", "postgres", "-d", "postgres", "-c", "select i from kept"]);
        psql.env("PGCONNECT_TIMEOUT", "20");
        let output = psql.output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "42\n",
            "{when} at {address}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let answer = http(rest, "GET /patroni HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(
        answer.as_ref().is_ok_and(|text| text.starts_with("HTTP/1.1 200")),
        "{when}: {answer:?}"
    );
    let token = member.sempre(&["token"]);
    token.ok();
}
