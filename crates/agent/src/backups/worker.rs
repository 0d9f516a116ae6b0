//! A process that does one job. It ends when its standard input does: with the agent, whatever becomes of
//! that.

use anyhow::bail;
use sempre_recovery::{Job, Said, Worked};
use std::{path::PathBuf, process::Stdio};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
    sync::mpsc,
};

/// Which job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// The WAL of a repository.
    Archive(String),
    /// The fence of a repository, for a generation.
    Fence(String, u64),
    /// A base backup in a repository, by the version of its order.
    Backup(String, u64),
    /// A restore from a repository that is tried, by the version of its order.
    Drill(String, u64),
    /// Something that is waited for.
    Once,
    /// A backup of files, by the version of its order.
    Files(String, u64),
}

/// What is heard of it.
pub(super) enum Report {
    /// It says something.
    Said(Said),
    /// It ended without a word.
    Ended(String),
}

/// Runs a job to its end. Dropped, its process is ended.
pub(super) async fn run(
    program: PathBuf,
    key: Key,
    job: String,
    tell: mpsc::Sender<(Key, Report)>,
) {
    let why = match work(&program, &key, &job, &tell).await {
        Ok(()) => "its process ended".to_owned(),
        Err(error) => format!("its process cannot be run: {error}"),
    };
    let _ = tell.send((key, Report::Ended(why))).await;
}

/// The very binary that runs, even when its file was replaced by an upgrade.
const PROGRAM: &str = "/proc/self/exe";
/// Reports that may wait.
const REPORTS_MAX: usize = 16;

/// Has a job done that has an end; `told` hears how far it is. Dropped, its process is ended.
pub(crate) async fn once(job: &Job, told: impl Fn(Said)) -> anyhow::Result<Worked> {
    let job = serde_json::to_string(job)?;
    let (tell, mut reports) = mpsc::channel(REPORTS_MAX);
    let running = run(PROGRAM.into(), Key::Once, job, tell);
    let listening = async {
        let mut outcome = None;
        while let Some((_, report)) = reports.recv().await {
            match report {
                Report::Said(Said::Done(worked)) => outcome = Some(Ok(worked)),
                Report::Said(Said::Failed(why)) => outcome = Some(Err(why)),
                Report::Said(said) => told(said),
                Report::Ended(why) => outcome = outcome.or(Some(Err(why))),
            }
        }
        outcome
    };
    match tokio::join!(running, listening).1 {
        Some(Ok(worked)) => Ok(worked),
        Some(Err(why)) => bail!("{why}"),
        None => bail!("its process ended without a word"),
    }
}

async fn work(
    program: &PathBuf,
    key: &Key,
    job: &str,
    tell: &mpsc::Sender<(Key, Report)>,
) -> std::io::Result<()> {
    let mut child = Command::new(program)
        .arg("worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take();
    if let Some(input) = &mut input {
        input.write_all(job.as_bytes()).await?;
        input.write_all(b"\n").await?;
        input.flush().await?;
    }
    if let Some(output) = child.stdout.take() {
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await? {
            if let Ok(said) = serde_json::from_str(&line) {
                let _ = tell.send((key.clone(), Report::Said(said))).await;
            }
        }
    }
    child.wait().await?;
    Ok(())
}
