//! The server that is backed up: a member of its own, and the folders around it.

use super::{
    peer,
    tool::{self, Tool},
};
use anyhow::{Context, Result, bail};
use sempre_lab::rig::{own, postgres_bin};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The first of its five ports.
const PORT: u16 = 24_500;
/// A database of scale 1 has so much.
const MB_OF_SCALE: f64 = 15.9;
/// Room is left in each page, so that a row that changes changes one page, not three.
const FILL_PERCENT: &str = "90";
/// Large enough for checkpoints not to come when they please.
const SETTINGS: [&str; 4] =
    ["shared_buffers=256MB", "max_wal_size=8GB", "checkpoint_timeout=1h", "autovacuum=off"];

/// A running member. Everything of it ends when this is dropped.
pub struct Server {
    pub binary: PathBuf,
    agent: Child,
    // Dropped last.
    folder: tempfile::TempDir,
}

impl Server {
    /// A member whose WAL is kept in a repository of ours, and in pgBackRest's if there is a `peer`.
    pub fn start(binary: &Path, folder: &Path, peer: bool) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("sempre-bk").tempdir_in(folder)?;
        let root = folder.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
        for name in ["m1", "sempre", "restored", "pgbackrest"] {
            fs::create_dir(root.join(name))?;
            if tool::is_root() {
                own(&root.join(name), tool::USER)?;
            }
        }
        fs::write(root.join("m1.toml"), config(root))?;
        let at = |words: &[&str]| {
            let mut command = Command::new(binary);
            command.arg("--config").arg(root.join("m1.toml")).args(words);
            command
        };
        tool::done(&mut at(&["init", "--cluster", "backups"]))?;
        let log = fs::File::create(root.join("m1.log"))?;
        let mut run = at(&["run", "--stop-with-input"]);
        let run = run.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let server = Self { binary: binary.to_owned(), agent: run.spawn()?, folder };
        server.until("the member serves", || server.serves())?;
        // Ours to set: the member makes its own configuration of it.
        fs::write(server.data_dir().join("pg_hba.conf"), "local all all trust\n")?;
        let mut settings: Vec<String> = SETTINGS.map(str::to_owned).into();
        if peer {
            settings.extend(peer::archiving(server.root())?);
        }
        let settings = settings.iter().map(|setting| format!("postgresql.{setting}"));
        tool::done(server.sempre(&["config", "set"]).args(settings))?;
        tool::done(&mut server.sempre(&["restart", "m1"]))?;
        server.until("the member serves again", || server.serves())?;
        server.until("clients are let in", || server.psql("select 1").ok())?;
        let repository = server.root().join("sempre");
        let words = ["backup", "init", "main", "--folder", &repository.to_string_lossy()];
        tool::done(&mut server.sempre(&words))?;
        if peer {
            peer::create_stanza(&server)?;
        }
        Ok(server)
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.root().join("m1/data")
    }

    /// The process that starts the workers of backups.
    pub fn agent(&self) -> u32 {
        self.agent.id()
    }

    /// Where a tool has its repository.
    pub fn repository(&self, tool: &Tool) -> PathBuf {
        match tool {
            Tool::Sempre => self.root().join("sempre"),
            Tool::PgBackRest { repository } => peer::repository(self.root(), *repository),
        }
    }

    /// Where a tool restores to.
    pub fn target(&self, tool: &Tool) -> PathBuf {
        self.root().join("restored").join(tool.name().replace(' ', "-"))
    }

    fn serves(&self) -> Option<()> {
        let status = tool::done(&mut self.sempre(&["status", "--json"])).ok()?;
        let status: Value = serde_json::from_str(&status).ok()?;
        status["writable"].as_bool()?.then_some(())
    }

    /// A command of `sempre`.
    pub fn sempre(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(self.root().join("m1.toml")).args(words);
        command
    }

    fn client(&self, program: &str, words: &[&str]) -> Result<String> {
        let mut command = tool::as_user(&postgres_bin()?.join(program));
        command.env("PGHOST", self.root().join("m1/run")).env("PGPORT", PORT.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").args(words);
        tool::done(&mut command)
    }

    pub fn psql(&self, sql: &str) -> Result<String> {
        self.client("psql", &["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql])
    }

    pub fn fill(&self, size_mb: u64) -> Result<()> {
        let scale = (size_mb as f64 / MB_OF_SCALE).ceil().to_string();
        self.client("pgbench", &["-i", "-q", "-I", "dtGp", "-F", FILL_PERCENT, "-s", &scale])?;
        for statement in ["vacuum freeze", "checkpoint"] {
            self.psql(statement)?;
        }
        let pages = self.psql("select sum(relpages) from pg_class where relkind in ('r', 'i')")?;
        eprintln!("{} pages", pages.trim());
        self.archived()
    }

    /// Updates single rows, all over the large table, as many as a hundredth of its pages.
    pub fn change_a_hundredth(&self) -> Result<()> {
        self.psql(
            "update pgbench_accounts set abalance = abalance + 1 where aid in (
                select 1 + (random() * (select max(aid) - 1 from pgbench_accounts))::int
                from generate_series(1, (select relpages / 100 from pg_class
                                         where relname = 'pgbench_accounts')))",
        )?;
        self.psql("checkpoint")?;
        self.archived()
    }

    /// Waits until nobody is behind with WAL: it is nobody's to make up while others are measured.
    fn archived(&self) -> Result<()> {
        let behind = "select count(*) from pg_replication_slots
            where pg_current_wal_flush_lsn() - restart_lsn > 17000000";
        self.until("WAL is kept", || {
            let ready = fs::read_dir(self.data_dir().join("pg_wal/archive_status")).ok()?;
            let ready = ready.flatten().any(|e| e.path().extension().is_some_and(|x| x == "ready"));
            (!ready && self.psql(behind).ok()?.trim() == "0").then_some(())
        })
    }

    /// Reads all that is in these folders, and writes out what is dirty.
    pub fn warm(&self, folders: &[&Path]) -> Result<()> {
        for folder in folders {
            let folder = folder.to_string_lossy();
            // What the server removes meanwhile is not wanted.
            let read = format!("find {folder} -type f -exec cat {{}} + >/dev/null 2>&1; true");
            tool::output("sh", &["-c", &read])?;
        }
        tool::output("sync", &[]).map(drop)
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        let ends = Instant::now() + DEADLINE;
        loop {
            if let Some(seen) = look() {
                return Ok(seen);
            }
            if Instant::now() > ends {
                let log = fs::read_to_string(self.root().join("m1.log")).unwrap_or_default();
                bail!("waited too long until {what}; the member's log:\n{log}");
            }
            sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It stops, with its database, once its input ends.
        drop(self.agent.stdin.take());
        let ends = Instant::now() + DEADLINE;
        while matches!(self.agent.try_wait(), Ok(None)) {
            if Instant::now() > ends {
                let _ = self.agent.kill();
            }
            sleep(LOOK_EVERY);
        }
    }
}

pub fn port() -> String {
    PORT.to_string()
}

fn config(root: &Path) -> String {
    let ports = ["database", "read_write", "read_only", "rest", "peer"];
    let ports = ports.iter().zip(PORT..).map(|(name, port)| format!("{name} = {port}\n"));
    let dir = root.join("m1");
    format!(
        "name = \"m1\"\ndir = \"{}\"\naddresses = [\"127.77.0.1\"]\n[ports]\n{}",
        dir.display(),
        ports.collect::<String>()
    )
}

/// The only folder that a restored server needs besides its own.
pub fn socket_dir(target: &Path) -> Result<PathBuf> {
    Ok(target.parent().context("a target is in a folder")?.to_owned())
}
