//! One connection to a server as role `sempre`.

use crate::{
    ADMIN_ROLE, Error, History, Instance, Result, error::driver_words, roles::DATABASE,
    tls::Connector,
};
use sempre_model::ids::{Lsn, MemberId, Timeline};
use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use tokio_postgres::{
    Client, NoTls, Row, Socket, Statement,
    config::{ChannelBinding, SslMode},
    error::SqlState,
    tls::{MakeTlsConnect, TlsConnect},
    types::ToSql,
};

/// A connection that is not there within this time is given up: the socket is local.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// The same for another member's server.
const REMOTE_CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The server ends a statement of ours after this time, ms, so that a caller that went away
/// leaves nothing running for long.
const STATEMENT_LIMIT_MS: u64 = 10_000;

/// Between two looks at whether a promotion is done.
const PROMOTION_POLL: Duration = Duration::from_millis(5);

/// One connection to a server as role `sempre`, over the private Unix socket. It does not
/// reconnect: after an error that is not [`Error::Query`] drop it and make a new one.
///
/// Calls on the same session queue behind each other; what may take long ([`Session::checkpoint`],
/// [`Session::promote`]) deserves one of its own. No call waits for synchronous standbys.
pub struct Session {
    pub(crate) client: Client,
    pub(crate) instance: Option<Instance>,
    pub(crate) observe: Statement,
    pub(crate) memory: Mutex<crate::observe::Memory>,
    /// System identifier and version, which do not change while a connection lasts.
    pub(crate) system_identifier: u64,
    pub(crate) version_num: u32,
}

impl Instance {
    /// Connects to the running server.
    pub async fn session(&self, admin_password: &str) -> Result<Session> {
        self.session_of(admin_password, DATABASE).await
    }

    /// Has the running server read that clients are admitted? A reload is only a signal: it may be
    /// a while until a busy machine lets the server act on it.
    pub async fn admits_clients(&self) -> bool {
        let mut config = tokio_postgres::Config::new();
        config.user(ADMIN_ROLE).dbname(crate::hba::ADMISSION_PROBE);
        config.host_path(&self.layout.run_dir).port(self.port);
        // Refused by us, not by the server, when it asks for a password.
        match tokio::time::timeout(CONNECT_LIMIT, config.connect(NoTls)).await {
            Ok(Err(error)) => match error.code() {
                Some(code) => *code != SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                None => driver_words(&error).0.contains("password missing"),
            },
            Ok(Ok(_)) => true,
            Err(_) => false,
        }
    }

    /// The same, in another database.
    pub(crate) async fn session_of(&self, admin_password: &str, database: &str) -> Result<Session> {
        let mut config = tokio_postgres::Config::new();
        config.dbname(database);
        config.host_path(&self.layout.run_dir).port(self.port).password(admin_password);
        config.connect_timeout(CONNECT_LIMIT);
        let socket = self.layout.run_dir.join(format!(".s.PGSQL.{}", self.port));
        let at = socket.display().to_string();
        Session::connect(config, NoTls, at, Some(self.clone()), CONNECT_LIMIT).await
    }

    /// The history of the timeline another member's server writes. It must be a primary.
    pub async fn history_of(
        &self,
        source: &crate::Upstream,
        admin_password: &str,
    ) -> Result<History> {
        self.remote_session(source, admin_password).await?.history().await
    }

    /// Connects to another member's server, on the first of its addresses that answers.
    pub async fn remote_session(
        &self,
        upstream: &crate::Upstream,
        admin_password: &str,
    ) -> Result<Session> {
        let mut config = tokio_postgres::Config::new();
        for host in &upstream.hosts {
            config.host(host);
        }
        config.port(upstream.port).password(admin_password).dbname(DATABASE);
        config.connect_timeout(CONNECT_LIMIT).tcp_user_timeout(REMOTE_CONNECT_LIMIT);
        let at = format!("{} port {}", upstream.hosts.join(", "), upstream.port);
        if !upstream.encryption.is_on() {
            return Session::connect(config, NoTls, at, None, REMOTE_CONNECT_LIMIT).await;
        }
        config.ssl_mode(SslMode::Require).channel_binding(ChannelBinding::Require);
        let tls = Connector::new(self, upstream.encryption)?;
        Session::connect(config, tls, at, None, REMOTE_CONNECT_LIMIT).await
    }
}

impl Session {
    async fn connect<T>(
        mut config: tokio_postgres::Config,
        tls: T,
        at: String,
        instance: Option<Instance>,
        limit: Duration,
    ) -> Result<Session>
    where
        T: MakeTlsConnect<Socket>,
        T::Stream: Send + 'static,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        config.user(ADMIN_ROLE).application_name("sempre");
        // What we do never waits for a standby, and ends when we are gone.
        config.options(format!(
            "-c synchronous_commit=local -c statement_timeout={STATEMENT_LIMIT_MS} \
             -c lock_timeout={STATEMENT_LIMIT_MS} -c client_connection_check_interval=1000 \
             -c search_path=pg_catalog -c default_transaction_read_only=off -c jit=off"
        ));
        let connected = tokio::time::timeout(limit, async {
            let (client, connection) = config
                .connect(tls)
                .await
                .map_err(|e| Error::Connect { at: at.clone(), why: driver_words(&e).0 })?;
            tokio::spawn(async move {
                // Its end shows in the client's next call.
                if let Err(error) = connection.await {
                    tracing::debug!(error = driver_words(&error).0, "the session ended");
                }
            });
            let doing = "tell its identity";
            let row = client.query_one(IDENTITY, &[]).await.map_err(|e| Error::query(doing, &e))?;
            let system_identifier: i64 = get(&row, 0, doing)?;
            let version: String = get(&row, 1, doing)?;
            let observe = client
                .prepare(crate::observe::OBSERVE)
                .await
                .map_err(|e| Error::query("prepare to be observed", &e))?;
            Ok(Session {
                client,
                instance,
                observe,
                memory: Mutex::default(),
                // PostgreSQL shows the 64 bits as a signed number.
                system_identifier: system_identifier as u64,
                version_num: version.parse().unwrap_or(0),
            })
        });
        connected
            .await
            .map_err(|_| Error::TimedOut { what: format!("connecting to {at}"), after: limit })?
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, crate::observe::Memory> {
        self.memory.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) async fn row(
        &self,
        doing: &'static str,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Row> {
        self.client.query_one(sql, values).await.map_err(|e| Error::query(doing, &e))
    }

    pub(crate) async fn rows(
        &self,
        doing: &'static str,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        self.client.query(sql, values).await.map_err(|e| Error::query(doing, &e))
    }

    /// Runs statements of the caller's, without a result.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(|e| Error::query("run a statement", &e))
    }

    /// Is the connection gone?
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Is it a primary (out of recovery)?
    pub async fn is_primary(&self) -> Result<bool> {
        let doing = "tell its role";
        get(&self.row(doing, "SELECT NOT pg_is_in_recovery()", &[]).await?, 0, doing)
    }

    /// Makes a standby a primary, and waits until it is one. All that it has of its upstream's
    /// WAL is replayed first. Give it a session of its own, and a deadline.
    pub async fn promote(&self) -> Result<()> {
        let doing = "promote";
        if self.is_primary().await? {
            return Ok(());
        }
        self.row(doing, "SELECT pg_promote(false)", &[]).await?;
        while !self.is_primary().await? {
            tokio::time::sleep(PROMOTION_POLL).await;
        }
        Ok(())
    }

    /// Has the server read its configuration again. It does so on its own shortly after.
    pub async fn reload(&self) -> Result<()> {
        self.row("reload", "SELECT pg_reload_conf()", &[]).await.map(|_| ())
    }

    /// Checkpoint, at full speed. Give it a session of its own: it takes as long as the disk
    /// needs.
    pub async fn checkpoint(&self) -> Result<()> {
        self.execute("SET statement_timeout = 0").await?;
        let done = self.client.batch_execute("CHECKPOINT").await;
        self.execute(&format!("SET statement_timeout = {STATEMENT_LIMIT_MS}")).await?;
        done.map_err(|e| Error::query("checkpoint", &e))
    }

    /// Primary: flushed. Standby: received and flushed, or replayed, if that is further.
    pub async fn flush_lsn(&self) -> Result<Lsn> {
        let doing = "tell its position";
        let sql = "SELECT CASE WHEN pg_is_in_recovery() \
             THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
             ELSE pg_current_wal_flush_lsn() END::text";
        lsn(&self.row(doing, sql, &[]).await?, 0, doing)
    }

    /// Parameters that wait for a restart (scans all of them: about 1 ms).
    ///
    /// PostgreSQL also calls a parameter pending when its line went away, even if the default it
    /// would go back to is what is in force. Such a one is left out.
    pub async fn pending_restart(&self) -> Result<Vec<String>> {
        let doing = "tell what waits for a restart";
        let sql = "SELECT s.name FROM pg_settings s \
             WHERE s.pending_restart AND s.setting IS DISTINCT FROM coalesce( \
               (SELECT f.setting FROM pg_file_settings f WHERE f.name = s.name \
                ORDER BY f.seqno DESC LIMIT 1), s.boot_val) \
             ORDER BY s.name";
        self.rows(doing, sql, &[]).await?.iter().map(|row| get(row, 0, doing)).collect()
    }

    /// What is wrong with `pg_hba.conf` as it is on disk: while there is such a line, PostgreSQL
    /// keeps to the rules it had before.
    pub async fn hba_error(&self) -> Result<Option<String>> {
        let doing = "tell what is wrong with pg_hba.conf";
        let sql = "SELECT format('pg_hba.conf line %s: %s', line_number, error) \
             FROM pg_hba_file_rules WHERE error IS NOT NULL ORDER BY line_number LIMIT 1";
        self.rows(doing, sql, &[]).await?.first().map(|row| get(row, 0, doing)).transpose()
    }

    /// The history of the timeline this primary writes.
    pub async fn history(&self) -> Result<History> {
        let doing = "tell its timeline";
        let row =
            self.row(doing, "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)", &[]).await?;
        let hex: String = get(&row, 0, doing)?;
        let timeline = u32::from_str_radix(&hex, 16).map(Timeline).map_err(|_| Error::Format {
            what: "the name of a WAL file".into(),
            why: hex.clone(),
        })?;
        if timeline.0 <= 1 {
            return Ok(History::first());
        }
        let file = format!("pg_wal/{hex}.history");
        let row = self.row(doing, "SELECT pg_read_file($1, 0, 10000000, false)", &[&file]).await?;
        History::parse(timeline, &get::<String>(&row, 0, doing)?)
    }

    /// Client backends: those of sempre's own roles and of replication do not count.
    pub async fn client_count(&self) -> Result<i64> {
        let doing = "count its clients";
        let sql = format!("SELECT count(*) {CLIENTS}");
        get(&self.row(doing, &sql, &[]).await?, 0, doing)
    }

    /// Those of them that have a transaction or statement open.
    pub async fn busy_clients(&self) -> Result<i64> {
        let doing = "count its busy clients";
        let sql = format!("SELECT count(*) {CLIENTS} AND state <> 'idle'");
        get(&self.row(doing, &sql, &[]).await?, 0, doing)
    }

    /// How the password of a role that may log in is stored (`SCRAM-SHA-256$...`, `md5...`); none: there is no
    /// such role, or it has no password that is valid now.
    pub async fn password_verifier(&self, role: &str) -> Result<Option<String>> {
        let doing = "look up how a password is stored";
        let sql = "SELECT (SELECT rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin \
             AND (rolvaliduntil IS NULL OR rolvaliduntil > now()))";
        get(&self.row(doing, sql, &[&role]).await?, 0, doing)
    }

    /// Ends all client backends. Returns how many.
    pub async fn terminate_clients(&self) -> Result<i64> {
        let doing = "end its clients";
        let sql = format!("SELECT count(pg_terminate_backend(pid)) {CLIENTS}");
        get(&self.row(doing, &sql, &[]).await?, 0, doing)
    }

    /// Ends the replication connections of a member (from one address only, if given), so that
    /// its slot is free at once and it connects again on another path. Returns how many.
    pub async fn terminate_walsender(
        &self,
        member: &MemberId,
        client_address: Option<&str>,
    ) -> Result<i64> {
        let doing = "end a replication connection";
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication \
             WHERE application_name = $1 AND ($2::text IS NULL OR host(client_addr) = $2)";
        let row = self.row(doing, sql, &[&member.as_str(), &client_address]).await?;
        get(&row, 0, doing)
    }

    /// PostgreSQL's own data directory, as the server says.
    pub async fn data_directory(&self) -> Result<PathBuf> {
        let doing = "tell its data directory";
        let row = self.row(doing, "SELECT current_setting('data_directory')", &[]).await?;
        Ok(PathBuf::from(get::<String>(&row, 0, doing)?))
    }
}

const IDENTITY: &str = "SELECT system_identifier, current_setting('server_version_num') \
     FROM pg_control_system()";

/// Client backends other than ours.
const CLIENTS: &str = "FROM pg_stat_activity WHERE backend_type = 'client backend' \
     AND pid <> pg_backend_pid() AND usename IS NOT NULL \
     AND usename NOT IN ('sempre', 'sempre_replication')";

/// A column, or an error that says what it was for.
pub(crate) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    index: usize,
    doing: &'static str,
) -> Result<T> {
    row.try_get(index).map_err(|e| Error::query(doing, &e))
}

/// A position shown as text; 0 when there is none.
pub(crate) fn lsn(row: &Row, index: usize, doing: &'static str) -> Result<Lsn> {
    match get::<Option<String>>(row, index, doing)? {
        None => Ok(Lsn(0)),
        Some(text) => text
            .parse()
            .map_err(|e| Error::Format { what: "a WAL position".into(), why: format!("{e}") }),
    }
}
