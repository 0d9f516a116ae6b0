//! Each call to the store fails in turn: whatever fails, no backup refers to what is missing, those that were
//! there are whole, and a second try works.

mod common;

use anyhow::{Result, ensure};
use common::{
    Fixture, noise, quick_dir,
    s3::{Fault, HASTE, Server},
    tree,
    wrapped::{Then, Wrapped},
    write,
};
use sempre_backup::{
    Backup, Error, Folder, Identity, Patience, Progress, Repository, RestoreOptions, S3, Secret,
    Store, VerifyOptions, Writer,
};
use std::{path::Path, sync::Arc, time::Duration};

/// What a disk and a network say.
const WHY: [&str; 4] = [
    "Input/output error (os error 5)",
    "No space left on device (os error 28)",
    "503 Slow Down",
    "operation timed out",
];

async fn with_one_backup(mut fixture: Fixture) -> Result<Fixture> {
    fixture.put("base/5/1", &noise(1, 300_000));
    fixture.put("base/5/2", &noise(2, 300_000));
    fixture.back_up().await?;
    fixture.put("base/5/2", &noise(3, 300_000));
    Ok(fixture)
}

async fn back_up(repository: &Repository, data: &Path, now: u64) -> sempre_backup::Result<Backup> {
    let writer = Writer::announce(repository, now, true).await?;
    write(writer, data, now).await
}

/// What must hold whatever failed; and now nothing fails any more.
async fn holds(fixture: &mut Fixture, what: &str) -> Result<()> {
    let repository = fixture.repository.clone();
    let found = repository.verify(None, VerifyOptions::default(), Arc::default()).await?;
    let harmed = found.damages.iter().any(|damage| !damage.harms.is_empty());
    ensure!(!harmed, "{what}: {:?}", found.damages);
    // A publication whose answer was lost is one all the same.
    for backup in repository.backups().await? {
        let data = tree(&fixture.data());
        fixture.expected.entry(backup.id).or_insert(data);
    }
    let before = fixture.check_all().await?.len();
    ensure!(before >= 1, "{what}: the first is gone");
    fixture.now += 1000;
    fixture.back_up().await?;
    ensure!(fixture.check_all().await?.len() == before + 1, "{what}: the second try");
    repository.repair_descriptions().await?;
    let found = repository.verify(None, VerifyOptions::default(), Arc::default()).await?;
    ensure!(found.damages.is_empty(), "{what}: {:?}", found.damages);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_whole_or_not_there() -> Result<()> {
    for done in [false, true] {
        for at in 0.. {
            let mut fixture = with_one_backup(Fixture::quick().await?).await?;
            let store = fixture.repository.store.clone();
            let wrapped = Wrapped::failing(store, at, WHY[at % WHY.len()], done);
            let written = async {
                let through = Repository::open(wrapped.clone(), &fixture.key).await?;
                back_up(&through, &fixture.data(), fixture.now + 500).await
            };
            let written = written.await;
            let what = format!("call {at}, done {done}: {written:?}");
            holds(&mut fixture, &what).await?;
            if wrapped.calls() <= at {
                assert!(at > 10 && written.is_ok(), "{what}");
                break;
            }
        }
    }
    Ok(())
}

/// From some call on the store is gone: a machine that lost its disk, or its network.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_harms_nothing() -> Result<()> {
    for from in 0.. {
        let mut fixture = with_one_backup(Fixture::quick().await?).await?;
        let wrapped = Wrapped::new(fixture.repository.store.clone(), move |call| {
            let then = match call.number >= from {
                true => Then::Fail("No such device"),
                false => Then::Go,
            };
            Box::pin(async move { then })
        });
        let written = async {
            let through = Repository::open(wrapped.clone(), &fixture.key).await?;
            back_up(&through, &fixture.data(), fixture.now + 500).await
        };
        let written = written.await;
        holds(&mut fixture, &format!("from call {from}: {written:?}")).await?;
        if wrapped.calls() <= from {
            break;
        }
    }
    Ok(())
}

/// A network file system asks again when an answer was lost, and then says that there is one already.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_finds_itself_published_was_not_given_up() -> Result<()> {
    let mut fixture = with_one_backup(Fixture::quick().await?).await?;
    let wrapped = Wrapped::new(fixture.repository.store.clone(), |call| {
        let publishes = call.doing == "write" && call.key.starts_with("backups/");
        Box::pin(async move { if publishes { Then::GoTwice } else { Then::Go } })
    });
    let through = fixture.through(wrapped).await?;
    let backup = back_up(&through, &fixture.data(), fixture.now + 500).await?;
    fixture.expected.insert(backup.id.clone(), tree(&fixture.data()));
    fixture.check(&backup).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_right_or_fails_and_goes_on_where_it_stopped() -> Result<()> {
    let fixture = with_one_backup(Fixture::quick().await?).await?;
    let backup = fixture.repository.backup("latest").await?;
    for at in 0.. {
        let store = fixture.repository.store.clone();
        let wrapped = Wrapped::failing(store, at, WHY[at % WHY.len()], false);
        let target = tempfile::tempdir_in(fixture.dir.path())?;
        let restored = async {
            let through = Repository::open(wrapped.clone(), &fixture.key).await?;
            let options = RestoreOptions::default();
            through.restore_files(&backup, target.path(), options, Arc::default()).await
        };
        let restored = restored.await;
        assert_eq!(restored.is_ok(), wrapped.calls() <= at, "call {at}: {restored:?}");
        let options = RestoreOptions { delta: true, ..RestoreOptions::default() };
        let progress = Arc::<Progress>::default();
        fixture.repository.restore_files(&backup, target.path(), options, progress).await?;
        assert_eq!(tree(target.path()), fixture.expected[&backup.id]);
        if restored.is_ok() {
            assert!(at > 5);
            return Ok(());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_not_called_sound() -> Result<()> {
    let fixture = with_one_backup(Fixture::quick().await?).await?;
    for at in 0.. {
        let store = fixture.repository.store.clone();
        let wrapped = Wrapped::failing(store, at, WHY[at % WHY.len()], false);
        let found = async {
            let through = Repository::open(wrapped.clone(), &fixture.key).await?;
            through.verify(None, VerifyOptions::default(), Arc::default()).await
        };
        match found.await {
            Ok(found) if wrapped.calls() <= at => {
                assert_eq!(found.damages, []);
                return Ok(());
            }
            Ok(found) => assert_eq!(found.damages.len(), 1, "call {at}"),
            Err(error) => assert!(matches!(error, Error::Store { .. }), "call {at}: {error}"),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn making_a_repository_goes_on_where_it_stopped() -> Result<()> {
    let identity = || Identity::new("id", "main", 7, 1);
    for done in [false, true] {
        for at in 0.. {
            let dir = quick_dir()?;
            let store: Arc<dyn Store> = Arc::new(Folder::new(dir.path().join("repository")));
            let wrapped = Wrapped::failing(store.clone(), at, WHY[at % WHY.len()], done);
            let key = Secret::random();
            let made = Repository::create(wrapped.clone(), &key, identity()).await;
            let ended = wrapped.calls() <= at;
            assert_eq!(made.is_ok(), ended, "call {at}");
            if let Err(Error::NoRepository { .. }) = Repository::open(store.clone(), &key).await {
                let other = Identity::new("id", "other", 8, 1);
                if store.get("identity").await.is_ok() {
                    let made = Repository::create(store.clone(), &key, other).await;
                    assert!(matches!(made, Err(Error::Foreign { .. })), "another cluster's");
                    let stranger = Secret::random();
                    let made = Repository::create(store.clone(), &stranger, identity());
                    assert!(matches!(made.await, Err(Error::Refused(_))), "another key");
                }
                Repository::create(store.clone(), &key, identity()).await?;
            }
            let error = Repository::create(store.clone(), &key, identity()).await.unwrap_err();
            assert!(error.to_string().contains("is not empty"), "{error}");
            let repository = Repository::open(store, &key).await?;
            let fixture = Fixture::of(dir, repository, key)?;
            with_one_backup(fixture).await?.check_all().await?;
            if ended {
                break;
            }
        }
    }
    Ok(())
}

/// The same on S3, where the server fails: without a second try, and with some.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_harms_nothing_and_is_asked_again() -> Result<()> {
    let impatient = Patience { tries: 1, timeout: Duration::from_millis(300), ..HASTE };
    let patient = Patience { timeout: Duration::from_millis(300), ..HASTE };
    for (patience, fault) in [
        (impatient, Fault::Busy),
        (impatient, Fault::DoneBusy),
        (impatient, Fault::DoneSilent),
        (patient, Fault::Busy),
        (patient, Fault::DoneBusy),
        (patient, Fault::DoneSilent),
    ] {
        let dir = quick_dir()?;
        let server = Server::start(&dir.path().join("s3")).await?;
        let sound = Arc::new(S3::new(&server.config(), HASTE)?);
        let mut fixture = with_one_backup(Fixture::on(dir, sound).await?).await?;
        for at in 0.. {
            fixture.put("base/5/2", &noise(100 + at as u64, 200_000));
            fixture.now += 10_000;
            let before = server.requests();
            server.faults((0..at).map(|_| Fault::None).chain([fault]));
            let written = async {
                let store = Arc::new(S3::new(&server.config(), patience)?);
                let through = Repository::open(store, &fixture.key).await?;
                back_up(&through, &fixture.data(), fixture.now).await
            };
            let written = written.await;
            let ended = server.requests() - before <= at;
            server.no_faults();
            let what = format!("{fault:?} at request {at}: {written:?}");
            ensure!(patience.tries == 1 || written.is_ok(), "{what}");
            holds(&mut fixture, &what).await?;
            if ended {
                assert!(at > 10, "{what}");
                break;
            }
            // What is there gets no longer than it needs to be.
            for backup in fixture.repository.backups().await?.iter().skip(1) {
                fixture.repository.forget(&backup.id).await?;
            }
            fixture.repository.collect(common::real_now()).await?;
        }
    }
    Ok(())
}
