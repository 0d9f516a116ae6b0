//! Garbage is collected beside writers, other collections and crashes, at every point in between.

mod common;

use anyhow::Result;
use bytes::Bytes;
use common::{Fixture, copy, noise, real_now, wrapped::Wrapped, write};
use sempre_backup::{Backup, Error, LEASE, Repository, Writer};
use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

/// Longer than the lease, ms.
fn long_after() -> u64 {
    real_now() + LEASE.as_millis() as u64 + 60_000
}

fn change(fixture: &Fixture, seed: u64) {
    fixture.put("base/5/2", &noise(seed, 200_000));
}

/// Two backups; the second uses blocks of the first.
async fn two() -> Result<(Fixture, Backup, Backup)> {
    let mut fixture = Fixture::quick().await?;
    fixture.put("base/5/1", &noise(1, 300_000));
    change(&fixture, 2);
    let first = fixture.back_up().await?;
    change(&fixture, 3);
    let second = fixture.back_up().await?;
    assert_eq!(second.parent.as_ref(), Some(&first.id));
    Ok((fixture, first, second))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_backup_goes_with_what_it_alone_uses() -> Result<()> {
    let (fixture, first, second) = two().await?;
    let repository = &fixture.repository;
    assert_eq!(repository.collect(real_now()).await?.all().count(), 0, "nothing to do");
    repository.forget(&first.id).await?;
    let before = fixture.keys("").await?;
    let plan = repository.plan_collection(real_now()).await?;
    assert_eq!(fixture.keys("").await?, before, "looking changes nothing");
    assert!(plan.bytes() > 0 && plan.blocked.is_empty() && plan.revoke.is_empty());
    assert_eq!(repository.collect(real_now()).await?, plan, "what was shown is what goes");
    assert_eq!(fixture.check_all().await?, [second.id.as_str()]);
    for prefix in ["segments/", "writers/", "backups/", "marks/"] {
        assert!(fixture.keys(&format!("{prefix}{}/", first.id)).await?.is_empty(), "{prefix}");
    }
    assert!(!fixture.keys("backups/").await?.contains(&format!("backups/{}", first.id)));
    let packs = fixture.keys("packs/").await?;
    assert!(packs.iter().any(|key| key.contains(&first.id)), "the second uses it: {packs:?}");
    assert_eq!(repository.collect(real_now()).await?.all().count(), 0, "all at once");

    repository.forget(&second.id).await?;
    repository.collect(long_after()).await?;
    assert_eq!(fixture.keys("").await?, ["identity", &before_key(&before), "repository"]);
    Ok(())
}

fn before_key(keys: &[String]) -> String {
    keys.iter().find(|key| key.starts_with("keys/")).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_backup_stays_even_if_it_was_forgotten_at_the_same_moment() -> Result<()> {
    // Before each call of `forget` the hold is set, and the other way round.
    for forget_first in [true, false] {
        for at in 0.. {
            let (fixture, first, _) = two().await?;
            let (repository, id) = (fixture.repository.clone(), first.id.clone());
            let other = Arc::new(Mutex::new(None));
            let wrapped = Wrapped::before(fixture.repository.store.clone(), at, {
                let (other, id) = (other.clone(), id.clone());
                async move {
                    let done = match forget_first {
                        true => repository.hold(&id, "a lawsuit").await,
                        false => repository.forget(&id).await,
                    };
                    let _ = repository.collect(real_now()).await;
                    *other.lock().unwrap() = Some(done);
                }
            });
            let through = fixture.through(wrapped.clone()).await?;
            let done = match forget_first {
                true => through.forget(&id).await,
                false => through.hold(&id, "a lawsuit").await,
            };
            let ran = wrapped.calls() > at;
            let other = other.lock().unwrap().take();
            let (forgotten, held) = match forget_first {
                true => (done, other.unwrap_or(Ok(()))),
                false => (other.unwrap_or(Ok(())), done),
            };
            fixture.repository.collect(real_now()).await?;
            let there = fixture.check_all().await?.contains(&id);
            if ran {
                assert!(there || held.is_err(), "held, and gone (call {at})");
                assert!(forgotten.is_ok() || held.is_ok() || there, "neither, and gone");
                assert!(forgotten.is_err() || held.is_err(), "one of both is told (call {at})");
            } else {
                break;
            }
        }
    }
    Ok(())
}

/// Runs `during` before each call of a collection in turn, on a new repository each time.
async fn at_every_point<S, W>(
    forget_before: bool,
    late: bool,
    setup: impl AsyncFn(&mut Fixture) -> Result<S>,
    during: impl Fn(Repository, S, &Path, u64) -> W,
    check: impl AsyncFn(&Fixture, Vec<sempre_backup::Result<Backup>>) -> Result<()>,
) -> Result<()>
where
    W: Future<Output = sempre_backup::Result<Backup>> + Send + 'static,
{
    for at in 0.. {
        let (mut fixture, first, second) = two().await?;
        let state = setup(&mut fixture).await?;
        if forget_before {
            fixture.repository.forget(&first.id).await?;
            fixture.repository.forget(&second.id).await?;
        }
        fixture.now += 3_600_000;
        change(&fixture, 4);
        let done = Arc::new(Mutex::new(Vec::new()));
        let work = during(fixture.repository.clone(), state, &fixture.data(), fixture.now);
        let results = done.clone();
        let wrapped = Wrapped::before(fixture.repository.store.clone(), at, async move {
            let result = work.await;
            results.lock().unwrap().push(result);
        });
        let through = fixture.through(wrapped.clone()).await?;
        let now = if late { long_after() } else { real_now() };
        let plan = through.collect(now).await?;
        assert_eq!(plan.blocked, Vec::<String>::new(), "call {at}");
        let done = std::mem::take(&mut *done.lock().unwrap());
        if done.is_empty() {
            assert!(at > 10, "it has more calls than {at}");
            break;
        }
        for backup in done.iter().flatten() {
            fixture.expected.insert(backup.id.clone(), common::tree(&fixture.data()));
        }
        check(&fixture, done).await?;
        fixture.check_all().await?;
        // And what is garbage now goes with the next.
        fixture.repository.collect(long_after()).await?;
        fixture.check_all().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_made_as_a_whole_at_any_point_of_a_collection_is_whole() -> Result<()> {
    for forgotten in [false, true] {
        at_every_point(
            forgotten,
            false,
            async |_: &mut Fixture| Ok(()),
            |repository, (), data, now| {
                let data = data.to_owned();
                async move {
                    let writer = Writer::announce(&repository, now, true).await?;
                    write(writer, &data, now).await
                }
            },
            async |fixture: &Fixture, done| {
                let done = done.into_iter().next().unwrap()?;
                fixture.check(&done).await
            },
        )
        .await?;
    }
    Ok(())
}

/// It is announced and copies at any point, all else is forgotten, and it publishes when the collection
/// is over. The collector's clock being late takes the age of things away as a help.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_begins_at_any_point_of_a_collection_and_publishes_after_it() -> Result<()> {
    for late in [false, true] {
        let mut published = 0;
        for at in 0.. {
            let (mut fixture, first, second) = two().await?;
            change(&fixture, 4);
            fixture.now += 3_600_000;
            let begun = Arc::new(Mutex::new(None));
            let (repository, slot) = (fixture.repository.clone(), begun.clone());
            let (data, now) = (fixture.data(), fixture.now);
            let wrapped = Wrapped::before(fixture.repository.store.clone(), at, async move {
                let writer = Writer::announce(&repository, now, true).await.unwrap();
                *slot.lock().unwrap() = Some(copy(writer, &data, now).await.unwrap());
                repository.forget(&first.id).await.unwrap();
                repository.forget(&second.id).await.unwrap();
            });
            let through = fixture.through(wrapped.clone()).await?;
            through.collect(if late { long_after() } else { real_now() }).await?;
            let Some((writing, backup)) = begun.lock().unwrap().take() else { break };
            match writing.publish(backup).await {
                Ok(backup) => {
                    fixture.expected.insert(backup.id.clone(), common::tree(&fixture.data()));
                    fixture.check(&backup).await?;
                    published += 1;
                }
                Err(Error::Revoked { .. }) if late => {}
                Err(other) => anyhow::bail!("call {at}: {other}"),
            }
        }
        assert!(published > 5, "{published}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_keeps_its_parent_though_that_is_forgotten() -> Result<()> {
    at_every_point(
        true,
        false,
        async |fixture: &mut Fixture| fixture.announce().await,
        |_, writer, data, now| {
            let data = data.to_owned();
            async move { write(writer, &data, now).await }
        },
        async |fixture: &Fixture, done| {
            let done = done.into_iter().next().unwrap()?;
            assert!(done.parent.is_some());
            fixture.check(&done).await
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_publishing_and_revoking_exactly_one_wins() -> Result<()> {
    let outcomes = Mutex::new((0, 0));
    at_every_point(
        true,
        true,
        async |fixture: &mut Fixture| fixture.announce().await,
        |_, writer, data, now| {
            let data = data.to_owned();
            async move { write(writer, &data, now).await }
        },
        async |fixture: &Fixture, done| {
            let there = fixture.repository.backups().await?;
            match done.into_iter().next().unwrap() {
                Ok(backup) => {
                    fixture.check(&backup).await?;
                    outcomes.lock().unwrap().0 += 1;
                }
                // It was paused for longer than its lease: its attempt is lost, nothing else.
                Err(Error::Revoked { .. }) => {
                    assert!(there.is_empty());
                    outcomes.lock().unwrap().1 += 1;
                }
                // It noticed earlier: what it compares with is gone.
                Err(Error::Missing { .. }) => outcomes.lock().unwrap().1 += 1,
                Err(other) => return Err(other.into()),
            }
            Ok(())
        },
    )
    .await?;
    let (published, revoked) = *outcomes.lock().unwrap();
    assert!(published > 0 && revoked > 0, "both were seen: {published}, {revoked}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_at_any_point_of_a_writers_life_harms_nothing() -> Result<()> {
    // Before each call of a writer, from its announcement to its end, all is forgotten and collected.
    for late in [false, true] {
        for at in 0.. {
            let (mut fixture, first, second) = two().await?;
            change(&fixture, 4);
            let repository = fixture.repository.clone();
            let wrapped = Wrapped::before(fixture.repository.store.clone(), at, async move {
                repository.forget(&first.id).await.unwrap();
                repository.forget(&second.id).await.unwrap();
                let now = if late { long_after() } else { real_now() };
                let plan = repository.collect(now).await.unwrap();
                assert!(plan.blocked.is_empty());
            });
            let through = fixture.through(wrapped.clone()).await?;
            fixture.now += 3_600_000;
            let written = async {
                let writer = Writer::announce(&through, fixture.now, true).await?;
                write(writer, &fixture.data(), fixture.now).await
            };
            let written = written.await;
            let ended = wrapped.calls() <= at;
            match written {
                Ok(backup) => {
                    fixture.expected.insert(backup.id.clone(), common::tree(&fixture.data()));
                    fixture.check(&backup).await?;
                }
                Err(Error::Revoked { .. } | Error::Missing { .. }) if late => {}
                Err(other) => anyhow::bail!("call {at}: {other}"),
            }
            fixture.repository.collect(long_after()).await?;
            fixture.check_all().await?;
            if ended {
                break;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_writer_leaves_a_tombstone_and_what_it_uploads_late_goes() -> Result<()> {
    let (mut fixture, _, second) = two().await?;
    let writer = fixture.announce().await?;
    let plan = fixture.repository.collect(real_now()).await?;
    assert_eq!((plan.revoke.len(), plan.all().count()), (0, 0), "it lives");
    change(&fixture, 5);
    let planned = fixture.repository.plan_collection(long_after()).await?;
    assert_eq!(planned.revoke.len(), 1);
    let revoked = fixture.repository.collect(long_after()).await?;
    let id = revoked.revoke[0].id.clone();
    assert_eq!(planned.revoke[0].id, id);
    assert!(revoked.all().any(|l| l.key == format!("writers/{id}/000000")));
    let error = fixture.finish(writer).await.unwrap_err();
    assert!(matches!(&error, Error::Revoked { id: of, .. } if *of == id), "{error}");
    // It uploaded packs and segments before it found out, and one more afterwards.
    let store = fixture.repository.store.clone();
    store.put_new(&format!("packs/{id}/00000099"), Bytes::from_static(b"late")).await?;
    assert!(fixture.keys(&format!("packs/{id}/")).await?.len() > 1);
    fixture.repository.collect(real_now()).await?;
    for prefix in ["packs/", "segments/", "writers/"] {
        assert!(fixture.keys(&format!("{prefix}{id}/")).await?.is_empty(), "{prefix}");
    }
    assert!(fixture.keys("backups/").await?.contains(&format!("backups/{id}")), "for ever");
    assert!(fixture.check_all().await?.contains(&second.id));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_collections_at_once_and_a_crash_at_any_point_end_the_same() -> Result<()> {
    for crash in [false, true] {
        for done in [false, true] {
            for at in 0.. {
                let (fixture, first, _) = two().await?;
                fixture.repository.forget(&first.id).await?;
                let store = fixture.repository.store.clone();
                let repository = fixture.repository.clone();
                let wrapped = match crash {
                    true => Wrapped::failing(store, at, "the power went", done),
                    false => Wrapped::before(store, at, async move {
                        repository.collect(real_now()).await.unwrap();
                    }),
                };
                // Opening takes calls, too.
                if let Ok(through) = fixture.through(wrapped.clone()).await {
                    let _ = through.collect(real_now()).await;
                }
                // Nothing looks whole that is not.
                assert!(!fixture.check_all().await?.contains(&first.id));
                fixture.repository.collect(real_now()).await?;
                assert_eq!(fixture.check_all().await?.len(), 1);
                let left = fixture.keys("").await?;
                let left: Vec<_> = left.iter().filter(|k| k.contains(&first.id)).collect();
                assert!(left.iter().all(|key| key.starts_with("packs/")), "{left:?}");
                if wrapped.calls() <= at {
                    break;
                }
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_stops_the_removal_of_packs_and_says_so() -> Result<()> {
    for (damage, remove) in [("segments/", false), ("segments/", true), ("backups/", false)] {
        let (fixture, first, second) = two().await?;
        fixture.repository.forget(&first.id).await?;
        let packs = fixture.keys("packs/").await?;
        let key = fixture.keys(damage).await?.into_iter().find(|k| k.contains(&second.id)).unwrap();
        let path = fixture.dir.path().join("repository").join(&key);
        match remove {
            true => fs::remove_file(&path)?,
            false => fs::write(&path, "garbage")?,
        }
        let plan = fixture.repository.collect(real_now()).await?;
        assert!(plan.blocked.iter().any(|why| why.contains(&key)), "{:?}", plan.blocked);
        assert_eq!(fixture.keys("packs/").await?, packs);
        // The way out is to give up the damaged one.
        fixture.repository.forget(&second.id).await?;
        let plan = fixture.repository.collect(real_now()).await?;
        assert!(plan.blocked.is_empty(), "{:?}", plan.blocked);
        fixture.repository.collect(long_after()).await?;
        assert!(fixture.keys("packs/").await?.is_empty());
    }
    // What a live writer compares with is not known: nothing that was forgotten goes.
    let (mut fixture, first, _) = two().await?;
    let writer = fixture.announce().await?;
    fixture.repository.forget(&first.id).await?;
    let sign = fixture.keys("writers/").await?.into_iter().next_back().unwrap();
    fs::write(fixture.dir.path().join("repository").join(&sign), "garbage")?;
    let before = fixture.keys("").await?;
    let plan = fixture.repository.collect(real_now()).await?;
    assert!(plan.blocked.iter().any(|why| why.contains(&sign)), "{:?}", plan.blocked);
    assert_eq!(fixture.keys("").await?, before);
    drop(writer);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn half_written_files_of_the_dead_go_when_they_are_old() -> Result<()> {
    let (fixture, ..) = two().await?;
    let left = fixture.dir.path().join("repository/tmp/0123");
    fs::write(&left, "half")?;
    assert_eq!(fixture.repository.collect(real_now()).await?.leftovers.len(), 0, "it is young");
    let plan = fixture.repository.collect(long_after()).await?;
    assert_eq!((plan.leftovers.len(), plan.bytes(), left.exists()), (1, 4, false));
    Ok(())
}

/// The clock of whoever collects may be anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumped_loses_no_backup() -> Result<()> {
    let (fixture, ..) = two().await?;
    for now in [0, u64::MAX, real_now()] {
        let plan = fixture.repository.collect(now).await?;
        assert_eq!(plan.all().count(), 0);
    }
    assert_eq!(fixture.check_all().await?.len(), 2);
    Ok(())
}
