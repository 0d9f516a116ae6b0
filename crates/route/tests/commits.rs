//! COMMIT is never answered wrongly: a real primary, a real standby that is promoted.

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use cluster::Cluster;
use common::*;
use sempre_route::ProxySettings;
use std::time::Duration;
use tokio_postgres::{Client, error::SqlState};

/// A client whose COMMIT, of one row, is on its way.
async fn committing(
    cluster: &Cluster,
    extended: bool,
    value: i32,
) -> (Client, tokio::task::JoinHandle<(Client, Result<u64, tokio_postgres::Error>)>) {
    let (client, _connection) = connect(&cluster.routed.plain()).await.unwrap();
    let (other, _other) = connect(&cluster.routed.plain()).await.unwrap();
    client.batch_execute("begin").await.unwrap();
    let insert = format!("insert into t values ({value})");
    match extended {
        true => assert_eq!(client.execute(&insert, &[]).await.unwrap(), 1),
        false => client.batch_execute(&insert).await.unwrap(),
    }
    cluster.commits_wait(true).await;
    let commit = tokio::spawn(async move {
        let done = match extended {
            true => client.execute("commit", &[]).await,
            false => client.batch_execute("commit").await.map(|()| 0),
        };
        (client, done)
    });
    cluster.until_waiting("commit").await;
    (other, commit)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_reached_the_new_primary_is_answered_commit() {
    for extended in [false, true] {
        let cluster = Cluster::start(ProxySettings::default()).await;
        let (_other, commit) = committing(&cluster, extended, 1).await;
        cluster.caught_up().await;
        let admin = cluster.promote().await;
        moves_to(&cluster.routed, &cluster.standby);
        let (client, done) = commit.await.unwrap();
        done.unwrap();
        assert_eq!(simple(&client, "select count(*) from t").await, "1");
        assert_eq!(server_of(&client).await, "second");
        assert_eq!(simple(&admin, "select count(*) from t").await, "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_did_not_is_rolled_back_even_when_its_id_was_used_again() {
    for extended in [false, true] {
        let cluster = Cluster::start(ProxySettings::default()).await;
        cluster.caught_up().await;
        // The standby hears nothing of the transaction.
        let standby = direct(&cluster.standby).await;
        standby.batch_execute("alter system set primary_conninfo = ''").await.unwrap();
        standby.batch_execute("select pg_reload_conf()").await.unwrap();
        until_answers(&standby, "select count(*) from pg_stat_wal_receiver", "0").await;
        let (_other, commit) = committing(&cluster, extended, 1).await;
        let admin = cluster.promote().await;
        // The same ids again, committed.
        for _ in 0..20 {
            admin.batch_execute("insert into t values (2)").await.unwrap();
        }
        moves_to(&cluster.routed, &cluster.standby);
        let (client, done) = commit.await.unwrap();
        assert_eq!(done.unwrap_err().code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE));
        assert_eq!(simple(&client, "select count(*) from t where a = 1").await, "0");
        client.batch_execute("begin; insert into t values (1); commit").await.unwrap();
        assert_eq!(simple(&admin, "select count(*) from t where a = 1").await, "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_wait_is_no_commit_until_it_is_safe() {
    let cluster = Cluster::start(ProxySettings::default()).await;
    for (value, sql, extended) in [(1, "commit", false), (2, "commit", true)] {
        let (other, commit) = committing(&cluster, extended, value).await;
        let admin = direct(&cluster.primary).await;
        let cancel = format!(
            "select count(pg_cancel_backend(pid)) from pg_stat_activity where query ilike '{sql}' and wait_event = 'SyncRep'"
        );
        assert_eq!(simple(&admin, &cancel).await, "1");
        // The barrier waits in its place; when it is cancelled too, the next one does.
        cluster.until_waiting("%pg_logical_emit_message%").await;
        let cancel = cancel.replace("ilike 'commit'", "ilike '%pg_logical_emit_message%'");
        assert_eq!(simple(&admin, &cancel).await, "1");
        cluster.until_waiting("%pg_logical_emit_message%").await;
        assert!(!commit.is_finished());
        cluster.commits_wait(false).await;
        commit.await.unwrap().1.unwrap();
        assert_eq!(simple(&other, "select count(*) from t").await, value.to_string());
    }
    // A statement outside a transaction waits as well.
    cluster.commits_wait(true).await;
    let (client, _connection) = connect(&cluster.routed.plain()).await.unwrap();
    let insert = tokio::spawn(async move { client.execute("insert into t values (3)", &[]).await });
    cluster.until_waiting("insert into%").await;
    let admin = direct(&cluster.primary).await;
    let cancel =
        "select count(pg_cancel_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'";
    assert_eq!(simple(&admin, cancel).await, "1");
    cluster.until_waiting("%pg_logical_emit_message%").await;
    assert!(!insert.is_finished());
    cluster.commits_wait(false).await;
    assert_eq!(insert.await.unwrap().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_wait_whose_primary_is_lost_is_found_out_about() {
    let cluster = Cluster::start(ProxySettings::default()).await;
    let (_other, commit) = committing(&cluster, false, 1).await;
    let admin = direct(&cluster.primary).await;
    let cancel =
        "select count(pg_cancel_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'";
    assert_eq!(simple(&admin, cancel).await, "1");
    cluster.until_waiting("%pg_logical_emit_message%").await;
    cluster.caught_up().await;
    cluster.promote().await;
    moves_to(&cluster.routed, &cluster.standby);
    let (client, done) = commit.await.unwrap();
    done.unwrap();
    assert_eq!(simple(&client, "select count(*) from t").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_does_not_reach_a_commit_that_waits() {
    let cluster = Cluster::start(ProxySettings::default()).await;
    let (client, _connection) = connect(&cluster.routed.plain()).await.unwrap();
    let cancel = client.cancel_token();
    client.batch_execute("begin; insert into t values (1)").await.unwrap();
    cluster.commits_wait(true).await;
    let commit = tokio::spawn(async move { client.batch_execute("commit").await });
    cluster.until_waiting("commit").await;
    for _ in 0..5 {
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
    }
    assert_eq!(cluster.routed.stats().cancels, 0);
    cluster.until_waiting("commit").await;
    cluster.commits_wait(false).await;
    commit.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_transactions_end_and_begins_none() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    let (idle, _idle_connection) = connect(&routed.plain()).await.unwrap();
    let old = direct(&pair.old).await;
    client.batch_execute("begin; select 1").await.unwrap();
    assert_eq!(server_of(&idle).await, "old");
    let sessions = "select count(*) from pg_stat_activity where backend_type = 'client backend' \
                    and application_name = 'drained'";
    for one in [&client, &idle] {
        one.batch_execute("set application_name = 'drained'").await.unwrap();
    }
    assert_eq!(simple(&old, sessions).await, "2");
    routed.change(|table| table.draining = true);
    // The idle one leaves at once, the other one when its transaction ends.
    until_answers(&old, sessions, "1").await;
    client.batch_execute("select 2").await.unwrap();
    client.batch_execute("commit").await.unwrap();
    until_answers(&old, sessions, "0").await;
    let waiting = tokio::spawn(async move { server_of(&client).await });
    until("held", || routed.stats().held == 1).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    routed.change(|table| {
        table.generation = table.generation.next();
        table.cut_below = table.generation;
        table.draining = false;
        table.primary = Some(pair.new.target());
    });
    assert_eq!(waiting.await.unwrap(), "new");
    assert_eq!(server_of(&idle).await, "new");
    assert_eq!(simple(&idle, "show application_name").await, "drained");
    assert_eq!((routed.stats().cut, routed.stats().server_gone), (0, 0));
}
