//! The tools that are compared, asked for the same.

use super::{
    peer,
    server::Server,
    watch::{self, Cost},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Nothing of a database runs as root.
pub const USER: &str = "postgres";

/// A tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    Sempre,
    /// With one of its repositories; the second is encrypted.
    PgBackRest {
        repository: u8,
    },
}

/// A backup that was made.
pub struct Made {
    pub id: String,
    pub cost: Cost,
}

/// A restore that was done.
pub struct Restored {
    /// Until the files are there.
    pub files: Cost,
    /// Until the database has taken in WAL and stopped in order.
    pub whole: Cost,
}

impl Tool {
    pub fn name(&self) -> &'static str {
        match self {
            Tool::Sempre => "sempre",
            Tool::PgBackRest { repository: 1 } => "pgbackrest",
            Tool::PgBackRest { .. } => "pgbackrest encrypted",
        }
    }

    pub fn back_up(&self, server: &Server, full: bool) -> Result<Made> {
        match self {
            Tool::Sempre => {
                let mut command = server.sempre(&["--json", "backup", "run"]);
                command.args(full.then_some("--full"));
                let (said, cost) = watch::run(&mut command, Some(server.agent()), "sempre")?;
                let said: Value = serde_json::from_str(&said)?;
                let id = said["id"].as_str().context("a backup without a name")?.to_owned();
                eprintln!("{}: {cost:.2?} {said}", self.name());
                Ok(Made { id, cost })
            }
            Tool::PgBackRest { repository } => peer::back_up(server, *repository, full),
        }
    }

    pub fn restore(
        &self,
        server: &Server,
        backup: &str,
        target: &Path,
        delta: bool,
    ) -> Result<Restored> {
        let Tool::PgBackRest { repository } = self else {
            return restore(server, backup, target, delta);
        };
        let files = peer::restore(server, *repository, backup, target, delta)?;
        eprintln!("{}: {files:.2?}", self.name());
        let whole = Cost { seconds: files.seconds + peer::replay(target)?, ..files.clone() };
        Ok(Restored { files, whole })
    }
}

fn restore(server: &Server, backup: &str, target: &Path, delta: bool) -> Result<Restored> {
    let mut command = server.sempre(&["--json", "restore", "--to-backup", "--backup", backup]);
    command.arg("--target").arg(target).args(delta.then_some("--delta"));
    let (said, whole) = watch::run(&mut command, None, "sempre")?;
    let said: Value = serde_json::from_str(&said)?;
    let replay_ms = said["replay_ms"].as_f64().context("no replay_ms")?;
    // Whatever else it does, such as asking the member, counts as bringing the files.
    let files = Cost { seconds: whole.seconds - replay_ms / 1e3, ..whole.clone() };
    eprintln!("sempre: {whole:.2?} {said}");
    Ok(Restored { files, whole })
}

pub fn is_root() -> bool {
    output("id", &["-u"]).is_ok_and(|id| id.trim() == "0")
}

/// A command that does not run as root.
pub fn as_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups"]).arg(program);
    // Root's own folder is nobody else's.
    command.current_dir("/");
    command
}

/// What a program printed.
pub fn output(program: &str, arguments: &[&str]) -> Result<String> {
    done(Command::new(program).args(arguments))
}

/// What it printed; it must succeed.
pub fn done(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?}: {error}");
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
