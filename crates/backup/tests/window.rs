//! A write-once window: with every credential there is, through the protocol, nothing young is lost.

mod common;

use anyhow::Result;
use bytes::Bytes;
use common::{
    Fixture,
    member::{DAY, Serving},
    noise, real_now,
};
use http::StatusCode;
use sempre_backup::{Error, Folder, Remote, Store, WalWriter};
use sempre_model::{Lsn, Timeline};
use std::{
    fs::{self, File},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, UNIX_EPOCH},
};

const WINDOW: i64 = 30 * DAY;
/// By which objects differ in age here, at least.
const APART: Duration = Duration::from_millis(1_200);

async fn serving() -> Result<(tempfile::TempDir, PathBuf, Serving)> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("repository");
    let serving = Serving::by(&folder, |rule| rule.window_days = Some(30)).await?;
    Ok((dir, folder, serving))
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Why it is not deleted.
async fn stays(store: &Remote, key: &str) -> String {
    match store.delete(key).await {
        Err(Error::TooEarly { why, .. }) => why,
        other => panic!("{key}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_young_is_deleted_replaced_added_to_or_dated_back() -> Result<()> {
    let (_dir, folder, serving) = serving().await?;
    let (store, thief) = (serving.store(), serving.store_of("m2"));
    let keys = [
        "backups/a",
        "packs/a/00000000",
        "wal/00000001/0000000000000001",
        "marks/a/held",
        "keeps/a",
    ];
    for key in keys {
        store.put_new(key, bytes("mine")).await?;
    }
    let grown = "open-wal/00000001/0000000000000002/x";
    store.append_new(grown).await?.append(bytes("mine")).await?;
    // The owner of a file can set any time of it but one.
    for key in keys {
        File::options().write(true).open(folder.join(key))?.set_modified(UNIX_EPOCH)?;
    }
    for day in [0, 15, 14] {
        serving.pass(day * DAY);
        for key in keys.into_iter().chain([grown]) {
            stays(&thief, key).await;
            let put = thief.put_new(key, bytes("gone")).await;
            assert!(matches!(put, Err(Error::Exists { .. })), "{key}");
            let begun = thief.append_new(key).await.map(drop);
            assert!(matches!(begun, Err(Error::Exists { .. })), "{key}");
            let linked = serving.link("m2").connection().await?;
            let ask =
                format!(r#"{{"folder":"{}","key":"{key}","at":4,"bytes":4}}"#, folder.display());
            let appended = linked.ask("append", &ask, bytes("gone"), 0).await?;
            assert_eq!(appended.status, StatusCode::FORBIDDEN, "{key}");
            assert_eq!(store.get(key).await?, bytes("mine"));
        }
    }
    // After the window it goes.
    serving.pass(DAY + 1);
    for key in keys.into_iter().chain([grown]) {
        match key {
            "marks/a/held" => {}
            "backups/a" | "packs/a/00000000" | "keeps/a" => {
                assert!(stays(&store, key).await.contains("hold"), "{key}");
            }
            _ => store.delete(key).await?,
        }
    }
    assert!(matches!(store.get(grown).await, Err(Error::Missing { .. })));
    // What nothing can be read without never does, nor the last key.
    let needed = ["repository", "identity", "history/00000002", "keys/00000001.aa"];
    for key in needed {
        store.put_new(key, bytes("mine")).await?;
    }
    serving.pass(1_000 * DAY);
    for key in needed {
        stays(&thief, key).await;
    }
    // Another key must have been there for as long.
    std::thread::sleep(APART);
    store.put_new("keys/00000001.bb", bytes("new")).await?;
    store.put_new("keys/00000002.bb", bytes("new")).await?;
    serving.stand_after("keys/00000001.bb", WINDOW - 500);
    assert!(stays(&thief, "keys/00000001.aa").await.contains("another key"));
    serving.stand_after("keys/00000001.bb", WINDOW + 1);
    store.delete("keys/00000001.aa").await?;
    serving.stand_after("keys/00000002.bb", WINDOW + 1);
    assert!(stays(&thief, "keys/00000002.bb").await.contains("no other key"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_young_backup_uses_is_kept_for_it() -> Result<()> {
    let (dir, _folder, serving) = serving().await?;
    let mut fixture = Fixture::on(dir, serving.store()).await?;
    fixture.put("base/5/1", &noise(1, 300_000));
    let first = fixture.back_up().await?;
    let unused = format!("packs/{}/00000099", first.id);
    serving.store().put_new(&unused, bytes("nobody's")).await?;
    std::thread::sleep(APART);
    fixture.put("base/5/2", &noise(2, 300_000));
    let second = fixture.back_up().await?;
    let used: Vec<String> = fixture.keys(&format!("packs/{}/", first.id)).await?;
    let used: Vec<_> = used.into_iter().filter(|key| *key != unused).collect();
    assert!(!used.is_empty());

    // The first is old enough to go, what the second one uses of it is not.
    let keeps = format!("keeps/{}", second.id);
    serving.stand_after(&keeps, WINDOW - 500);
    let thief = serving.store_of("m2");
    for key in &used {
        assert!(stays(&thief, key).await.contains(&second.id), "{key}");
    }
    thief.delete(&unused).await?;
    // A renewal that cannot be read keeps everything; a new one cannot shorten anything.
    for nonsense in ["keeps/zz", "keeps/.hidden"] {
        let _ = thief.put_new(nonsense, bytes("\u{0}\u{1} not a list")).await;
    }
    for key in &used {
        stays(&thief, key).await;
    }
    assert_eq!(fixture.check_all().await?.len(), 2);
    serving.stand_after("keeps/zz", WINDOW + 1);
    for key in &used {
        thief.delete(key).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_backup_comes_back_within_the_window_and_goes_after_it() -> Result<()> {
    let (dir, _folder, serving) = serving().await?;
    let mut fixture = Fixture::on(dir, serving.store()).await?;
    fixture.put("base/5/1", &noise(1, 300_000));
    let first = fixture.back_up().await?;
    fixture.put("base/5/1", &noise(2, 300_000));
    fixture.put("base/5/2", &noise(3, 300_000));
    let second = fixture.back_up().await?;
    let repository = fixture.repository.clone();
    let error = repository.unforget(&first.id).await.unwrap_err().to_string();
    assert!(error.contains("is forgotten"), "{error}");

    // Somebody forgets both, and collects.
    for backup in [&first, &second] {
        repository.forget(&backup.id).await?;
    }
    let before = fixture.keys("").await?;
    let plan = repository.collect(real_now()).await?;
    assert!(plan.too_early > 4 && plan.all().count() == 0, "{plan:?}");
    assert_eq!(fixture.keys("").await?, before);
    assert!(repository.backups().await?.is_empty());
    repository.unforget(&first.id).await?;
    repository.unforget(&second.id[..18]).await?;
    assert_eq!(fixture.check_all().await?.len(), 2);

    // A hold, and its end, which counts from a window later on.
    repository.hold(&first.id, "the auditors").await?;
    assert!(repository.forget(&first.id).await.unwrap_err().to_string().contains("hold"));
    std::thread::sleep(APART);
    repository.release(&first.id).await?;
    repository.forget(&first.id).await?;
    let (own, thief) =
        (fixture.keys(&format!("packs/{}/", first.id)).await?, serving.store_of("m2"));
    let released = format!("marks/{}/released.1", first.id);
    serving.stand_after(&released, WINDOW - 500);
    for key in own.iter().chain([&format!("backups/{}", first.id)]) {
        assert!(stays(&thief, key).await.contains("hold"), "{key}");
    }
    assert!(stays(&thief, &format!("marks/{}/held", first.id)).await.contains("hold"));

    // After that it goes, all of it, and the other one stays whole.
    serving.stand_after(&released, WINDOW + 60_000);
    let now = serving.stands.load(Ordering::SeqCst) as u64;
    let plan = repository.collect(now).await?;
    assert!(plan.packs.len() == own.len() && plan.too_early == 0, "{plan:?}");
    assert!(
        !fixture
            .keys("")
            .await?
            .iter()
            .any(|key| { key.contains(&first.id) && !key.starts_with("packs/") })
    );
    assert_eq!(fixture.check_all().await?, [second.id.as_str()]);
    let error = repository.unforget(&first.id).await.unwrap_err().to_string();
    assert!(error.contains("no backup"), "{error}");
    Ok(())
}

/// A fence is no backup: what came before it may go at once, and it stays itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_with_a_window_is_fenced_again_and_again() -> Result<()> {
    let (dir, _folder, serving) = serving().await?;
    let fixture = Fixture::on(dir, serving.store()).await?;
    let repository = fixture.repository.clone();
    let fence = |below: u64| format!("fences/{below:020}");
    for below in [7, 8, 8] {
        repository.fence(below).await?;
        assert_eq!(fixture.keys("fences/").await?, [fence(below)]);
    }
    let thief = serving.store_of("m2");
    for _ in 0..2 {
        repository.expect_unfenced(8).await?;
        let error = repository.expect_unfenced(7).await.unwrap_err();
        assert!(matches!(error, Error::Fenced { below: 8, .. }), "{error}");
        stays(&thief, &fence(8)).await;
        serving.pass(WINDOW + DAY);
    }
    // One that cannot be deleted yet is in nobody's way.
    serving.ahead[0].fetch_add(40 * DAY, Ordering::SeqCst);
    repository.fence(9).await?;
    assert_eq!(fixture.keys("fences/").await?, [fence(8), fence(9)]);
    assert!(repository.expect_unfenced(8).await.is_err());
    Ok(())
}

/// Without a window things go, and then nothing comes back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_in_part_does_not_come_back() -> Result<()> {
    let mut fixture = Fixture::quick().await?;
    fixture.put("base/5/1", &noise(1, 300_000));
    let backup = fixture.back_up().await?;
    fixture.repository.forget(&backup.id).await?;
    let packs = fixture.keys("packs/").await?;
    fixture.repository.store.delete(&packs[0]).await?;
    let error = fixture.repository.unforget(&backup.id).await.unwrap_err().to_string();
    assert!(error.contains("cannot come back"), "{error}");
    assert!(fixture.repository.backups().await?.is_empty());
    fixture.repository.collect(real_now()).await?;
    assert!(fixture.keys("packs/").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_ends_no_window() -> Result<()> {
    let (_dir, _folder, mut serving) = serving().await?;
    let store = serving.store();
    store.put_new("wal/a", bytes("mine")).await?;
    store.put_new("wal/b", bytes("mine")).await?;
    assert!(stays(&store, "wal/a").await.contains("30 days"));
    // By an hour, as clocks are.
    serving.ahead[0].fetch_add(DAY / 24, Ordering::SeqCst);
    assert!(stays(&store, "wal/a").await.contains("29 days"));
    serving.ahead[0].fetch_add(40 * DAY, Ordering::SeqCst);
    let why = stays(&store, "wal/a").await;
    let code = why.split('"').nth(1).unwrap().to_owned();
    assert!(why.contains("961 hours"), "{why}");
    // Writing goes on; it is remembered by a member that starts again, and when the clock is right again.
    store.put_new("wal/c", bytes("mine")).await?;
    serving.kill().await;
    serving.run().await?;
    assert_eq!(stays(&store, "wal/a").await, why);
    serving.ahead[0].fetch_add(-40 * DAY, Ordering::SeqCst);
    assert_eq!(stays(&store, "wal/a").await, why);
    // Until somebody there says that it is right.
    for (said, is_right) in [("guess", false), (code.as_str(), true)] {
        serving.kill().await;
        serving.rule.confirm_clock = Some(said.to_owned());
        serving.run().await?;
        assert_eq!(stays(&store, "wal/a").await.contains("29 days"), is_right, "{said}");
    }
    serving.pass(WINDOW);
    store.delete("wal/a").await?;
    // The word counted once.
    serving.ahead[0].fetch_add(40 * DAY, Ordering::SeqCst);
    let again = stays(&store, "wal/b").await;
    assert!(again.contains("confirm_clock") && !again.contains(&code), "{again}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_is_written_although_its_pieces_stay() -> Result<()> {
    const SEGMENT: u64 = 1 << 20;
    let (dir, folder, serving) = serving().await?;
    let fixture = Fixture::on(dir, serving.store()).await?;
    let repository = fixture.repository.clone();
    let wal = noise(7, 5 << 19);
    let mut writer = WalWriter::new(repository.clone(), Timeline(1), Lsn(SEGMENT), SEGMENT)?;
    for (number, piece) in wal.chunks(300_000).enumerate() {
        writer.write(Lsn(SEGMENT + 300_000 * number as u64), piece).await?;
        writer.flush().await?;
    }
    let end = Lsn(SEGMENT + wal.len() as u64);
    assert_eq!(
        (writer.flushed(), repository.wal_end(Timeline(1), Lsn(SEGMENT), SEGMENT).await?),
        (end, end)
    );
    assert_eq!(fixture.keys("open-wal/").await?.len(), 3);
    assert_eq!(repository.trim_wal(Lsn(SEGMENT * 3), SEGMENT).await?, 0);
    let here = fixture.through(Arc::new(Folder::new(folder))).await?;
    for number in 1..4 {
        let name = sempre_backup::SegmentName { timeline: Timeline(1), number };
        let fetched = here.fetch_segment(name, SEGMENT).await?.unwrap();
        let from = (number as usize - 1) << 20;
        let expected = &wal[from..wal.len().min(from + (1 << 20))];
        assert!(fetched.content.starts_with(expected), "{number}");
    }
    serving.pass(WINDOW + DAY);
    assert_eq!(repository.trim_wal(Lsn(SEGMENT * 3), SEGMENT).await?, 4);
    assert!(fs::read_dir(serving.rule.folder.join("wal/00000001"))?.next().is_none());
    Ok(())
}
