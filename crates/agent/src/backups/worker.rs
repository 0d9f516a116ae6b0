//! A process that does one job. It ends when its standard input does: with the agent, whatever becomes of
//! that.

use sempre_recovery::Said;
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
    /// A base backup in a repository, by the version of its order.
    Backup(String, u64),
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
