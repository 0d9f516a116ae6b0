//! Database processes that a killed guard left behind.
//!
//! The kernel kills the postmaster with its guard; backends see that and end by themselves, but
//! one that computes without looking may go on for long.

use crate::processes::{all_processes, cwd, kill_if, program_name, stat};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// The programs that are servers. A shell or a tool that happens to be in the data directory (of
/// an administrator, say) is none.
const SERVERS: [&str; 3] = ["postgres", "postmaster", "edb-postgres"];
/// Between two looks for processes that were killed.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The server processes that run in this data directory: those whose working directory it is
/// (every PostgreSQL process has it) and whose program is a server's or whose pid `postmaster.pid`
/// names. Processes of other users cannot be seen, unless root asks.
pub fn stray_processes(data_dir: &Path) -> Vec<i32> {
    let Ok(data_dir) = fs::canonicalize(data_dir) else { return Vec::new() };
    let named = postmaster_pid(&data_dir);
    all_processes().into_iter().filter(|pid| is_stray(*pid, &data_dir, named)).collect()
}

/// Kills them and waits until they are gone. `Err` has those that are not gone `within` this time
/// (a process in an uninterruptible wait for a disk ends only when the wait does).
pub fn kill_strays(data_dir: &Path, within: Duration) -> Result<(), Vec<i32>> {
    let began = Instant::now();
    loop {
        let left = kill_strays_once(data_dir);
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= within {
            return Err(left);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Kills them once; returns those that were there.
pub(crate) fn kill_strays_once(data_dir: &Path) -> Vec<i32> {
    let Ok(data_dir) = fs::canonicalize(data_dir) else { return Vec::new() };
    let named = postmaster_pid(&data_dir);
    let mut strays = stray_processes(&data_dir);
    // The postmaster first: it would start others.
    strays.sort_by_key(|pid| (Some(*pid) != named, *pid));
    for pid in &strays {
        kill_if(*pid, |_| is_stray(*pid, &data_dir, named));
    }
    strays
}

fn is_stray(pid: i32, data_dir: &Path, named: Option<i32>) -> bool {
    pid != std::process::id() as i32
        && cwd(pid).is_some_and(|cwd| cwd == data_dir)
        && (named == Some(pid)
            || program_name(pid).is_some_and(|name| SERVERS.contains(&name.as_str())))
        && stat(pid).is_some_and(|s| !s.dead)
}

/// The postmaster that `postmaster.pid` names, if it is dead and its parent has not noticed yet.
pub(crate) fn unreaped_postmaster(data_dir: &Path) -> Option<i32> {
    let pid = postmaster_pid(data_dir)?;
    stat(pid).filter(|s| s.dead && SERVERS.contains(&s.name.as_str())).map(|_| pid)
}

fn postmaster_pid(data_dir: &Path) -> Option<i32> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 1)
}
