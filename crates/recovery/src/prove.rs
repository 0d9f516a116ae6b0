//! A restore that is tried before it is needed: the newest backup with all the WAL behind it, in a spare
//! folder; started, checked, measured, and removed.

use crate::{
    Error, Recovered, Restore, Result,
    replay::{Replay, work_beside},
};
use sempre_backup::Progress;
use sempre_model::{Lsn, backup::Proof};
use sempre_postgres::Instance;
use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::process::Command;

/// What was proved.
#[derive(Clone, Debug)]
pub struct Proved {
    /// What was restored.
    pub recovered: Recovered,
    /// From the beginning to a server that answers.
    pub rto: Duration,
    /// What was checked, in words.
    pub checks: Vec<String>,
}

impl Proved {
    /// As the record keeps it. `primary` is how far the primary was in the beginning, and for how long
    /// (ms) the archive had been behind it.
    pub fn proof(&self, primary: Option<(Lsn, u64)>) -> Proof {
        let lost_bytes = primary.map(|(end, _)| end.bytes_since(self.recovered.end));
        Proof {
            backup: self.recovered.backup.id.clone(),
            at_unix_ms: 0,
            rto_ms: u64::try_from(self.rto.as_millis()).unwrap_or(u64::MAX),
            bytes: self.recovered.files.bytes,
            checks: self.checks.clone(),
            lost_bytes,
            rpo_ms: primary.map(|(_, behind)| if lost_bytes == Some(0) { 0 } else { behind }),
        }
    }
}

/// Restores, starts what was restored, and lets `pg_amcheck` and the user's own `checks` (programs, run
/// with `PGHOST`, `PGPORT` and `PGUSER` set) look at it. Any that fails fails the proof. The target is removed
/// in the end, unless `keep`.
pub async fn prove(
    restore: &Restore<'_>,
    checks: &[String],
    keep: bool,
    progress: Arc<Progress>,
) -> Result<Proved> {
    let began = Instant::now();
    let proved = try_it(restore, checks, began, progress).await;
    if !keep {
        let _ = fs::remove_dir_all(restore.target);
    }
    proved
}

async fn try_it(
    restore: &Restore<'_>,
    checks: &[String],
    began: Instant,
    progress: Arc<Progress>,
) -> Result<Proved> {
    let recovered = restore.run(progress).await?;
    let work = Work::make(restore.target)?;
    let mut server = Replay::run(restore.installation, restore.target, &work.0, None)?;
    let session = server.recovered().await?;
    let rto = began.elapsed();
    drop(session);
    let mut done = Vec::new();
    let instance = Replay::instance(restore.installation, restore.target, &work.0);
    let amcheck = restore.installation.program("pg_amcheck");
    if amcheck.exists() {
        let mut command = Command::new(&amcheck);
        command.args(["--all", "--install-missing", "--heapallindexed", "--jobs=2"]);
        check(&instance, command, "pg_amcheck").await?;
        done.push("pg_amcheck --all --heapallindexed".to_owned());
    }
    for words in checks {
        let mut command = Command::new("sh");
        command.arg("-c").arg(words);
        check(&instance, command, words).await?;
        done.push(words.clone());
    }
    server.stop().await?;
    Ok(Proved { recovered, rto, checks: done })
}

async fn check(instance: &Instance, mut command: Command, name: &str) -> Result<()> {
    command.env("PGHOST", &instance.layout.run_dir).env("PGPORT", instance.port.to_string());
    command.env("PGUSER", sempre_postgres::ADMIN_ROLE).env("PGDATABASE", "postgres");
    let output = command.kill_on_drop(true).output().await;
    let output = output.map_err(Error::io("run", PathBuf::from(name)))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Err(Error::Check {
        name: name.to_owned(),
        status: output.status.to_string(),
        said: said.lines().take(20).collect::<Vec<_>>().join("\n"),
    })
}

/// A folder of work, removed in the end.
pub(crate) struct Work(pub(crate) PathBuf);

impl Work {
    pub(crate) fn make(target: &Path) -> Result<Self> {
        let dir = work_beside(target);
        DirBuilder::new().mode(0o700).create(&dir).map_err(Error::io("make", &dir))?;
        Ok(Self(dir))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
