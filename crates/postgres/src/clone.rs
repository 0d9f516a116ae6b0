//! Makes the data directory a fresh copy of another member's.

use crate::{
    Error, Instance, Result, Upstream, command, files,
    init::{put_in_place, refuse_root},
};
use rustix::fs::RenameFlags;
use std::{fs, path::Path, process::Stdio, time::Duration};
use tokio::io::{AsyncReadExt, BufReader};

/// How a copy is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloneOptions {
    /// The slot on the source that keeps the WAL until the new standby streams; none: a
    /// temporary one, and WAL may be gone by the time the standby starts.
    pub slot: Option<String>,
    /// The most that is transferred, KiB a second; none: no limit.
    pub max_rate_kib: Option<u64>,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received.
    pub done_bytes: u64,
    /// Bytes in all, as the source estimates (it may grow); none: not known.
    pub total_bytes: Option<u64>,
}

/// A source that sends nothing and reports no progress for this long is given up. The first
/// checkpoint of a large, busy source is the longest silence.
const SILENCE_LIMIT: Duration = Duration::from_secs(600);

/// The least free space that must be left beside the old data for it to be kept meanwhile.
const SPARE_BYTES: u64 = 1 << 30;

/// Bytes of the program's output that are kept for its error.
const OUTPUT_BYTES_KEPT: usize = 8 << 10;

impl Instance {
    /// Makes the data directory a fresh copy of `source`'s, ready to start as a standby.
    ///
    /// The copy grows beside the data directory and takes its place when it is complete and on
    /// disk; interrupted at any moment, it leaves nothing that looks whole. What was there
    /// before is kept until then, where space (and the absence of tablespaces) allows, and is
    /// removed first otherwise. The server must be stopped.
    pub async fn clone_from(
        &self,
        source: &Upstream,
        options: &CloneOptions,
        progress: impl Fn(Progress),
    ) -> Result<()> {
        refuse_root()?;
        self.refuse_running("replace")?;
        self.prepare_dirs()?;
        let (work, data_dir) = (self.clone_dir(), &self.layout.data_dir);
        command::end_strays(&work).await?;
        files::remove_tree(&work)?;
        if let Some(parent) = work.parent() {
            files::private_dir(parent)?;
        }
        if !self.can_keep_old()? {
            remove_data(data_dir)?;
        }
        let made = self.copy_into(&work, source, options, &progress).await;
        self.forget_tool_passwords();
        if made.is_err() {
            let _ = files::remove_tree(&work);
        }
        made?;
        files::write_atomically(&work.join("standby.signal"), "")?;
        files::sync_dir(&work)?;
        self.swap_in(&work)?;
        files::remove_file(&self.rewind_marker()).map(|_| ())
    }

    async fn copy_into(
        &self,
        work: &Path,
        source: &Upstream,
        options: &CloneOptions,
        progress: &impl Fn(Progress),
    ) -> Result<()> {
        files::write_atomically(&self.tool_pass_file(), &source.pass_lines())?;
        // No member's name has a colon: nobody takes this connection for the standby itself.
        let name = format!("{}:clone", self.me);
        let conninfo = source.conninfo(self, &name, &self.tool_pass_file(), None);
        let mut tool = command::command(&self.installation.program("pg_basebackup"));
        tool.arg("-D").arg(work).arg("-d").arg(conninfo);
        tool.args(["--wal-method=stream", "--checkpoint=fast", "--progress", "--no-password"]);
        if let Some(slot) = &options.slot {
            tool.arg(format!("--slot={slot}"));
        }
        if let Some(rate) = options.max_rate_kib {
            // The program's own bounds.
            tool.arg(format!("--max-rate={}k", rate.clamp(32, 1 << 20)));
        }
        tool.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let program = self.installation.program("pg_basebackup");
        let mut child = tool.spawn().map_err(Error::io("start", &program))?;
        let group = command::Group::of(&child);
        let mut text = String::new();
        if let Some(stderr) = child.stderr.take() {
            let mut stderr = BufReader::new(stderr);
            let mut buffer = [0u8; 4096];
            loop {
                let read = tokio::time::timeout(SILENCE_LIMIT, stderr.read(&mut buffer));
                let read = read.await.map_err(|_| Error::TimedOut {
                    what: "pg_basebackup (it was silent and)".into(),
                    after: SILENCE_LIMIT,
                })?;
                let read = read.map_err(Error::io("read the output of", &program))?;
                if read == 0 {
                    break;
                }
                text.push_str(&String::from_utf8_lossy(&buffer[..read]));
                if let Some(now) = text.rsplit(['\r', '\n']).find_map(parse_progress) {
                    progress(now);
                }
                if text.len() > 2 * OUTPUT_BYTES_KEPT {
                    let from = text.ceil_char_boundary(text.len() - OUTPUT_BYTES_KEPT);
                    text.drain(..from);
                }
            }
        }
        let status = child.wait().await.map_err(Error::io("wait for", &program))?;
        group.ended();
        if status.success() {
            return Ok(());
        }
        let words: Vec<&str> =
            text.split(['\r', '\n']).filter(|l| parse_progress(l).is_none()).collect();
        Err(command::failed("pg_basebackup".into(), &status, &words.join("\n")))
    }

    /// Is there room for the old data and a copy of about its size?
    fn can_keep_old(&self) -> Result<bool> {
        let data_dir = &self.layout.data_dir;
        if !data_dir.exists() {
            return Ok(true);
        }
        // A tablespace is outside, at the same place in both: they cannot exist together.
        if fs::read_dir(data_dir.join("pg_tblspc")).is_ok_and(|mut d| d.next().is_some()) {
            return Ok(false);
        }
        let free = files::free_bytes(data_dir)?;
        Ok(free > files::tree_bytes(data_dir).saturating_add(SPARE_BYTES))
    }

    /// Puts a complete copy in the place of the data directory, and removes what was there.
    fn swap_in(&self, work: &Path) -> Result<()> {
        let data_dir = &self.layout.data_dir;
        if fs::read_dir(data_dir).is_ok_and(|mut d| d.next().is_some()) {
            let here = rustix::fs::CWD;
            rustix::fs::renameat_with(here, work, here, data_dir, RenameFlags::EXCHANGE)
                .map_err(|e| Error::io("put the copy in place as", data_dir)(e.into()))?;
            files::sync_parent(data_dir)?;
            files::remove_tree(work)
        } else {
            put_in_place(work, data_dir)
        }
    }

    /// Refuses while a server runs on the data directory.
    pub(crate) fn refuse_running(&self, doing: &'static str) -> Result<()> {
        match self.running_pid() {
            None => Ok(()),
            Some(pid) => Err(Error::DataDir {
                doing,
                data_dir: self.layout.data_dir.clone(),
                why: format!("its server runs (process {pid}); stop it first"),
            }),
        }
    }

    /// The process that `postmaster.pid` names, if it is alive and a server of this directory.
    pub fn running_pid(&self) -> Option<u32> {
        let data_dir = &self.layout.data_dir;
        let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
        let pid: u32 = text.lines().next()?.trim().parse().ok()?;
        // A pid file outlives a crash, and its number may be another process's by now: a server
        // works in its data directory.
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        (fs::canonicalize(data_dir).ok()? == cwd).then_some(pid)
    }
}

/// Removes a data directory and what it has in tablespaces outside.
fn remove_data(data_dir: &Path) -> Result<()> {
    if let Ok(links) = fs::read_dir(data_dir.join("pg_tblspc")) {
        for link in links.flatten() {
            let Ok(target) = fs::read_link(link.path()) else { continue };
            let Ok(entries) = fs::read_dir(&target) else { continue };
            for entry in entries.flatten() {
                // A tablespace's folder may hold those of other versions; they are not ours, but
                // one of the same version must go, or the copy would be refused.
                if entry.file_name().to_string_lossy().starts_with("PG_") {
                    files::remove_tree(&entry.path())?;
                }
            }
        }
    }
    files::remove_tree(data_dir)
}

/// `  12345/67890 kB (18%), 0/1 tablespace` is 12345 and 67890 KiB.
fn parse_progress(line: &str) -> Option<Progress> {
    let (numbers, _) = line.trim().split_once(" kB (")?;
    let (done, total) = numbers.split_once('/')?;
    let bytes = |kib: &str| kib.trim().parse::<u64>().ok()?.checked_mul(1024);
    Some(Progress { done_bytes: bytes(done)?, total_bytes: bytes(total).filter(|b| *b > 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read() {
        assert_eq!(
            parse_progress("  100/200 kB (50%), 0/1 tablespace (x)"),
            Some(Progress { done_bytes: 100 << 10, total_bytes: Some(200 << 10) })
        );
        for other in ["", "pg_basebackup: error: x", "waiting for checkpoint"] {
            assert_eq!(parse_progress(other), None, "{other}");
        }
    }
}
