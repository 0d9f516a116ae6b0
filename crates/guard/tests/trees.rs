//! The guard with process trees worse than a database's, and with clients worse than an agent.

mod common;

use common::{Home, WITHIN, alive, descendants, guards_of, signal, stat, until, wait};
use sempre_guard::{
    EXIT_LOCKED, GuardClient, GuardError, Lease, RefusalCode, Request, SpawnBinary, StopMode,
    boot_now,
};
use sempre_model::Generation;
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// Ignores every signal that can be, and has children, grandchildren, and orphans in sessions of
/// their own that do too.
const STUBBORN: &str = "trap '' TERM INT QUIT HUP
    (trap '' TERM; (setsid sh -c 'sleep 1000 & wait' &) ; sleep 1000 & wait) &
    setsid sleep 1000 &
    while :; do sleep 1000; done";

#[tokio::test]
async fn a_tree_that_ignores_every_signal_is_killed_whole() {
    let home = Home::new();
    let client = home.client().await;
    let status = client.start(home.shell(STUBBORN), WITHIN).await.unwrap();
    let (guard, shell) = (status.guard_pid, status.postmaster.unwrap().pid);
    // shell, subshell, 2 in the orphan session, 3 more sleeps.
    until("the tree has grown", || descendants(guard).len() >= 7).await;
    let tree = descendants(guard);
    assert!(tree.contains(&shell));
    signal(tree[1], "STOP");

    let status = client.stop(StopMode::Fast, WITHIN).await.unwrap();
    assert_eq!(status.postmaster.unwrap().stopping, Some(StopMode::Fast));
    assert!(alive(shell));
    client.stop(StopMode::Kill, WITHIN).await.unwrap();
    let exit = wait(&client, |s| s.nothing_runs()).await.last_exit.unwrap();
    assert!(exit.asked_for && exit.signal == Some(9));
    assert!(tree.iter().all(|pid| !alive(*pid)));
    assert_eq!(descendants(guard), Vec::<i32>::new(), "nor a zombie");
}

#[tokio::test]
async fn a_tree_that_keeps_forking_is_killed_whole() {
    let home = Home::new();
    let client = home.client().await;
    let script = "i=0; while :; do (sh -c 'sleep 1000 & sleep 1000' &); i=$((i+1));
        [ $i -lt 150 ] || sleep 1; done";
    let guard = client.start(home.shell(script), WITHIN).await.unwrap().guard_pid;
    until("it forks", || descendants(guard).len() > 50).await;
    let deadline = boot_now().after(Duration::from_millis(300));
    client.arm(Lease { generation: Generation(1), deadline }, WITHIN).await.unwrap();
    wait(&client, |s| s.nothing_runs()).await;
    println!("measured: forking tree, deadline to all gone: {:?}", boot_now().since(deadline));
    assert_eq!(descendants(guard), Vec::<i32>::new());
}

#[tokio::test]
async fn the_end_of_the_database_ends_its_orphans() {
    let home = Home::new();
    let client = home.client().await;
    let status = client.start(home.shell("setsid sleep 1000 & exit 7"), WITHIN).await.unwrap();
    let exit = wait(&client, |s| s.nothing_runs()).await.last_exit.unwrap();
    assert_eq!((exit.code, exit.asked_for, exit.by_lease), (Some(7), false, false));
    assert_eq!(descendants(status.guard_pid), Vec::<i32>::new());
}

#[tokio::test]
async fn the_guard_is_its_own_and_small() {
    let home = Home::new();
    let client = home.client().await;
    let status = client.start(home.shell("exec sleep 1000"), WITHIN).await.unwrap();
    let guard = status.guard_pid;
    let warden = stat(guard).unwrap().0;
    assert!(guards_of(home.path()).contains(&warden));
    assert_ne!(stat(warden).unwrap().0, std::process::id() as i32, "not our child");
    let of = |pid: i32| nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap();
    assert_ne!(of(guard).as_raw(), guard, "no leader, so it gets no terminal");
    assert_ne!(of(guard), of(std::process::id() as i32), "a session of its own");

    // Nothing of ours is open in it: three of /dev/null, and its own.
    for pid in [guard, status.postmaster.unwrap().pid] {
        let open: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .flatten()
            .filter_map(|e| std::fs::read_link(e.path()).ok())
            .collect();
        assert!(open.len() <= 12, "{open:?}");
        println!("open in {pid}: {open:?}");
    }
    for pid in [guard, warden] {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let text = read("status") + &read("smaps_rollup");
        let kb = |key: &str| -> u64 {
            let line = text.lines().find(|l| l.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        println!(
            "measured: {pid} RSS {} kB, shared fairly {} kB, anonymous {} kB, locked {} kB",
            kb("VmRSS"),
            kb("Pss:"),
            kb("RssAnon"),
            kb("VmLck"),
        );
        assert!(kb("VmRSS") < 6 * 1024, "{text}");
    }
}

#[tokio::test]
async fn garbage_harms_nobody() {
    let home = Home::new();
    let client = home.client().await;
    let before = client.start(home.shell("exec sleep 1000"), WITHIN).await.unwrap();
    let socket = home.path().join("guard.sock");
    let hello = r#"{"hello":{"protocol":1,"role":"observer"}}"#;

    let deep = "[".repeat(60_000);
    let long = "x".repeat(300_000);
    let cases: &[&[u8]] = &[
        b"",
        b"\n",
        b"\0\xff\xfe\x80garbage\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{\"hello\":7}\n",
        b"{\"hello\":{\"protocol\":-1,\"role\":\"agent\"}}\n",
        b"{\"id\":1,\"request\":\"status\"}\n",
        b"{\"id\":1,",
        deep.as_bytes(),
        long.as_bytes(),
    ];
    for case in cases {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // It may close before all is written.
        let _ = stream.write_all(case);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        stream.set_read_timeout(Some(WITHIN)).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }

    // A request of the future is answered, and the connection goes on.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    writeln!(stream, "{hello}").unwrap();
    assert!(lines.next().unwrap().unwrap().contains(r#""protocol":1"#));
    for (request, answer) in [
        (r#"{"id":3,"request":{"dance":{}},"tempo":2}"#, "unsupported"),
        (r#"{"id":4,"request":{"arm":{"generation":"x"}}}"#, "unsupported"),
        (r#"{"id":5,"request":"status","tempo":2}"#, "guard_pid"),
    ] {
        writeln!(stream, "{request}").unwrap();
        let line = lines.next().unwrap().unwrap();
        assert!(line.contains(answer) && line.contains(&request[1..7]), "{line}");
    }

    // Clients that ask and never read are dropped; many of them are no harm.
    let mut deaf: Vec<UnixStream> = Vec::new();
    for _ in 0..40 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let _ = writeln!(stream, "{hello}");
        deaf.push(stream);
    }
    let mut dropped = false;
    for _ in 0..10_000 {
        let line = b"{\"id\":1,\"request\":\"status\"}\n";
        if deaf.last_mut().unwrap().write_all(line).is_err() {
            dropped = true;
            break;
        }
    }
    assert!(dropped, "a client that never reads was served without end");

    let after = client.request(Request::Status, WITHIN).await.unwrap();
    assert_eq!(after.postmaster, before.postmaster);
    assert_eq!(after.guard_pid, before.guard_pid);
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let home = Home::new();
    let client = home.client().await;
    let mut missing = home.shell("");
    missing.program = "/nonexistent/postgres".into();
    let mut no_log = home.shell("");
    no_log.log_file = "/nonexistent/log".into();
    for (request, word) in [(missing, "/nonexistent/postgres"), (no_log, "/nonexistent/log")] {
        let refused = client.start(request, WITHIN).await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, RefusalCode::StartFailed);
        assert!(refused.to_string().contains(word), "{refused}");
    }
    for refused in [
        client.stop(StopMode::Fast, WITHIN).await.unwrap_err(),
        client.disarm(WITHIN).await.unwrap_err(),
        client.reload(WITHIN).await.unwrap_err(),
    ] {
        assert_eq!(refused.refusal().unwrap().code, RefusalCode::NotRunning);
    }
    let mut late = home.shell("exec sleep 1000");
    late.lease = Some(Lease { generation: Generation(1), deadline: boot_now() });
    let refused = client.start(late, WITHIN).await.unwrap_err();
    assert_eq!(refused.refusal().unwrap().code, RefusalCode::LeaseEnded);

    client.start(home.shell("exec sleep 1000"), WITHIN).await.unwrap();
    let refused = client.start(home.shell("exec sleep 1000"), WITHIN).await.unwrap_err();
    assert_eq!(refused.refusal().unwrap().code, RefusalCode::Running);
    let refused = client.quit(false, WITHIN).await.unwrap_err();
    assert_eq!(refused.refusal().unwrap().code, RefusalCode::Running);
    client.quit(true, WITHIN).await.unwrap();
    wait(&client, |s| !s.connected).await;
}

#[tokio::test]
async fn a_guard_that_cannot_serve_says_why() {
    let home = Home::new();
    std::fs::write(home.path().join("guard.state"), "sempre-guard-state 1 00000000\n{}\n").unwrap();
    let Err(error) = GuardClient::connect_or_spawn(home.path(), home.binary()).await else {
        panic!("a damaged state was taken")
    };
    assert!(error.to_string().contains("guard.state is damaged"), "{error}");

    let long = Path::new("/tmp").join("d".repeat(100));
    let Err(error) = GuardClient::connect_or_spawn(&long, SpawnBinary::this_program(&long)).await
    else {
        panic!("too long a path was taken")
    };
    assert!(matches!(error, GuardError::PathTooLong { length: 116, .. }), "{error}");

    let binary = SpawnBinary { program: "/nonexistent/sempre".into(), ..home.binary() };
    let Err(error) = GuardClient::connect_or_spawn(home.path(), binary).await else {
        panic!("started from nothing")
    };
    assert!(error.to_string().contains("/nonexistent/sempre"), "{error}");
}

#[tokio::test]
async fn one_guard_serves_a_directory() {
    let home = Home::new();
    let (a, b) = tokio::join!(home.client(), home.client());
    assert_eq!(a.status().borrow().guard_pid, b.status().borrow().guard_pid);
    until("one, with its warden, is left", || guards_of(home.path()).len() == 2).await;
    let second =
        home.command(env!("CARGO_BIN_EXE_sempre-guard")).arg(home.path()).output().unwrap();
    assert_eq!(second.status.code(), Some(i32::from(EXIT_LOCKED)));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another guard serves"));
}

/// The log is a pipe that nobody reads: once it is full, whoever writes to it hangs, as on a disk
/// that hangs.
#[tokio::test]
async fn a_disk_that_hangs_does_not_delay_the_kill() {
    let home = Home::new();
    let log = home.path().join("guard.log");
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::from_bits_truncate(0o622)).unwrap();
    if let Some(user) = &home.user {
        nix::unistd::chown(&log, Some(user.uid), Some(user.gid)).unwrap();
    }
    let pipe = std::fs::OpenOptions::new().read(true).write(true).open(&log).unwrap();
    let client = home.client().await;
    let status = client.start(home.shell(STUBBORN), WITHIN).await.unwrap();
    let far = || Lease {
        generation: Generation(1),
        deadline: boot_now().after(Duration::from_secs(300)),
    };
    let hangs = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", status.guard_pid)).unwrap();
        threads.flatten().any(|t| {
            let wait = std::fs::read_to_string(t.path().join("wchan")).unwrap_or_default();
            wait.contains("pipe_write") || wait.contains("wait_for_space")
        })
    };
    let mut rounds = 0;
    // Far more lines than the pipe and the queue to the disk hold together.
    while rounds < 3000 && !(hangs() && rounds % 500 == 499) {
        client.arm(far(), WITHIN).await.unwrap();
        client.disarm(WITHIN).await.unwrap();
        rounds += 1;
    }
    let fenced = client.fence(Generation(1), Duration::from_millis(200)).await;
    assert!(fenced.is_err(), "a fence was called durable on a disk that hangs: {fenced:?}");

    let deadline = boot_now().after(Duration::from_millis(500));
    client.arm(Lease { generation: Generation(1), deadline }, WITHIN).await.unwrap();
    let status = wait(&client, |s| s.nothing_runs()).await;
    assert!(status.last_exit.unwrap().by_lease && !status.fence_saved);
    println!("measured: hung disk, deadline to all gone: {:?}", boot_now().since(deadline));
    drop(pipe);
}

#[tokio::test]
async fn a_stopped_guard_is_named() {
    let home = Home::new();
    let client = home.client().await;
    let guard = client.status().borrow().guard_pid;
    signal(guard, "STOP");
    let error = client.request(Request::Status, Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, GuardError::NoAnswer { pid, .. } if pid == guard), "{error}");
    signal(guard, "CONT");
    let status = client.start(home.shell("exec sleep 1000"), WITHIN).await.unwrap();

    // One that never goes on again can be replaced, and the database does not outlive it.
    signal(guard, "STOP");
    let Err(error) = GuardClient::connect_or_spawn(home.path(), home.binary()).await else {
        panic!("a stopped guard said hello")
    };
    assert!(matches!(error, GuardError::NoAnswer { pid, .. } if pid == guard), "{error}");
    assert_eq!(GuardClient::kill_guard(home.path()).await.unwrap(), Some(guard));
    wait(&client, |s| !s.connected).await;
    client.reconnect_or_spawn().await.unwrap();
    let now = wait(&client, |s| s.nothing_runs()).await;
    assert_ne!(now.guard_pid, guard);
    let database = status.postmaster.unwrap().pid;
    until("the database is gone", || !alive(database)).await;
}
