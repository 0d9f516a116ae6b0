//! An attempt that died is gone on with, and what it stored is not stored again; whatever else happens.

mod common;

use anyhow::Result;
use common::{Fixture, described, noise, tree, wrapped::Wrapped};
use sempre_backup::{
    Backup, Error, LEASE, Options, Repository, VerifyOptions, Writer, Writing, list,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const OWNER: Option<&str> = Some("the house/a");

fn options() -> Options {
    Options { save_every: Duration::ZERO, ..Options::default() }
}

/// An attempt that has copied all files, and is yet to publish.
async fn attempt(
    repository: &Repository,
    fixture: &Fixture,
) -> sempre_backup::Result<(Writing, Backup)> {
    let writer = Writer::announce_of(repository, fixture.now, true, OWNER).await?;
    let parent = writer.parent().map(|parent| parent.id.clone());
    let mut writing = Writing::begin(writer, options(), Arc::default());
    let sorted_segments = writing.copy(list(&fixture.data())?).await?;
    let (id, stats) = (writing.id().to_owned(), writing.stats());
    Ok((writing, Backup { sorted_segments, ..described(id, parent, fixture.now, stats) }))
}

/// A backup of old; then an attempt that stored three files of four, and died.
async fn with_dead_attempt() -> Result<(Fixture, Writing, Backup)> {
    let mut fixture = Fixture::quick().await?;
    fixture.put("base/5/1", &noise(1, 300_000));
    fixture.back_up().await?;
    for n in 2..5 {
        fixture.put(&format!("base/5/{n}"), &noise(n, 400_000));
    }
    fixture.now += 1000;
    let (dead, described) = attempt(&fixture.repository, &fixture).await?;
    arrived(&fixture, &dead).await?;
    fixture.put("base/5/5", &noise(5, 400_000));
    fixture.now += 1000;
    Ok((fixture, dead, described))
}

async fn sound(fixture: &Fixture) -> Result<usize> {
    let found = fixture.repository.verify(None, VerifyOptions::default(), Arc::default()).await?;
    assert_eq!(found.damages, []);
    Ok(fixture.check_all().await?.len())
}

/// Waits until everything that it has put on its way is in the repository.
async fn arrived(fixture: &Fixture, writing: &Writing) -> Result<()> {
    let ends = Instant::now() + Duration::from_secs(60);
    loop {
        let mut there = 0;
        for prefix in ["packs", "segments"] {
            let prefix = format!("{prefix}/{}/", writing.id());
            let listed = fixture.repository.store.list(&prefix).await?;
            there += listed.iter().map(|listed| listed.bytes).sum::<u64>();
        }
        if there >= writing.stats().stored_bytes {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < ends, "{there} bytes of {:?}", writing.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_attempt_stored_is_not_stored_again() -> Result<()> {
    let (mut fixture, dead, described) = with_dead_attempt().await?;
    // Others store all of it again: it may be alive, for all they know.
    let other = fixture.repository.clone();
    let other = Writer::announce_of(&other, fixture.now, true, Some("the house/b")).await?;
    drop(other);
    // The second one dies as well, having stored the fourth file.
    let (second, _) = attempt(&fixture.repository, &fixture).await?;
    let stats = second.stats();
    assert_eq!((stats.new_bytes, stats.adopted_bytes), (1_600_000, 1_200_000));
    arrived(&fixture, &second).await?;
    drop(second);
    fixture.put("base/5/3", &noise(33, 400_000));
    fixture.now += 1000;
    let (third, backup) = attempt(&fixture.repository, &fixture).await?;
    let stats = third.stats();
    assert_eq!((stats.new_bytes, stats.adopted_bytes), (1_600_000, 1_200_000));
    assert!(stats.stored_bytes < 500_000, "{stats:?}");
    let published = third.publish(backup).await?;
    fixture.expected.insert(published.id, tree(&fixture.data()));
    // The first was only paused.
    let late = dead.publish(described).await;
    assert!(matches!(late, Err(Error::Revoked { .. })), "{late:?}");
    assert_eq!(sound(&fixture).await?, 2);
    fixture.repository.collect(common::real_now()).await?;
    let much_later = common::real_now() + 3 * LEASE.as_millis() as u64;
    fixture.repository.collect(much_later).await?;
    assert_eq!(sound(&fixture).await?, 2);
    // Its own successors need nothing of the dead; forgotten, all of it goes.
    for n in 1..6 {
        fixture.put(&format!("base/5/{n}"), &noise(n + 50, 100_000));
    }
    let last = fixture.back_up().await?;
    for backup in fixture.repository.backups().await? {
        if backup.id != last.id {
            fixture.repository.forget(&backup.id).await?;
        }
    }
    fixture.repository.collect(much_later).await?;
    fixture.repository.collect(much_later).await?;
    assert_eq!(sound(&fixture).await?, 1);
    let packs = fixture.keys("packs/").await?;
    assert!(packs.iter().all(|pack| pack.contains(&last.id)), "{packs:?}");
    Ok(())
}

/// Before each call of the next attempt everything is collected, after the dead one was silent for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_at_any_point_of_taking_over_harms_nothing() -> Result<()> {
    let (mut taken_over, mut at) = (0, 0);
    loop {
        let (mut fixture, dead, described) = with_dead_attempt().await?;
        let collects = fixture.repository.clone();
        let wrapped = Wrapped::before(fixture.repository.store.clone(), at, async move {
            // The next attempt is not silent for so long: its signs of life are of now.
            let soon = common::real_now() + LEASE.as_millis() as u64 + 60_000;
            collects.collect(soon).await.unwrap();
        });
        let through = fixture.through(wrapped.clone()).await?;
        let next = async {
            let (writing, backup) = attempt(&through, &fixture).await?;
            let adopted = writing.stats().adopted_bytes;
            writing.publish(backup).await.map(|backup| (backup, adopted))
        };
        match next.await {
            Ok((backup, adopted)) => {
                taken_over += adopted;
                fixture.expected.insert(backup.id, tree(&fixture.data()));
            }
            // It was given up together with the dead one.
            Err(Error::Revoked { .. } | Error::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        assert!(dead.publish(described).await.is_err() || wrapped.calls() <= at, "call {at}");
        assert!(sound(&fixture).await? >= 1, "call {at}");
        if wrapped.calls() <= at {
            break;
        }
        at += 1;
    }
    assert!(at > 10 && taken_over > 0, "{at} calls, {taken_over} bytes");
    Ok(())
}

/// Before each call of a collection the next attempt begins and copies; it publishes after it.
#[tokio::test(flavor = "multi_thread")]
async fn taking_over_at_any_point_of_a_collection_harms_nothing() -> Result<()> {
    let (mut taken_over, mut at) = (0, 0);
    loop {
        let (mut fixture, dead, _) = with_dead_attempt().await?;
        drop(dead);
        let (tell, told) = tokio::sync::oneshot::channel();
        let (repository, now, data) = (fixture.repository.clone(), fixture.now, fixture.data());
        let wrapped = Wrapped::before(fixture.repository.store.clone(), at, async move {
            let begun = async {
                let writer = Writer::announce_of(&repository, now, true, OWNER).await?;
                let parent = writer.parent().map(|parent| parent.id.clone());
                let mut writing = Writing::begin(writer, options(), Arc::default());
                let sorted_segments = writing.copy(list(&data)?).await?;
                let (id, stats) = (writing.id().to_owned(), writing.stats());
                let backup = Backup { sorted_segments, ..described(id, parent, now, stats) };
                Ok::<_, Error>((writing, backup))
            };
            let _ = tell.send(begun.await);
        });
        let through = fixture.through(wrapped.clone()).await?;
        // The dead one has been silent for long; the next one, which begins now, has been as well.
        through.collect(common::real_now() + LEASE.as_millis() as u64 + 60_000).await?;
        if wrapped.calls() <= at {
            break;
        }
        let (writing, backup) = told.await??;
        taken_over += writing.stats().adopted_bytes;
        match writing.publish(backup).await {
            Ok(backup) => drop(fixture.expected.insert(backup.id, tree(&fixture.data()))),
            Err(Error::Revoked { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        assert!(sound(&fixture).await? >= 1, "call {at}");
        at += 1;
    }
    assert!(at > 8 && taken_over > 0, "{at} calls, {taken_over} bytes");
    Ok(())
}
