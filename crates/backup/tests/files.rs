//! Directories of files, backed up into each kind of store and brought back.

mod common;

use anyhow::Result;
use common::{Fixture, noise, tree};
use sempre_backup::{Repository, Retention, Secret, SegmentName, VerifyOptions, WalWriter};
use sempre_model::{Lsn, Timeline};
use std::fs;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_backed_up_comes_back_and_only_what_changed_is_stored_again() -> Result<()> {
    Fixture::on_each(comes_back).await
}

async fn comes_back(mut fixture: Fixture) -> Result<()> {
    let mut big = noise(1, 3_000_000);
    fixture.put("PG_VERSION", b"15\n");
    fixture.put("base/5/1", &big);
    fixture.put("base/5/2", &[0; 500_000]);
    fixture.put("base/5/3", b"");
    let first = fixture.back_up().await?;
    assert_eq!((first.stats.files, first.stats.new_bytes), (4, 3_000_003));
    let before = tree(&fixture.data());
    let (target, fetched) = fixture.restore(&first, "a", false).await?;
    assert_eq!((tree(&target), fetched), (before.clone(), 3_000_003));

    big[1_000_000] ^= 1;
    fixture.put("base/5/1", &big);
    fixture.put("base/5/2", &noise(2, 10));
    let second = fixture.back_up().await?;
    assert_eq!(second.parent.as_deref(), Some(first.id.as_str()));
    assert_eq!(second.stats.new_bytes, u64::from(sempre_backup::BLOCK_BYTES) + 10);
    // Over what the first left, only what differs is fetched; what is too much goes.
    fs::write(target.join("base/5/9"), "more")?;
    let (target, fetched) = fixture.restore(&second, "a", true).await?;
    assert_eq!(tree(&target), tree(&fixture.data()));
    assert_eq!(fetched, u64::from(sempre_backup::BLOCK_BYTES) + 10);
    let (target, _) = fixture.restore(&first, "b", false).await?;
    assert_eq!(tree(&target), before, "the first is as it was");
    let error = fixture.restore(&first, "b", false).await.unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_opens_with_its_key_only() -> Result<()> {
    Fixture::on_each(opens_with_its_key).await
}

async fn opens_with_its_key(mut fixture: Fixture) -> Result<()> {
    fixture.put("PG_VERSION", b"the secret of the house\n".repeat(1000).as_slice());
    let backup = fixture.back_up().await?;
    let store = fixture.repository.store.clone();
    let error = Repository::open(store.clone(), &Secret::random()).await.unwrap_err().to_string();
    assert!(error.contains("does not open"), "{error}");
    for (path, content) in tree(&fixture.stored()) {
        let content = content.unwrap_or_default();
        assert!(!content.windows(6).any(|w| w == b"secret"), "{}", path.display());
    }
    // Replaced: the old key opens nothing any more, old objects stay readable.
    let mut repository = Repository::open(store.clone(), &fixture.key).await?;
    let new_key = Secret::random();
    repository.rotate(&fixture.key, &new_key).await?;
    assert!(Repository::open(store.clone(), &fixture.key).await.is_err());
    fixture.repository = Repository::open(store, &new_key).await?;
    fixture.put("base/5/1", b"more");
    let later = fixture.back_up().await?;
    for backup in [backup, later] {
        let (target, _) = fixture.restore(&backup, &backup.id, false).await?;
        assert_eq!(
            fs::read(target.join("PG_VERSION"))?,
            fs::read(fixture.data().join("PG_VERSION"))?
        );
    }
    let error = fixture.repository.expect_cluster("other", 8).unwrap_err().to_string();
    assert!(error.contains("main") && error.contains("other"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_whole_when_the_rest_has_gone() -> Result<()> {
    Fixture::on_each(kept_is_whole).await
}

async fn kept_is_whole(mut fixture: Fixture) -> Result<()> {
    fixture.put("base/5/1", &noise(1, 400_000));
    for day in 0..5 {
        fixture.put("base/5/2", &noise(day + 2, 300_000));
        fixture.back_up().await?;
    }
    let repository = &fixture.repository;
    let policy = Retention { last: 2, ..Retention::default() };
    let plan = repository.plan_retention(&policy, fixture.now).await?;
    assert_eq!(repository.apply_retention(&plan).await?.len(), 3);
    let packs = fixture.keys("packs/").await?.len();
    repository.collect(common::real_now()).await?;
    assert!(fixture.keys("packs/").await?.len() < packs);
    let found = repository.verify(None, VerifyOptions::default(), Default::default()).await?;
    assert_eq!((found.backups, found.damages), (2, vec![]));
    assert_eq!(fixture.check_all().await?.len(), 2);
    Ok(())
}

/// WAL is appended to objects that the store has in parts.
#[tokio::test(flavor = "multi_thread")]
async fn wal_comes_back_from_every_store() -> Result<()> {
    Fixture::on_each(wal_comes_back).await
}

async fn wal_comes_back(fixture: Fixture) -> Result<()> {
    const SEGMENT: u64 = 1 << 20;
    let (repository, timeline) = (fixture.repository.clone(), Timeline(1));
    let mut writer = WalWriter::new(repository.clone(), timeline, Lsn(SEGMENT), SEGMENT)?;
    let wal = noise(9, 2_500_000);
    let mut at = 0;
    for step in [1, 8192, 600_000, 1_000_000, 800_000] {
        writer.write(Lsn(SEGMENT + at as u64), &wal[at..at + step]).await?;
        at += step;
        let end = Lsn(SEGMENT + at as u64);
        assert_eq!(writer.flush().await?, end);
        assert_eq!(repository.wal_end(timeline, Lsn(SEGMENT), SEGMENT).await?, end);
    }
    let list = repository.list_wal().await?;
    assert_eq!(list.whole[&timeline].keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(list.open.iter().map(|name| name.number).collect::<Vec<_>>(), [3]);
    for number in 1..=3 {
        let begin = (number - 1) as usize * SEGMENT as usize;
        let fetched = repository.fetch_segment(SegmentName { timeline, number }, SEGMENT).await?;
        let want = &wal[begin..at.min(begin + SEGMENT as usize)];
        assert!(fetched.unwrap().content.starts_with(want), "segment {number}");
    }
    Ok(())
}
