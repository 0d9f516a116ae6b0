//! Cancel requests and synchronous replication: a statement outside a transaction is told done only
//! when it is safe. With a real synchronous standby whose receiver is stopped (SIGSTOP).

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use cluster::Cluster;
use common::*;
use sempre_route::ProxySettings;
use std::process::Command;
use tokio_postgres::{Client, NoTls, error::SqlState};

/// A process that does nothing until this is dropped.
struct Stopped(String);

impl Stopped {
    fn new(pid: String) -> Self {
        assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may be gone.
        let _ = Command::new("kill").args(["-CONT", &self.0]).status();
    }
}

/// With a standby that commits wait for.
async fn synchronous() -> Cluster {
    let cluster = Cluster::start(ProxySettings::default()).await;
    let admin = direct(&cluster.primary).await;
    let set = "alter system set synchronous_standby_names = 'second'";
    admin.batch_execute(set).await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    let state = "select coalesce(max(sync_state), '') from pg_stat_replication";
    until_answers(&admin, state, "sync").await;
    cluster
}

async fn stop_receiver(cluster: &Cluster) -> Stopped {
    let admin = direct(&cluster.standby).await;
    Stopped::new(simple(&admin, "select pid from pg_stat_wal_receiver").await)
}

type Insert = tokio::task::JoinHandle<(Client, Result<u64, tokio_postgres::Error>)>;

/// A statement that waits for the standby, and was cancelled by its client.
async fn cancelled(cluster: &Cluster, extended: bool) -> Insert {
    let (client, _connection) = connect(&cluster.routed.plain()).await.unwrap();
    let cancel = client.cancel_token();
    let insert = tokio::spawn(async move {
        let sql = "insert into t values (1)";
        let done = match extended {
            true => client.execute(sql, &[]).await,
            false => client.batch_execute(sql).await.map(|()| 1),
        };
        (client, done)
    });
    cluster.until_waiting("insert into%").await;
    cancel.cancel_query(NoTls).await.unwrap();
    // What routing asks in its place waits now, and cannot be cancelled by the client.
    cluster.until_waiting("%pg_logical_emit_message%").await;
    until("counted", || cluster.routed.stats().cancels == 1).await;
    cancel.cancel_query(NoTls).await.unwrap();
    cluster.until_waiting("%pg_logical_emit_message%").await;
    assert!(!insert.is_finished());
    insert
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_statement_is_done_when_the_standby_has_it() {
    for extended in [false, true] {
        let cluster = synchronous().await;
        let stopped = stop_receiver(&cluster).await;
        let insert = cancelled(&cluster, extended).await;
        drop(stopped);
        let (client, done) = insert.await.unwrap();
        assert_eq!(done.unwrap(), 1);
        assert_eq!(cluster.routed.stats().cancels, 1);
        assert_eq!(simple(&client, "select count(*) from t").await, "1");
        until_answers(&direct(&cluster.standby).await, "select count(*) from t", "1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_statement_whose_primary_is_lost_is_not_told_done() {
    for extended in [false, true] {
        let cluster = synchronous().await;
        let stopped = stop_receiver(&cluster).await;
        let insert = cancelled(&cluster, extended).await;
        cluster.primary.signal("-QUIT");
        drop(stopped);
        let admin = cluster.promote().await;
        let alone = "alter system set synchronous_standby_names = ''";
        admin.batch_execute(alone).await.unwrap();
        admin.batch_execute("select pg_reload_conf()").await.unwrap();
        // Nothing is left to be cut, which `moves_to` would wait for.
        cluster.routed.change(|table| {
            table.generation = table.generation.next();
            table.cut_below = table.generation;
            table.primary = Some(cluster.standby.target());
        });
        let (client, done) = insert.await.unwrap();
        let unknown = SqlState::TRANSACTION_RESOLUTION_UNKNOWN;
        assert_eq!(done.unwrap_err().code(), Some(&unknown), "extended: {extended}");
        assert_eq!(server_of(&client).await, "second");
    }
}
