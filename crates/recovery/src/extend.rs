//! Bringing a standby that receives from nobody up to the end of a repository: the WAL that it lacks is
//! written into its `pg_wal`, where the server looks for it by itself.

use crate::{Error, Result};
use sempre_backup::{Fetched, Repository, SegmentName, segment_name};
use sempre_model::{Lsn, Timeline};
use sempre_postgres::History;
use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// A position on a timeline.
pub type Position = (Timeline, Lsn);

/// How far the WAL of a timeline goes in a repository; 0 when there is none of it.
pub async fn archived_end(repository: &Repository, timeline: Timeline) -> Result<Lsn> {
    let list = repository.list_wal().await?;
    let open = list.open.iter().filter(|name| name.timeline == timeline).map(|name| name.number);
    let whole = list.whole.get(&timeline).and_then(|whole| whole.keys().next_back().copied());
    let Some(number) = open.chain(whole).max() else { return Ok(Lsn(0)) };
    let segment_bytes = match repository.segment_bytes(&list, timeline).await? {
        Some(bytes) => bytes,
        None => repository.backup("latest").await?.wal_segment_bytes,
    };
    let name = SegmentName { timeline, number };
    let fetched = repository.fetch_segment(name, segment_bytes).await?;
    Ok(fetched.map_or(name.start(segment_bytes), |fetched| fetched.end))
}

/// Writes what lies between two positions into `pg_wal`, durably. What is there before `have` must be
/// the same, or nothing is written: then the server's WAL is another one.
pub async fn extend_wal(
    repository: &Repository,
    wal_dir: &Path,
    segment_bytes: u64,
    have: Position,
    to: Position,
) -> Result<History> {
    let history = archived_history(repository, to.0).await?;
    match history.end_of(have.0) {
        Some(end) if have.1 <= end => {}
        _ => {
            return Err(Error::Diverged { have: have.1, timeline: have.0, of: to.0 });
        }
    }
    let newer = history.ancestors.iter().map(|(timeline, _)| *timeline).chain([to.0]);
    for timeline in newer.filter(|timeline| *timeline > have.0) {
        if let Some(text) = repository.fetch_history(timeline).await? {
            let path = wal_dir.join(format!("{:08X}.history", timeline.0));
            put_whole(&path, text.as_bytes())?;
        }
    }
    for number in have.1.0 / segment_bytes..to.1.0.div_ceil(segment_bytes) {
        let timeline = timeline_of(&history, number, segment_bytes);
        let name = SegmentName { timeline, number };
        let end = to.1.min(Lsn((number + 1) * segment_bytes));
        let fetched = repository.fetch_segment(name, segment_bytes).await?;
        let Some(fetched) = fetched.filter(|fetched| fetched.end >= end) else {
            return Err(Error::WalMissing { name: segment_name(name, segment_bytes), end });
        };
        let (path, start) =
            (wal_dir.join(segment_name(name, segment_bytes)), name.start(segment_bytes));
        let known = if timeline == have.0 { have.1.0.saturating_sub(start.0) } else { 0 };
        let task = tokio::task::spawn_blocking(move || {
            write_segment(&path, &fetched, known, end.0 - start.0)
        });
        task.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))?;
    }
    sync_dir(wal_dir)?;
    Ok(history)
}

/// The history of a timeline, as the repository has it.
pub async fn archived_history(repository: &Repository, timeline: Timeline) -> Result<History> {
    if timeline.0 <= 1 {
        return Ok(History::first());
    }
    let text = repository.fetch_history(timeline).await?;
    let text = text.ok_or_else(|| {
        Error::Unreachable(format!("the history of timeline {timeline} is not in the repository"))
    })?;
    Ok(History::parse(timeline, &text)?)
}

/// Where PostgreSQL looks for a segment: in the newest timeline that has begun there.
fn timeline_of(history: &History, number: u64, segment_bytes: u64) -> Timeline {
    let begins = history.ancestors.iter().map(|(_, end)| end.0 / segment_bytes <= number);
    let begun = begins.take_while(|begun| *begun).count();
    history.ancestors.get(begun).map_or(history.timeline, |(timeline, _)| *timeline)
}

/// Writes a segment up to `end` (within it). Its first `known` bytes are the server's own, and are
/// compared.
fn write_segment(path: &Path, fetched: &Fetched, known: u64, end: u64) -> Result<()> {
    let (known, end) = (as_usize(known), as_usize(end));
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && known == 0 => {
            return put_whole(path, &fetched.content);
        }
        file => file.map_err(Error::io("open", path))?,
    };
    let mut own = vec![0; known.min(end)];
    file.read_exact_at(&mut own, 0).map_err(Error::io("read", path))?;
    if own != fetched.content[..own.len()] {
        return Err(Error::OtherWal { path: path.to_owned() });
    }
    if known < end {
        file.write_all_at(&fetched.content[known..end], known as u64)
            .map_err(Error::io("write", path))?;
    }
    file.sync_all().map_err(Error::io("sync", path))
}

/// A file that is there whole, or not at all.
fn put_whole(path: &Path, content: &[u8]) -> Result<()> {
    let unfinished = PathBuf::from(format!("{}.sempre", path.display()));
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
    let written = file.and_then(|file| {
        file.write_all_at(content, 0)?;
        file.sync_all()
    });
    written.map_err(Error::io("write", &unfinished))?;
    fs::rename(&unfinished, path).map_err(Error::io("rename", path))
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

fn as_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;

    #[test]
    fn a_segment_is_looked_for_in_the_newest_timeline_that_has_begun_there() {
        let history = History {
            timeline: Timeline(5),
            ancestors: vec![(Timeline(1), Lsn(3 * SEGMENT + 7)), (Timeline(4), Lsn(5 * SEGMENT))],
        };
        let found: Vec<u32> = (0..7).map(|n| timeline_of(&history, n, SEGMENT).0).collect();
        assert_eq!(found, [1, 1, 1, 4, 4, 5, 5]);
    }

    #[test]
    fn what_is_there_is_kept_and_must_be_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000000010000000000000001");
        let content: Vec<u8> = (0..64u8).collect();
        let fetched = Fetched { content: content.clone(), end: Lsn(64) };
        write_segment(&path, &fetched, 0, 40).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content, "a new one is whole");
        let mut old = content.clone();
        old[30..].fill(0xEE);
        fs::write(&path, &old).unwrap();
        write_segment(&path, &fetched, 30, 40).unwrap();
        let now = fs::read(&path).unwrap();
        assert_eq!(now[..40], content[..40]);
        assert!(now[40..].iter().all(|b| *b == 0xEE), "nothing beyond the end is touched");
        let error = write_segment(&path, &fetched, 45, 60).unwrap_err();
        assert!(matches!(error, Error::OtherWal { .. }), "{error}");
        assert!(write_segment(&dir.path().join("gone"), &fetched, 1, 60).is_err());
    }
}
