//! WAL for a server that recovers: it asks by its `restore_command`, through files in a folder; a task of
//! ours answers, and fetches ahead what it will ask for next.
//!
//! The command makes `NAME.wanted` and waits for `NAME` or `NAME.absent`. There are no sockets, and nobody
//! has to parse anything; whoever dies leaves only files.

use crate::{Error, Result};
use sempre_backup::{Repository, SegmentName, segment_name};
use sempre_model::Timeline;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Segments fetched ahead.
const AHEAD: u64 = 4;
/// A standby has replayed all there is when it has asked so often for the same segment.
const ASKS_AT_END: u32 = 5;
/// Says which process answers.
const OWNER: &str = "answered-by";
/// How often both sides look.
const POLL: Duration = Duration::from_millis(3);
/// A command whose answer does not come gives up after this time: nobody serves any more.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

/// Serves a recovering server from a folder.
pub(crate) struct Spool {
    dir: PathBuf,
    repository: Repository,
    segment_bytes: u64,
    /// What is being fetched: its name, and whether there is such a thing.
    fetching: JoinSet<(String, Result<bool>)>,
    in_flight: BTreeSet<String>,
    /// Somebody waits for these: if there is no such thing, it is told.
    asked: BTreeSet<String>,
    /// Asked for once more while it was on its way: what came may have been for who asked before.
    again: BTreeSet<String>,
    /// From this segment on it is counted how often a server asks.
    last: Option<u64>,
    asks: BTreeMap<String, u32>,
}

impl Spool {
    pub(crate) fn new(dir: &Path, repository: Repository, segment_bytes: u64) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io("make", dir))?;
        put(dir, OWNER, std::process::id().to_string().as_bytes())?;
        Ok(Self {
            dir: dir.to_owned(),
            repository,
            segment_bytes,
            fetching: JoinSet::new(),
            in_flight: BTreeSet::new(),
            asked: BTreeSet::new(),
            again: BTreeSet::new(),
            last: None,
            asks: BTreeMap::new(),
        })
    }

    /// Answers until dropped. An error of the repository ends it: an answer that something is not
    /// there would end the recovery early, as if all were well.
    pub(crate) async fn serve(&mut self) -> Result<std::convert::Infallible> {
        loop {
            self.round()?;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Answers until a standby has replayed all there is: it asks again and again for the segment
    /// `last`, or one behind it. (It asks ahead as well, but a second time only when everything before
    /// is replayed.)
    pub(crate) async fn serve_to_end(&mut self, last: u64) -> Result<()> {
        self.last = Some(last);
        while self.asks.values().all(|asks| *asks < ASKS_AT_END) {
            self.round()?;
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn round(&mut self) -> Result<()> {
        for wanted in self.wanted()? {
            let asked = self.dir.join(format!("{wanted}.wanted"));
            fs::remove_file(&asked).map_err(Error::io("remove", &asked))?;
            let segment = SegmentName::parse(&wanted, self.segment_bytes);
            if segment.is_some_and(|s| self.last.is_some_and(|last| s.number >= last)) {
                *self.asks.entry(wanted.clone()).or_default() += 1;
            }
            self.answer(wanted);
        }
        while let Some(done) = self.fetching.try_join_next() {
            let (name, found) = done.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()));
            self.in_flight.remove(&name);
            let again = self.again.remove(&name);
            if !found? {
                if self.asked.remove(&name) {
                    put(&self.dir, &format!("{name}.absent"), b"")?;
                }
            } else if again {
                self.fetch(name);
            }
        }
        Ok(())
    }

    fn wanted(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|n| Some(n.strip_suffix(".wanted")?.to_owned())).collect())
    }

    fn answer(&mut self, wanted: String) {
        let segment = SegmentName::parse(&wanted, self.segment_bytes);
        self.asked.insert(wanted.clone());
        if self.in_flight.contains(&wanted) {
            self.again.insert(wanted.clone());
        }
        self.fetch(wanted);
        if let Some(segment) = segment {
            for number in segment.number + 1..=segment.number + AHEAD {
                self.fetch(segment_name(SegmentName { number, ..segment }, self.segment_bytes));
            }
        }
    }

    /// Fetches a file, unless it is there or on its way.
    fn fetch(&mut self, name: String) {
        if self.dir.join(&name).exists() || !self.in_flight.insert(name.clone()) {
            return;
        }
        let (repository, dir) = (self.repository.clone(), self.dir.clone());
        let segment_bytes = self.segment_bytes;
        self.fetching.spawn(async move {
            let found = fetch(&repository, &dir, &name, segment_bytes).await;
            (name, found)
        });
    }
}

/// Segments and histories. Anything else a server asks for (`.partial`, `.backup`) is not there.
async fn fetch(
    repository: &Repository,
    dir: &Path,
    name: &str,
    segment_bytes: u64,
) -> Result<bool> {
    let history = name.strip_suffix(".history").and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let content = if let Some(segment) = SegmentName::parse(name, segment_bytes) {
        repository.fetch_segment(segment, segment_bytes).await?.map(|fetched| fetched.content)
    } else if let Some(timeline) = history {
        repository.fetch_history(Timeline(timeline)).await?.map(String::into_bytes)
    } else {
        None
    };
    match content {
        Some(content) => put(dir, name, &content).map(|()| true),
        None => Ok(false),
    }
}

fn put(dir: &Path, file: &str, content: &[u8]) -> Result<()> {
    let (unfinished, path) = (dir.join(format!("{file}.tmp")), dir.join(file));
    fs::write(&unfinished, content).map_err(Error::io("write", &unfinished))?;
    fs::rename(&unfinished, &path).map_err(Error::io("put in place", &path))
}

fn is_answered(spool: &Path) -> bool {
    let owner = fs::read_to_string(spool.join(OWNER));
    owner.is_ok_and(|pid| Path::new("/proc").join(pid).exists())
}

/// `restore_command`: brings `file` to `target`. False if there is none.
pub fn serve_segment(spool: &Path, file: &str, target: &Path) -> io::Result<bool> {
    let (ready, absent) = (spool.join(file), spool.join(format!("{file}.absent")));
    let _ = fs::remove_file(&absent);
    fs::write(spool.join(format!("{file}.wanted")), b"")?;
    let began = Instant::now();
    loop {
        if ready.exists() {
            match fs::rename(&ready, target) {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    fs::copy(&ready, target)?;
                    fs::remove_file(&ready)?;
                }
                renamed => renamed?,
            }
            return Ok(true);
        }
        if fs::remove_file(&absent).is_ok() {
            return Ok(false);
        }
        // A server without its restore must not go on as if there were no more WAL.
        if began.elapsed() > ANSWER_WITHIN || !is_answered(spool) {
            return Err(io::Error::other("nobody answers: the restore has ended"));
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sempre_backup::{Folder, Identity, Secret, WalWriter};
    use sempre_model::Lsn;
    use std::sync::Arc;

    /// A server that takes a segment and asks for it again before the first answer was noticed.
    #[tokio::test]
    async fn who_asks_again_at_once_is_answered_again() {
        const SEGMENT: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Folder::new(dir.path().join("repository")));
        let identity = Identity::new("id", "main", 7, 1);
        let repository = Repository::create(store, &Secret::random(), identity).await.unwrap();
        let timeline = Timeline(1);
        let mut writer =
            WalWriter::new(repository.clone(), timeline, Lsn(SEGMENT), SEGMENT).unwrap();
        writer.write(Lsn(SEGMENT), &[7; 1000]).await.unwrap();
        writer.flush().await.unwrap();
        let folder = dir.path().join("spool");
        let mut spool = Spool::new(&folder, repository, SEGMENT).unwrap();
        let name = segment_name(SegmentName { timeline, number: 1 }, SEGMENT);
        let (ready, wanted) = (folder.join(&name), folder.join(format!("{name}.wanted")));
        fs::write(&wanted, b"").unwrap();
        spool.round().unwrap();
        while !ready.exists() {
            tokio::time::sleep(POLL).await;
        }
        fs::remove_file(&ready).unwrap();
        fs::write(&wanted, b"").unwrap();
        let answered = async {
            while !ready.exists() {
                spool.round().unwrap();
                tokio::time::sleep(POLL).await;
            }
        };
        let answered = tokio::time::timeout(Duration::from_secs(60), answered).await;
        assert!(answered.is_ok(), "nobody answered");
    }
}
