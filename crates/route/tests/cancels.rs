//! Cancel requests and synchronous replication: a statement outside a transaction is told done only
//! when it is safe. With a real synchronous standby whose receiver is stopped (SIGSTOP).

mod common;

use common::*;
use std::process::Command;
use tokio_postgres::{Client, NoTls, error::SqlState};

struct Cluster {
    primary: Server,
    standby: Server,
    routed: Routed,
}

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

impl Cluster {
    async fn start() -> Self {
        let (primary, standby) = tokio::task::spawn_blocking(|| {
            let primary = Server::new("first");
            let standby = Server::standby("second", &primary);
            (primary, standby)
        })
        .await
        .unwrap();
        let admin = direct(&primary).await;
        admin.batch_execute("create table t (a int)").await.unwrap();
        let set = "alter system set synchronous_standby_names = 'second'";
        admin.batch_execute(set).await.unwrap();
        admin.batch_execute("select pg_reload_conf()").await.unwrap();
        let state = "select coalesce(max(sync_state), '') from pg_stat_replication";
        until_answers(&admin, state, "sync").await;
        let routed = Routed::proxy(table(1, Some(primary.target())));
        Self { primary, standby, routed }
    }

    async fn stop_receiver(&self) -> Stopped {
        let admin = direct(&self.standby).await;
        Stopped::new(simple(&admin, "select pid from pg_stat_wal_receiver").await)
    }

    async fn until_waiting(&self, query: &str) {
        let sql = format!(
            "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and query ilike '{query}'"
        );
        until_answers(&direct(&self.primary).await, &sql, "1").await;
    }
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
        let cluster = Cluster::start().await;
        let stopped = cluster.stop_receiver().await;
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
        let cluster = Cluster::start().await;
        let stopped = cluster.stop_receiver().await;
        let insert = cancelled(&cluster, extended).await;
        cluster.primary.signal("-QUIT");
        drop(stopped);
        let admin = direct(&cluster.standby).await;
        admin.batch_execute("select pg_promote()").await.unwrap();
        until_answers(&admin, "select pg_is_in_recovery()", "f").await;
        let alone = "alter system set synchronous_standby_names = ''";
        admin.batch_execute(alone).await.unwrap();
        admin.batch_execute("select pg_reload_conf()").await.unwrap();
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
