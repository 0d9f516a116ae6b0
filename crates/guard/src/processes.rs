//! Finding and killing processes by what `/proc` says of them.
//!
//! Only files of `/proc` are read that never wait for the process itself: `stat`, `children` and
//! the links `cwd` and `exe`, never `cmdline` or `maps`, which take its memory lock and hang with
//! a process that hangs.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{collections::HashMap, fs, path::PathBuf};

/// Kills every descendant of this process, children first. Returns how many were found.
///
/// Whoever forks meanwhile is found by the next call: repeat until there is no child left. (When
/// a process dies its children become those of the next subreaper above it, which is us.)
pub(crate) fn kill_descendants() -> usize {
    let own = std::process::id() as i32;
    let mut found = 0;
    let mut parents = vec![own];
    let mut fallback: Option<HashMap<i32, Vec<i32>>> = None;
    while let Some(parent) = parents.pop() {
        let children = children(parent)
            .unwrap_or_else(|| of_parent(fallback.get_or_insert_with(by_parent), parent));
        for child in children {
            found += 1;
            if parent == own {
                // A child of ours keeps its pid until we wait for it.
                let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
            } else {
                kill_if(child, |stat| stat.parent == parent || stat.parent == own);
            }
            parents.push(child);
        }
    }
    found
}

/// Kills `pid` if `is_it` (asked while the pid cannot be given to another process) agrees.
pub(crate) fn kill_if(pid: i32, is_it: impl FnOnce(&Stat) -> bool) {
    let Some(raw) = rustix::process::Pid::from_raw(pid) else { return };
    match rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) {
        Ok(handle) => {
            if stat(pid).is_some_and(|s| is_it(&s)) {
                let kill = rustix::process::Signal::KILL;
                let _ = rustix::process::pidfd_send_signal(&handle, kill);
            }
        }
        // Kernels before 5.3.
        Err(rustix::io::Errno::NOSYS) => {
            if stat(pid).is_some_and(|s| is_it(&s)) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        Err(_) => {}
    }
}

fn of_parent(by_parent: &HashMap<i32, Vec<i32>>, parent: i32) -> Vec<i32> {
    by_parent.get(&parent).cloned().unwrap_or_default()
}

/// The children of a process; none when the kernel does not list them.
fn children(pid: i32) -> Option<Vec<i32>> {
    let mut all = Vec::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Some(all) };
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(text) => all.extend(text.split_whitespace().filter_map(|w| w.parse::<i32>().ok())),
            // The file is missing: either the thread ended, or the kernel has no such files.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && thread.path().exists() => {
                return None;
            }
            Err(_) => {}
        }
    }
    Some(all)
}

fn by_parent() -> HashMap<i32, Vec<i32>> {
    let mut map: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in all_processes() {
        if let Some(stat) = stat(pid) {
            map.entry(stat.parent).or_default().push(pid);
        }
    }
    map
}

/// Every process.
pub(crate) fn all_processes() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The beginning of `/proc/PID/stat`.
pub(crate) struct Stat {
    /// The file name of its program, up to 15 bytes.
    pub name: String,
    /// Its parent.
    pub parent: i32,
    /// A zombie: it runs no more, and only waits to be waited for.
    pub dead: bool,
}

pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&text))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name in parentheses may hold anything, parentheses and spaces too.
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut words = tail.split_whitespace();
    let dead = matches!(words.next()?, "Z" | "X" | "x");
    Some(Stat { name, parent: words.next()?.parse().ok()?, dead })
}

/// Where a process is, if we may know.
pub(crate) fn cwd(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// The file name of its program, if we may know.
pub(crate) fn program_name(pid: i32) -> Option<String> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = exe.file_name()?.to_str()?;
    // So the kernel shows a binary that was replaced by an upgrade.
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_hostile_names_is_understood() {
        let stat = parse_stat("12 (a) R 1) S 7 12 12 0").unwrap();
        assert_eq!((stat.name.as_str(), stat.parent, stat.dead), ("a) R 1", 7, false));
        assert!(parse_stat("12 (x) Z 7").unwrap().dead);
        for bad in ["", "12", "12 (x", "12 (x) S", "12 (x) S y"] {
            assert!(parse_stat(bad).is_none(), "{bad}");
        }
    }
}
