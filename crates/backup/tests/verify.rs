//! Whatever happens to any one object is found, never gives a wrong restore, and harms only what uses it.

mod common;

use anyhow::{Result, ensure};
use common::{Fixture, noise, real_now};
use sempre_backup::{Backup, LEASE, Progress, Repository, Verified, VerifyOptions};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

async fn verify(repository: &Repository) -> sempre_backup::Result<Verified> {
    repository.verify(None, VerifyOptions::default(), Arc::default()).await
}

/// Three backups that share blocks, one with an owner that is gone; a hold; a writer at work, and one
/// that was given up.
async fn house() -> Result<(Fixture, sempre_backup::Writer)> {
    let mut fixture = Fixture::quick().await?;
    for (file, seed) in [("1", 1), ("2", 2), ("3", 3)] {
        fixture.put(&format!("base/5/{file}"), &noise(seed, 300_000));
    }
    let mut backups = Vec::new();
    for seed in 4..8 {
        fixture.put("base/5/2", &noise(seed, 300_000));
        fixture.put(&format!("base/5/new{seed}"), &noise(seed + 100, 20_000));
        backups.push(fixture.back_up().await?);
    }
    drop(fixture.announce().await?);
    fixture.repository.collect(real_now() + 2 * LEASE.as_millis() as u64).await?;
    fixture.repository.forget(&backups[0].id).await?;
    fixture.repository.collect(real_now()).await?;
    fixture.repository.hold(&backups[1].id, "a lawsuit").await?;
    let at_work = fixture.announce().await?;
    Ok((fixture, at_work))
}

/// What becomes of the bytes of an object; none: it is deleted.
fn fates(object: &[u8], other: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let length = object.len();
    let mut fates = vec![("deleted".to_owned(), None), ("emptied".to_owned(), Some(Vec::new()))];
    for at in [0, 5, 6, 9, 20, 44, 46, 48, 60, length / 3, length / 2, length - 1] {
        if at < length {
            let mut flipped = object.to_vec();
            flipped[at] ^= 0x10;
            fates.push((format!("flipped at {at}"), Some(flipped)));
            fates.push((format!("cut at {at}"), Some(object[..at].to_vec())));
        }
    }
    // Behind a whole frame, what is left looks whole.
    if let Some(bytes) = object.get(44..48) {
        let frame = 48 + u32::from_le_bytes(bytes.try_into().unwrap()) as usize;
        if frame < length {
            fates.push(("cut behind a frame".to_owned(), Some(object[..frame].to_vec())));
        }
        fates.push(("cut behind the header".to_owned(), Some(object[..44].to_vec())));
    }
    fates.push(("longer".to_owned(), Some([object, b"more"].concat())));
    fates.push(("another".to_owned(), Some(other.to_vec())));
    fates
}

/// What may be lost without anybody missing it: that a backup was held, that a writer was given up, that
/// one is at work. (A forgotten one without its mark is only there again.)
fn is_not_missed(key: &str, unpublished: &[String]) -> bool {
    key.starts_with("marks/") || unpublished.iter().any(|id| key.contains(id))
}

/// Can it be restored, and if so, to what it was?
async fn restores(fixture: &Fixture, repository: &Repository, backup: &Backup) -> Result<bool> {
    let to = tempfile::tempdir_in(fixture.dir.path())?;
    let done = repository.restore_files(backup, to.path(), Default::default(), Arc::default());
    if done.await.is_err() {
        return Ok(false);
    }
    let right = fixture.expected[&backup.id] == common::tree(to.path());
    ensure!(right, "{} came back as something else", backup.id);
    Ok(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_any_object_is_found_and_harms_only_what_uses_it() -> Result<()> {
    let (fixture, _at_work) = house().await?;
    let clean = verify(&fixture.repository).await?;
    assert_eq!((clean.backups, clean.damages.len()), (3, 0), "{:?}", clean.damages);
    let backups = fixture.repository.backups().await?;
    let root = fixture.dir.path().join("repository");
    let keys = fixture.keys("").await?;
    let is_published = |id: &str| backups.iter().any(|b| b.id == id);
    let owners =
        keys.iter().filter_map(|k| k.strip_prefix("writers/").or(k.strip_prefix("backups/")));
    let owners = owners.map(|rest| rest.split('/').next().unwrap().to_owned());
    let unpublished: Vec<String> = owners.filter(|id| !is_published(id)).collect();
    assert_eq!(unpublished.len(), 2);
    let (mut tried, mut partly) = (0, 0);
    for (number, key) in keys.iter().enumerate() {
        let path = root.join(key);
        let object = fs::read(&path)?;
        let other = fs::read(root.join(&keys[(number + 1) % keys.len()]))?;
        for (fate, content) in fates(&object, &other) {
            let case = format!("{key} {fate}");
            match &content {
                Some(content) => fs::write(&path, content)?,
                None => fs::remove_file(&path)?,
            }
            tried += 1;
            match Repository::open(fixture.repository.store.clone(), &fixture.key).await {
                Err(error) => {
                    let opens_with = ["repository", "identity"].contains(&key.as_str());
                    assert!(opens_with || key.starts_with("keys/"), "{case}: {error}");
                }
                Ok(repository) => {
                    let found = verify(&repository).await?;
                    let silent = content.is_none() && is_not_missed(key, &unpublished);
                    // Its bytes are in clear, and say only that there is a repository.
                    let silent = silent || key == "repository";
                    let named = found.damages.iter().any(|damage| damage.key == *key);
                    assert!(named || silent, "{case}: not found in {:?}", found.damages);
                    partly +=
                        usize::from(check(&fixture, &repository, &backups, &found, &case).await?);
                }
            }
            fs::write(&path, &object)?;
        }
    }
    assert!(tried > 300 && partly > 50, "{tried} {partly}");
    assert_eq!(verify(&fixture.repository).await?.damages, []);
    Ok(())
}

/// Those that are harmed do not restore, all others do. Was there one of each?
async fn check(
    fixture: &Fixture,
    repository: &Repository,
    backups: &[Backup],
    found: &Verified,
    case: &str,
) -> Result<bool> {
    let offered = repository.backups().await?;
    let (mut good, mut bad) = (0, 0);
    for backup in backups {
        let harms = found.damages.iter().flat_map(|damage| &damage.harms);
        let harm = harms.filter(|harm| harm.backup == backup.id).count();
        let whole = offered.contains(backup) && restores(fixture, repository, backup).await?;
        assert_eq!(whole, harm == 0, "{case}: {} in {:?}", backup.id, found.damages);
        let alone = repository.verify(Some(&backup.id), VerifyOptions::default(), Arc::default());
        match alone.await {
            Ok(alone) => {
                let harmed = alone.damages.iter().any(|damage| !damage.harms.is_empty());
                assert_eq!(whole, !harmed, "{case}: {} alone", backup.id);
            }
            Err(error) => assert!(!whole, "{case}: {} alone: {error}", backup.id),
        }
        good += usize::from(whole);
        bad += usize::from(!whole);
    }
    Ok(good > 0 && bad > 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn harm_is_counted_in_files_and_few_places_in_memory_say_the_same() -> Result<()> {
    let (fixture, _at_work) = house().await?;
    let root = fixture.dir.path().join("repository");
    for key in fixture.keys("packs/").await? {
        let path = root.join(&key);
        let object = fs::read(&path)?;
        fs::write(&path, [&object[..200], b"x", &object[201..]].concat())?;
    }
    let first = fixture.keys("packs/").await?.remove(0);
    fs::remove_file(root.join(&first))?;
    let all = verify(&fixture.repository).await?;
    for places_max in [1, 2, 3, 7] {
        let options = VerifyOptions { packs_at_once: 3, places_max };
        let few = fixture.repository.verify(None, options, Arc::default()).await?;
        assert_eq!(few, all, "{places_max}");
    }
    assert_eq!(all.damages.len(), fixture.keys("packs/").await?.len() + 1);
    let restorable = fixture.repository.backups().await?;
    for damage in all.damages {
        for harm in damage.harms {
            let backup = restorable.iter().find(|b| b.id == harm.backup).unwrap();
            let files = harm.files.unwrap();
            assert!((1..backup.stats.files).contains(&files), "{files} files");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reads_each_pack_once_writes_nothing_tells_how_far_it_is_and_can_be_stopped()
-> Result<()> {
    let (fixture, _at_work) = house().await?;
    let before = content(&fixture.dir.path().join("repository"));
    let progress = Arc::new(Progress::default());
    let options = VerifyOptions::default();
    let found = fixture.repository.verify(None, options, progress.clone()).await?;
    assert_eq!(content(&fixture.dir.path().join("repository")), before);
    let packs = fixture.repository.store.list("packs/").await?;
    let bytes: u64 = packs.iter().map(|listed| listed.bytes).sum();
    let snapshot = progress.snapshot();
    assert_eq!((snapshot.done_bytes, snapshot.total_bytes, found.bytes), (bytes, bytes, bytes));
    progress.cancel();
    assert!(fixture.repository.verify(None, options, progress).await.is_err());
    Ok(())
}

fn content(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    common::tree(root)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_description_is_not_garbage_and_is_put_back() -> Result<()> {
    let (fixture, _at_work) = house().await?;
    let newest = fixture.repository.backup("latest").await?;
    let root = fixture.dir.path().join("repository");
    for damage in [None, Some("garbage")] {
        let description = root.join(format!("backups/{}", newest.id));
        let copy = root.join(format!("writers/{}/published", newest.id));
        for path in [description, copy] {
            match damage {
                None => fs::remove_file(&path)?,
                Some(garbage) => fs::write(&path, garbage)?,
            }
            assert!(!verify(&fixture.repository).await?.damages.is_empty());
            let packs = fixture.keys("packs/").await?;
            fixture.repository.collect(real_now() + 2 * LEASE.as_millis() as u64).await?;
            assert_eq!(fixture.keys("packs/").await?, packs, "nobody takes it for given up");
            assert_eq!(fixture.repository.repair_descriptions().await?.len(), 1);
            assert_eq!(verify(&fixture.repository).await?.damages, []);
            fixture.check(&newest).await?;
        }
    }
    assert!(fixture.repository.repair_descriptions().await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_one_description_keeps_no_new_backup_from_being_made() -> Result<()> {
    let (mut fixture, _at_work) = house().await?;
    let newest = fixture.repository.backup("latest").await?;
    let root = fixture.dir.path().join("repository");
    fs::write(root.join(format!("backups/{}", newest.id)), "garbage")?;
    let next = fixture.back_up().await?;
    assert_ne!(next.parent, Some(newest.id.clone()));
    fixture.check(&next).await?;
    let error = fixture.repository.backup(&newest.id).await.unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    // Nor does a list of files of the parent's that cannot be read: what it has is stored again.
    fs::write(root.join(format!("segments/{}/000000", next.id)), "garbage")?;
    let last = fixture.back_up().await?;
    assert_eq!(last.parent, Some(next.id));
    fixture.check(&last).await?;
    assert_eq!(last.stats.new_bytes, last.stats.bytes);
    Ok(())
}
