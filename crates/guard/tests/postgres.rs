//! The guard with a real PostgreSQL.

mod common;

use common::{Home, WITHIN, alive, descendants, guards_of, signal, stat, until, wait};
use sempre_guard::{GuardClient, Lease, RefusalCode, Request, StopMode, boot_now, stray_processes};
use sempre_model::Generation;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(300);

fn lease(generation: u64, ahead: Duration) -> Lease {
    Lease { generation: Generation(generation), deadline: boot_now().after(ahead) }
}

/// A backend that computes, and looks at nothing. Returns its process.
async fn busy_backend(home: &Home) -> i32 {
    let connection = home.connect().await;
    let pid: i32 = connection.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    tokio::spawn(async move {
        let _ = connection.batch_execute("do $$ begin loop null; end loop; end $$").await;
    });
    until("the backend computes", || stat(pid).is_some_and(|(_, state)| state == 'R')).await;
    pid
}

#[tokio::test]
async fn when_the_lease_ends_every_process_is_gone() {
    for stopped in [false, true] {
        let home = Home::with_postgres();
        let client = home.client().await;
        let started = client.start(home.postgres(), WITHIN).await.unwrap();
        let postmaster = started.postmaster.unwrap().pid;
        let busy = busy_backend(&home).await;
        let tree = descendants(postmaster);
        assert!(tree.contains(&busy) && tree.len() >= 4, "{tree:?}");
        if stopped {
            signal(postmaster, "STOP");
            signal(tree[0], "STOP");
        }

        let lease = lease(1, Duration::from_secs(1));
        client.arm(lease, WITHIN).await.unwrap();
        let status = wait(&client, |s| s.postmaster.is_none()).await;
        let took = boot_now().since(lease.deadline);

        let exit = status.last_exit.unwrap();
        assert!(exit.by_lease && !exit.asked_for && exit.signal == Some(9), "{exit:?}");
        assert!(exit.at >= lease.deadline, "killed before its time");
        assert_eq!(
            tree.into_iter().filter(|pid| alive(*pid)).collect::<Vec<_>>(),
            Vec::<i32>::new()
        );
        assert!(!alive(postmaster));
        assert_eq!(stray_processes(&home.data()), Vec::<i32>::new());
        println!("measured: deadline to all gone (stopped: {stopped}): {took:?}\n{}", home.log());
    }
}

#[tokio::test]
async fn a_killed_guard_takes_the_database_along() {
    let home = Home::with_postgres();
    let client = home.client().await;
    let status = client.start(home.postgres(), WITHIN).await.unwrap();
    let (guard, postmaster) = (status.guard_pid, status.postmaster.unwrap().pid);
    let busy = busy_backend(&home).await;

    signal(guard, "KILL");
    wait(&client, |s| !s.connected).await;
    assert!(client.reload(WITHIN).await.is_err());
    // No agent and no other guard is needed for this.
    until("the postmaster died with its guard", || !alive(postmaster)).await;
    until("the warden killed the backends", || !alive(busy)).await;

    client.reconnect_or_spawn().await.unwrap();
    wait(&client, |s| s.nothing_runs()).await;
    client.start(home.postgres(), WITHIN).await.unwrap();
    home.connect().await;
}

#[tokio::test]
async fn what_a_killed_guard_and_warden_leave_is_killed_by_the_next() {
    let home = Home::with_postgres();
    let client = home.client().await;
    let status = client.start(home.postgres(), WITHIN).await.unwrap();
    let (guard, postmaster) = (status.guard_pid, status.postmaster.unwrap().pid);
    let busy = busy_backend(&home).await;

    signal(stat(guard).unwrap().0, "KILL");
    until("the warden is gone", || guards_of(home.path()) == [guard]).await;
    home.connect().await.query_one("select 1", &[]).await.unwrap();
    signal(guard, "KILL");
    wait(&client, |s| !s.connected).await;
    until("the postmaster died with its guard", || !alive(postmaster)).await;
    assert!(alive(busy), "this test needs a backend that did not notice");
    assert!(stray_processes(&home.data()).contains(&busy));

    // The next guard kills it before it says that all is clear.
    client.reconnect_or_spawn().await.unwrap();
    let status = client.fence(Generation(1), WITHIN).await.unwrap();
    assert_ne!(status.guard_pid, guard);
    assert!(status.nothing_runs() && !alive(busy));
    assert_eq!(stray_processes(&home.data()), Vec::<i32>::new());

    client.start(home.postgres(), WITHIN).await.unwrap();
    home.connect().await;
}

#[tokio::test]
async fn an_agent_comes_and_goes_and_the_database_stays() {
    let home = Home::with_postgres();
    let first = home.client().await;
    let start = sempre_guard::StartRequest { lease: Some(lease(1, LONG)), ..home.postgres() };
    let before = first.start(start, WITHIN).await.unwrap();
    let connection = home.connect().await;
    drop(first);

    let second = home.client().await;
    let after = second.status().borrow().clone();
    assert_eq!(after.guard_pid, before.guard_pid);
    assert_eq!(after.postmaster, before.postmaster);
    connection.query_one("select 1", &[]).await.unwrap();

    // The newest agent commands; the one before may only look.
    let third = home.client().await;
    let refused = second.stop(StopMode::Fast, WITHIN).await.unwrap_err();
    assert_eq!(refused.refusal().unwrap().code, RefusalCode::Superseded);
    let observer = GuardClient::observe(home.path()).await.unwrap();
    let refused = observer.disarm(WITHIN).await.unwrap_err();
    assert_eq!(refused.refusal().unwrap().code, RefusalCode::Superseded);
    observer.request(Request::Status, WITHIN).await.unwrap();

    third.stop(StopMode::Fast, WITHIN).await.unwrap();
    for client in [&second, &third, &observer] {
        let exit = wait(client, |s| s.nothing_runs()).await.last_exit.unwrap();
        assert!(exit.asked_for && !exit.by_lease && exit.code == Some(0), "{exit:?}");
    }
}

#[tokio::test]
async fn a_fence_kills_refuses_and_outlives_the_guard() {
    let home = Home::with_postgres();
    let client = home.client().await;
    let with = |generation| sempre_guard::StartRequest {
        lease: Some(lease(generation, LONG)),
        ..home.postgres()
    };
    client.start(with(5), WITHIN).await.unwrap();
    home.connect().await;

    // A fence at its own generation leaves it alone; one above kills it.
    let status = client.fence(Generation(5), WITHIN).await.unwrap();
    assert!(status.postmaster.is_some() && status.fence_saved);
    let status = client.fence(Generation(6), WITHIN).await.unwrap();
    assert!(status.nothing_runs() && status.fence_saved, "{status:?}");
    assert_eq!(status.fenced_below, Generation(6));
    assert!(status.last_exit.unwrap().asked_for);
    assert_eq!(stray_processes(&home.data()), Vec::<i32>::new());

    for guard in ["this", "the next"] {
        let refused = client.start(with(5), WITHIN).await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, RefusalCode::Fenced, "{guard} guard");
        if guard == "this" {
            client.quit(false, WITHIN).await.unwrap();
            wait(&client, |s| !s.connected).await;
            client.reconnect_or_spawn().await.unwrap();
        }
    }
    // As a standby it may run, but not be armed.
    client.start(home.postgres(), WITHIN).await.unwrap();
    let refused = client.arm(lease(5, LONG), WITHIN).await.unwrap_err();
    assert_eq!(refused.refusal().unwrap().code, RefusalCode::Fenced);
    client.arm(lease(6, LONG), WITHIN).await.unwrap();
}

#[tokio::test]
async fn a_paused_guard_does_not_prolong_the_lease() {
    let home = Home::with_postgres();
    let client = home.client().await;
    let status = client.start(home.postgres(), WITHIN).await.unwrap();
    let (guard, postmaster) = (status.guard_pid, status.postmaster.unwrap().pid);
    let busy = busy_backend(&home).await;
    let lease = lease(1, Duration::from_millis(1500));
    client.arm(lease, WITHIN).await.unwrap();
    signal(guard, "STOP");

    // Nobody lets the guard go on: the warden steps in.
    until("the postmaster is gone", || !alive(postmaster)).await;
    println!(
        "measured: deadline to postmaster gone by warden: {:?}",
        boot_now().since(lease.deadline)
    );
    until("the backends are gone", || !alive(busy)).await;
    wait(&client, |s| !s.connected).await;
    client.reconnect_or_spawn().await.unwrap();
    wait(&client, |s| s.nothing_runs() && s.guard_pid != guard).await;
}

#[tokio::test]
async fn a_guard_that_was_paused_kills_before_it_listens() {
    let home = Home::with_postgres();
    let client = home.client().await;
    let status = client.start(home.postgres(), WITHIN).await.unwrap();
    let (guard, postmaster) = (status.guard_pid, status.postmaster.unwrap().pid);
    home.connect().await;
    let short = lease(1, Duration::from_millis(1500));
    client.arm(short, WITHIN).await.unwrap();
    signal(stat(guard).unwrap().0, "STOP");
    signal(guard, "STOP");

    // A renewal that lies in the socket meanwhile comes too late.
    let renewing = {
        let client = client.clone();
        tokio::spawn(async move { client.renew(lease(1, LONG), WITHIN).await })
    };
    until("the deadline passed", || boot_now() > short.deadline).await;
    let stopped = stat(guard).map(|(_, state)| state);
    signal(guard, "CONT");
    assert_eq!(stopped, Some('T'));
    let status = wait(&client, |s| s.postmaster.is_none()).await;
    assert!(status.last_exit.unwrap().by_lease);
    assert!(!alive(postmaster));
    let refused = renewing.await.unwrap().unwrap_err();
    let code = refused.refusal().unwrap().code;
    assert!(matches!(code, RefusalCode::LeaseEnded | RefusalCode::NotRunning), "{code:?}");
}

#[tokio::test]
async fn a_renewed_lease_goes_on() {
    let home = Home::with_postgres();
    let client = home.client().await;
    let status = client.start(home.postgres(), WITHIN).await.unwrap();
    let connection = home.connect().await;
    let refused = client.renew(lease(1, LONG), WITHIN).await.unwrap_err();
    assert_eq!(refused.refusal().unwrap().code, RefusalCode::WrongGeneration, "a standby");

    let first = lease(1, Duration::from_secs(3));
    client.arm(first, WITHIN).await.unwrap();
    let second = lease(1, LONG);
    client.renew(second, WITHIN).await.unwrap();
    // Neither an earlier deadline nor another generation's changes anything.
    let kept = client.renew(first, WITHIN).await.unwrap();
    assert_eq!(kept.postmaster.unwrap().deadline, Some(second.deadline));
    for other in [0, 2] {
        let refused = client.renew(lease(other, LONG), WITHIN).await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, RefusalCode::WrongGeneration);
    }
    let too_long = lease(1, Duration::from_secs(3600));
    let refused = client.renew(too_long, WITHIN).await.unwrap_err();
    assert_eq!(refused.refusal().unwrap().code, RefusalCode::LeaseTooLong);

    until("the first deadline passed", || boot_now() > first.deadline).await;
    connection.query_one("select 1", &[]).await.unwrap();
    let now = client.request(Request::Status, WITHIN).await.unwrap();
    assert_eq!(now.postmaster.unwrap().pid, status.postmaster.unwrap().pid);
    // A standby again: no deadline.
    let now = client.disarm(WITHIN).await.unwrap();
    assert_eq!(now.postmaster.unwrap().deadline, None);
}

#[tokio::test]
async fn a_crash_is_seen_and_a_restart_works_at_once() {
    let home = Home::with_postgres();
    let client = home.client().await;
    for _ in 0..2 {
        let status = client.start(home.postgres(), WITHIN).await.unwrap();
        let postmaster = status.postmaster.unwrap().pid;
        let busy = busy_backend(&home).await;
        signal(postmaster, "KILL");
        let exit = wait(&client, |s| s.nothing_runs()).await.last_exit.unwrap();
        assert_eq!((exit.pid, exit.signal), (postmaster, Some(9)));
        assert!(!exit.asked_for && !exit.by_lease && !alive(busy));
    }
}

#[tokio::test]
async fn a_server_that_no_guard_started_is_left_alone() {
    let home = Home::with_postgres();
    let request = home.postgres();
    let mut by_hand = home
        .command(request.program.to_str().unwrap())
        .args(&request.args)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let connection = home.connect().await;

    let client = home.client().await;
    let refused = client.start(request.clone(), WITHIN).await.unwrap_err();
    assert_eq!(refused.refusal().unwrap().code, RefusalCode::ForeignDatabase, "{refused}");
    connection.query_one("select 1", &[]).await.unwrap();

    signal(by_hand.id() as i32, "INT");
    by_hand.wait().unwrap();
    client.start(request, WITHIN).await.unwrap();
    home.connect().await;
    client.reload(WITHIN).await.unwrap();
}

#[tokio::test]
async fn a_guard_that_is_terminated_shuts_down_in_order() {
    let home = Home::with_postgres();
    let client = home.client().await;
    let guard = client.start(home.postgres(), WITHIN).await.unwrap().guard_pid;
    home.connect().await;
    signal(guard, "TERM");
    let last = wait(&client, |s| !s.connected).await;
    assert_eq!(last.last_exit.unwrap().code, Some(0));
    until("the guard ended", || !alive(guard)).await;
}
