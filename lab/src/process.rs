//! The processes of one host, found by the network namespace they are in.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long killed processes may take to be gone. Only a process stuck in the kernel takes longer.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// One process of a host.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id, in the namespace we see.
    pub pid: u32,
    /// Whose child it is.
    pub parent: u32,
    /// The kernel's short name of it.
    pub name: String,
    /// Its arguments, separated by spaces.
    pub arguments: String,
}

/// All processes whose network namespace is the one mounted at `namespace`, but for zombies.
pub fn in_namespace(namespace: &Path) -> Vec<Process> {
    let Ok(wanted) = fs::metadata(namespace).map(|m| (m.dev(), m.ino())) else { return vec![] };
    let Ok(entries) = fs::read_dir("/proc") else { return vec![] };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| (m.dev(), m.ino()) == wanted)
        })
        .filter_map(describe)
        .collect()
}

/// What `/proc` says of a process; none if it is gone.
pub fn describe(pid: u32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    if field("State:")?.starts_with('Z') {
        return None;
    }
    let parent = field("PPid:")?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ").trim().to_owned();
    Some(Process { pid, parent, name, arguments })
}

/// Sends one signal. A process that is gone already is no error.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).context("0 is no process id")?;
    match kill_process(id, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => bail!("could not send {signal:?} to process {pid}: {error}"),
    }
}

/// Kills all processes of a namespace, and waits until they are gone.
pub fn kill_namespace(namespace: &Path) -> Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let left = in_namespace(namespace);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("processes that do not die in {}: {left:?}", namespace.display());
        }
        for process in left {
            signal(process.pid, Signal::KILL)?;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
