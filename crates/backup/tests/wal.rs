//! WAL in a repository: whatever was flushed can be read back, wherever the writer died.

use anyhow::Result;
use sempre_backup::{Folder, Identity, Repository, Secret, SegmentName, WalWriter};
use sempre_model::{Lsn, Timeline};
use std::{fs, path::PathBuf, sync::Arc};

const SEGMENT: u64 = 1 << 20;

async fn repository(dir: &tempfile::TempDir) -> Result<Repository> {
    let store = Arc::new(Folder::new(dir.path()));
    Ok(Repository::create(store, &Secret::random(), Identity::new("id", "main", 7, 1)).await?)
}

/// What a server would write at these positions.
fn wal(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(|at| (at.wrapping_mul(0x9E37_79B9) >> 11) as u8).collect()
}

fn pieces(dir: &tempfile::TempDir) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.path().join("open-wal")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.path().is_dir() {
                true => dirs.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}

#[tokio::test]
async fn what_was_flushed_is_read_back_and_a_whole_segment_takes_its_pieces_place() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let repository = repository(&dir).await?;
    let timeline = Timeline(1);
    let mut writer = WalWriter::new(repository.clone(), timeline, Lsn(SEGMENT), SEGMENT)?;
    let mut at = SEGMENT;
    for step in [1, 100, 8192, 500_000, SEGMENT, 10] {
        writer.write(Lsn(at), &wal(at, at + step)).await?;
        at += step;
        assert_eq!(writer.flush().await?, Lsn(at));
        assert_eq!(repository.wal_end(timeline, Lsn(SEGMENT), SEGMENT).await?, Lsn(at));
    }
    assert_eq!(pieces(&dir).len(), 1, "that of the open segment");
    for number in 1..=2 {
        let name = SegmentName { timeline, number };
        let fetched = repository.fetch_segment(name, SEGMENT).await?.unwrap();
        let start = number * SEGMENT;
        let end = at.min(start + SEGMENT);
        assert_eq!(fetched.end, Lsn(end));
        let mut want = wal(start, end);
        want.resize(SEGMENT as usize, 0);
        assert!(fetched.content == want, "segment {number}");
    }
    let error = writer.write(Lsn(at + 1), b"x").await.unwrap_err().to_string();
    assert!(error.contains("was expected"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_piece_cut_anywhere_gives_what_was_whole_and_is_kept_until_the_whole_has_it() -> Result<()>
{
    let dir = tempfile::tempdir()?;
    let repository = repository(&dir).await?;
    let timeline = Timeline(3);
    let mut ends = vec![0];
    let mut writer = WalWriter::new(repository.clone(), timeline, Lsn(0), SEGMENT)?;
    for step in [3, 700, 40, 9000] {
        let end = ends[ends.len() - 1];
        writer.write(Lsn(end), &wal(end, end + step)).await?;
        writer.flush().await?;
        ends.push(end + step);
    }
    drop(writer);
    let file = pieces(&dir).pop().unwrap();
    let whole = fs::read(&file)?;
    for cut in (0..whole.len()).step_by(37).chain([whole.len() - 1, whole.len()]) {
        fs::write(&file, &whole[..cut])?;
        let end = repository.wal_end(timeline, Lsn(0), SEGMENT).await?.0;
        assert!(ends.contains(&end), "cut at {cut} gives {end}");
        assert_eq!(end == 9743, cut == whole.len());
    }
    // A flipped bit is not taken for an end.
    let mut flipped = whole.clone();
    flipped[whole.len() - 20] ^= 4;
    fs::write(&file, &flipped)?;
    assert!(repository.wal_end(timeline, Lsn(0), SEGMENT).await.is_err());
    fs::write(&file, &whole)?;

    // Another writer begins again at the segment's beginning, and gets less far.
    let mut second = WalWriter::new(repository.clone(), timeline, Lsn(0), SEGMENT)?;
    second.write(Lsn(0), &wal(0, 5000)).await?;
    second.flush().await?;
    assert_eq!(repository.wal_end(timeline, Lsn(0), SEGMENT).await?, Lsn(9743));
    second.write(Lsn(5000), &wal(5000, SEGMENT)).await?;
    assert!(pieces(&dir).is_empty(), "all is in the whole");
    assert_eq!(repository.wal_end(timeline, Lsn(0), SEGMENT).await?, Lsn(SEGMENT));

    // Somebody with the same segment and another content is told, and loses nothing.
    let mut other = WalWriter::new(repository.clone(), timeline, Lsn(0), SEGMENT)?;
    other.write(Lsn(0), &wal(1, 10)).await?;
    other.flush().await?;
    let error = other.write(Lsn(9), &wal(9, SEGMENT)).await.unwrap_err().to_string();
    assert!(error.contains("two clusters"), "{error}");
    assert_eq!(pieces(&dir).len(), 1);
    Ok(())
}

#[tokio::test]
async fn histories_are_kept_and_contradictions_are_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let repository = repository(&dir).await?;
    repository.put_history(Timeline(2), "1\t0/3000000\tno recovery target\n").await?;
    repository.put_history(Timeline(2), "1\t0/3000000\tno recovery target\n").await?;
    assert!(repository.put_history(Timeline(2), "1\t0/4000000\tx\n").await.is_err());
    let text = repository.fetch_history(Timeline(2)).await?.unwrap();
    assert!(text.starts_with("1\t0/3000000"));
    assert_eq!(repository.fetch_history(Timeline(3)).await?, None);
    assert!(repository.list_wal().await?.histories.contains(&Timeline(2)));
    Ok(())
}
