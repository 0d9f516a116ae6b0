//! `resolve_autocommit`: what became of a statement outside a transaction block is found out, or it
//! is run again: a real primary, a real standby that is promoted.

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use cluster::Cluster;
use common::*;
use sempre_route::ProxySettings;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, error::SqlState};

async fn cluster() -> Cluster {
    let settings = ProxySettings { resolve_autocommit: true, ..ProxySettings::default() };
    Cluster::start(settings).await
}

/// A client whose statement is on its way. Its answer: rows that were written, as far as the
/// protocol says.
async fn sent(
    cluster: &Cluster,
    extended: bool,
    sql: &'static str,
) -> JoinHandle<(Client, Result<(), Error>)> {
    let (client, _connection) = connect(&cluster.routed.plain()).await.unwrap();
    tokio::spawn(async move {
        let done = match extended {
            true => client.execute(sql, &[]).await.map(|rows| assert_eq!(rows, 1)),
            false => client.batch_execute(sql).await,
        };
        (client, done)
    })
}

async fn rows(client: &Client, value: i32) -> String {
    simple(client, &format!("select count(*) from t where a = {value}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reached_the_new_primary_is_answered() {
    for extended in [false, true] {
        let cluster = cluster().await;
        cluster.commits_wait(true).await;
        let insert = sent(&cluster, extended, "insert into t values (1)").await;
        // The question for the id was the last that ran.
        cluster.until_waiting("%pg_current_xact_id%").await;
        cluster.caught_up().await;
        let admin = cluster.promote().await;
        moves_to(&cluster.routed, &cluster.standby);
        let (client, done) = insert.await.unwrap();
        done.unwrap();
        assert_eq!((rows(&client, 1).await, rows(&admin, 1).await), ("1".into(), "1".into()));
        assert_eq!(server_of(&client).await, "second");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_did_not_is_run_again_where_the_client_has_seen_nothing() {
    for (extended, sql) in [
        (false, "insert into t values (1)"),
        (false, "insert into t values (1) returning a"),
        (true, "insert into t values (1)"),
    ] {
        let cluster = cluster().await;
        cluster.caught_up().await;
        let standby = direct(&cluster.standby).await;
        standby.batch_execute("alter system set primary_conninfo = ''").await.unwrap();
        standby.batch_execute("select pg_reload_conf()").await.unwrap();
        until_answers(&standby, "select count(*) from pg_stat_wal_receiver", "0").await;
        cluster.commits_wait(true).await;
        let insert = sent(&cluster, extended, sql).await;
        // The question for the id was the last that ran.
        cluster.until_waiting("%pg_current_xact_id%").await;
        let admin = cluster.promote().await;
        // The same ids again, committed.
        for _ in 0..20 {
            admin.batch_execute("insert into t values (2)").await.unwrap();
        }
        moves_to(&cluster.routed, &cluster.standby);
        let (client, done) = insert.await.unwrap();
        // A client may act on a row as soon as it has it, and on CommandComplete.
        let seen = extended || sql.contains("returning");
        match done {
            Ok(()) => assert!(!seen, "{sql}"),
            Err(error) => {
                assert!(seen, "{sql}: {error:?}");
                assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE));
            }
        }
        let there = if seen { "0" } else { "1" };
        assert_eq!(rows(&admin, 1).await, there, "{sql}");
        client.batch_execute("insert into t values (3)").await.unwrap();
        assert_eq!(rows(&admin, 3).await, "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_still_runs_is_certainly_rolled_back() {
    const SLOW: &str = "insert into t select 4 from pg_sleep(1.5)";
    for extended in [false, true] {
        let cluster = cluster().await;
        let slow = sent(&cluster, extended, SLOW).await;
        until_running(&cluster.primary, SLOW).await;
        let admin = cluster.promote().await;
        moves_to(&cluster.routed, &cluster.standby);
        let (client, done) = slow.await.unwrap();
        match extended {
            false => done.unwrap(),
            true => {
                let code = done.unwrap_err().code().cloned();
                assert_eq!(code, Some(SqlState::T_R_SERIALIZATION_FAILURE));
            }
        }
        assert_eq!(rows(&admin, 4).await, if extended { "0" } else { "1" });
        assert_eq!(server_of(&client).await, "second");
    }
}

/// Behind the tag comes the commit, which may fail: the tag must not be given before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_at_its_end_is_not_answered_before() {
    let cluster = cluster().await;
    let (client, _connection) = connect(&cluster.routed.plain()).await.unwrap();
    let table = "create table once (a int unique deferrable initially deferred)";
    client.batch_execute(table).await.unwrap();
    for _ in 0..2 {
        let messages = client.simple_query("insert into once values (1)").await;
        let rows = simple(&client, "select count(*) from once").await;
        assert_eq!(rows, "1");
        match messages {
            Ok(_) => assert_eq!(client.simple_query("select 1").await.unwrap().len(), 3),
            Err(error) => assert_eq!(error.code(), Some(&SqlState::UNIQUE_VIOLATION)),
        }
    }
    assert!(client.batch_execute("insert into once values (1)").await.is_err());
    // A cancel request reaches what runs.
    let token = client.cancel_token();
    let slow = "insert into t select 5 from pg_sleep(600)";
    let slow_one = tokio::spawn(async move { (client.batch_execute(slow).await, client) });
    until_running(&cluster.primary, slow).await;
    token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    let (done, client) = slow_one.await.unwrap();
    assert_eq!(done.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    assert_eq!(rows(&client, 5).await, "0");
}
