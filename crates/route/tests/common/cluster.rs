//! A primary, a standby that can be promoted, and a router in front of them.

#![allow(dead_code)] // each test file uses its part

use super::common::*;
use sempre_route::{Mode, ProxySettings, Style};
use tokio_postgres::Client;

/// A primary whose commits wait for a standby that there is not, and one that streams from it.
pub struct Cluster {
    pub primary: Server,
    pub standby: Server,
    pub routed: Routed,
}

impl Cluster {
    pub async fn start(settings: ProxySettings) -> Self {
        let (primary, standby) = tokio::task::spawn_blocking(|| {
            let primary = Server::new("first");
            let standby = Server::standby("second", &primary);
            (primary, standby)
        })
        .await
        .unwrap();
        let admin = direct(&primary).await;
        admin.batch_execute("create table t (a int)").await.unwrap();
        let routed = Routed::start_in(
            Style::Proxy(settings),
            Mode::ReadWrite,
            table(1, Some(primary.target())),
        );
        Self { primary, standby, routed }
    }

    /// Whether commits on the primary wait (for a standby that does not exist).
    pub async fn commits_wait(&self, wait: bool) {
        let admin = direct(&self.primary).await;
        let name = if wait { "nobody" } else { "" };
        let set = format!("alter system set synchronous_standby_names = '{name}'");
        admin.batch_execute("set synchronous_commit = local").await.unwrap();
        admin.batch_execute(&set).await.unwrap();
        admin.batch_execute("select pg_reload_conf()").await.unwrap();
        until_answers(&admin, "show synchronous_standby_names", name).await;
        // Backends wait only once the checkpointer has read it too.
        let sql = "select pg_logical_emit_message(true, 'probe', '')";
        let cancel = format!(
            "select count(pg_cancel_backend(pid)) from pg_stat_activity where query = $q${sql}$q$ and wait_event = 'SyncRep'"
        );
        if !wait {
            return;
        }
        loop {
            let probe = direct(&self.primary).await;
            let probe = tokio::spawn(async move { probe.batch_execute(sql).await });
            while !probe.is_finished() {
                if simple(&admin, &cancel).await == "1" {
                    return;
                }
            }
        }
    }

    pub async fn until_waiting(&self, query: &str) {
        let sql = format!(
            "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and query ilike '{query}'"
        );
        until_answers(&direct(&self.primary).await, &sql, "1").await;
    }

    /// The standby has all that the primary has.
    pub async fn caught_up(&self) {
        let lsn = simple(&direct(&self.primary).await, "select pg_current_wal_lsn()").await;
        let sql = format!("select pg_last_wal_replay_lsn() >= '{lsn}'");
        until_answers(&direct(&self.standby).await, &sql, "t").await;
    }

    pub async fn promote(&self) -> Client {
        let admin = direct(&self.standby).await;
        admin.batch_execute("select pg_promote()").await.unwrap();
        until_answers(&admin, "select pg_is_in_recovery()", "f").await;
        admin
    }
}
