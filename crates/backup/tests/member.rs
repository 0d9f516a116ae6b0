//! A repository that another member serves: what a store promises, over a network that fails and a member
//! that dies; and who may ask.

mod common;

use anyhow::Result;
use bytes::Bytes;
use common::{
    Fixture,
    member::{HASTE, Serving, id},
    noise,
    promises::keeps_its_promises,
};
use http::StatusCode;
use sempre_backup::{Error, Folder, Remote, Store};
use sempre_net::{Authority, Identity, MEMBER_LIFETIME};
use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// As much as a pack.
const PACK: usize = 16 << 20;

async fn serving() -> Result<(tempfile::TempDir, PathBuf, Serving)> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("repository");
    let serving = Serving::start(&folder).await?;
    Ok((dir, folder, serving))
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// What is left of objects that were not finished.
async fn leftovers(folder: &std::path::Path) -> Result<usize> {
    Ok(Folder::new(folder).leftovers().await?.len())
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(60), "waited too long for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_what_a_store_promises_and_a_folder_does() -> Result<()> {
    let (_dir, folder, serving) = serving().await?;
    keeps_its_promises(serving.store()).await?;
    let other = tempfile::tempdir()?;
    keeps_its_promises(Arc::new(Folder::new(other.path().join("repository")))).await?;
    // It is a folder like any: on its own machine it is opened as one.
    let (here, there) = (Folder::new(folder), serving.store());
    assert_eq!(here.list("").await?, there.list("").await?);
    assert_eq!(here.get("a/bb").await?, bytes("more"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_go_and_come_whole() -> Result<()> {
    let (_dir, folder, serving) = serving().await?;
    let store = serving.store();
    let object = Bytes::from(noise(1, PACK + 12_345));
    store.put_new("packs/a/00000000", object.clone()).await?;
    assert!(store.get("packs/a/00000000").await? == object);
    let part = store.get_range("packs/a/00000000", 5_000_000..9_000_001).await?;
    assert!(part == object.slice(5_000_000..9_000_001));
    store.put_new("empty", Bytes::new()).await?;
    assert!(store.get("empty").await?.is_empty());
    assert_eq!(leftovers(&folder).await?, 0);
    // Many at once, by several members.
    let puts = (0..24).map(|n| {
        let store = if n % 2 == 0 { store.clone() } else { serving.store_of("m2") };
        tokio::spawn(async move {
            let key = format!("packs/b/{n:08}");
            store.put_new(&key, noise(n, 1 << 20).into()).await?;
            assert!(store.get(&key).await? == noise(n, 1 << 20));
            Ok::<_, Error>(())
        })
    });
    for put in puts.collect::<Vec<_>>() {
        put.await??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_is_cut_off_anywhere_is_whole_or_not_there() -> Result<()> {
    let (_dir, folder, serving) = serving().await?;
    let object = Bytes::from(noise(2, 3 << 20));
    for (round, cut) in [0, 100, 2_000, 4_000, 70_000, 1 << 20, 3 << 20].into_iter().enumerate() {
        let (store, key) = (serving.store(), format!("packs/a/{round:08}"));
        serving.proxy.cut_after(cut);
        // It is sent again.
        store.put_new(&key, object.clone()).await?;
        assert!(serving.proxy.was_cut() && store.get(&key).await? == object, "{cut}");
        let error = store.put_new(&key, bytes("other")).await.unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
    }
    // The answer is lost, and the object is there: it was ours.
    let store = serving.store();
    store.look().await?;
    serving.proxy.deaf(true);
    let put = tokio::spawn({
        let store = store.clone();
        async move { store.put_new("packs/a/silent", bytes("one")).await }
    });
    until("it is there", async || folder.join("packs/a/silent").exists()).await;
    serving.proxy.deaf(false);
    serving.proxy.cut();
    put.await??;
    // Likewise, but what is there is somebody else's.
    serving.store_of("m2").put_new("packs/a/theirs", bytes("theirs")).await?;
    serving.proxy.cut_after(2 << 20);
    let error = serving.store().put_new("packs/a/theirs", object.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    // Nobody is left who could finish what was begun.
    until("nothing is left over", async || leftovers(&folder).await.unwrap() == 0).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_of_a_growing_object_is_there_and_no_more_is_added() -> Result<()> {
    let (_dir, _folder, mut serving) = serving().await?;
    let store = serving.store();
    let key = "open-wal/00000001/0000000000000001/x";
    let mut growing = store.append_new(key).await?;
    growing.append(bytes("one,")).await?;
    // Cut off in the middle of a piece.
    serving.proxy.cut_after(300_000);
    let error = growing.append(noise(3, 1 << 20).into()).await.unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error}");
    let error = growing.append(bytes("two,")).await.unwrap_err().to_string();
    assert!(error.contains("earlier write failed"), "{error}");
    assert_eq!(store.get_appended(key).await?, bytes("one,"));

    // The member dies, and comes back: it does not know what was begun.
    let key = "open-wal/00000001/0000000000000002/x";
    let mut growing = store.append_new(key).await?;
    growing.append(bytes("one,")).await?;
    serving.kill().await;
    assert!(growing.append(bytes("two,")).await.is_err());
    serving.run().await?;
    assert!(growing.append(bytes("two,")).await.is_err());
    assert_eq!(store.get_appended(key).await?, bytes("one,"));
    assert!(matches!(store.append_new(key).await, Err(Error::Exists { .. })));

    // Whoever else has a certificate does not append to it, nor a second time at the same place.
    let mut growing = store.append_new("open-wal/x").await?;
    growing.append(bytes("one,")).await?;
    let ask = |at: u64| {
        let folder = serving.rule.folder.display();
        format!(r#"{{"folder":"{folder}","key":"open-wal/x","at":{at},"bytes":4}}"#)
    };
    for (name, at) in [("m1", 4), ("m2", 4), ("m2", 0)] {
        let other = serving.link(name).connection().await?;
        let answer = other.ask("append", &ask(at), bytes("two,"), 0).await?;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name} {:?}", answer.body);
    }
    growing.append(bytes("two,")).await?;
    assert_eq!(store.get_appended("open-wal/x").await?, bytes("one,two,"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dies_for_a_while_is_waited_for_and_one_that_is_silent_is_given_up()
-> Result<()> {
    let (_dir, folder, mut serving) = serving().await?;
    let store = serving.store();
    store.put_new("a", bytes("one")).await?;
    serving.kill().await;
    let error = store.get("a").await.unwrap_err().to_string();
    assert!(error.contains("w1:") && error.contains("read a"), "{error}");
    let waiting = Remote::with_patience(
        id("w1"),
        vec!["127.0.0.1".to_owned()],
        serving.proxy.port(),
        serving.tls("m1"),
        folder,
        sempre_backup::Patience { tries: 1_000, first_wait: Duration::from_millis(1), ..HASTE },
    );
    let put = tokio::spawn(async move { waiting.put_new("b", bytes("two")).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!put.is_finished());
    serving.run().await?;
    put.await??;
    assert_eq!(store.get("b").await?, bytes("two"));
    // It takes what is sent, and says nothing: a process that is stopped.
    serving.proxy.deaf(true);
    let begun = Instant::now();
    assert!(matches!(store.get("a").await, Err(Error::Store { .. })));
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    serving.proxy.deaf(false);
    assert_eq!(store.get("a").await?, bytes("one"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_are_served_and_only_what_the_rules_say() -> Result<()> {
    let (dir, folder, serving) = serving().await?;
    serving.store().put_new("a", bytes("one")).await?;
    // Known to the authority, and no member (any more).
    let error = serving.store_of("stranger").get("a").await.unwrap_err().to_string();
    assert!(error.contains("not a member"), "{error}");
    serving.members.lock().unwrap().remove(&id("m2"));
    let error = serving.store_of("m2").get("a").await.unwrap_err().to_string();
    assert!(error.contains("not a member"), "{error}");
    // Another cluster's member of the same name.
    let foreign = Authority::new("test", "3f2a9c0d1e")?;
    Identity::issue(&foreign, &id("m1"), MEMBER_LIFETIME)?.save(&serving.tls("foreign"))?;
    let error = serving.store_of("foreign").get("a").await.unwrap_err().to_string();
    assert!(error.contains("TLS") || error.contains("certificate"), "{error}");
    assert!(serving.store_of("nobody").get("a").await.is_err());

    // Folders that are not named, even inside of one that is.
    for other in [dir.path().to_owned(), folder.join("a"), "/etc".into(), "/".into()] {
        let error = serving.store_at("m1", &other).look().await.unwrap_err();
        assert!(matches!(&error, Error::Refused(why) if why.contains("does not serve")), "{error}");
    }
    // Names that lead elsewhere.
    fs::write(dir.path().join("secret"), "x")?;
    let store = serving.store();
    for key in
        ["../secret", "/etc/passwd", "a/../../secret", "./a", "", "a\u{0}b", "tmp/../../secret"]
    {
        for refused in [
            store.get(key).await.map(drop),
            store.put_new(key, bytes("x")).await,
            store.delete(key).await,
            store.append_new(key).await.map(drop),
            store.list(&format!("{key}/")).await.map(drop),
        ] {
            assert!(matches!(refused, Err(Error::Refused(_))), "{key:?}: {refused:?}");
        }
    }
    assert_eq!(fs::read_to_string(dir.path().join("secret"))?, "x");
    // No requests.
    let linked = serving.link("m1").connection().await?;
    for (verb, ask) in [("put", "{}"), ("put", "no JSON"), ("drop", r#"{"folder":"/"}"#)] {
        let answer = linked.ask(verb, ask, Bytes::new(), 0).await?;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{verb} {ask}");
    }
    // More, or less, than was said.
    let folder = folder.display();
    for said in [1, 10] {
        let ask = format!(r#"{{"folder":"{folder}","key":"x","bytes":{said}}}"#);
        let answer = linked.ask("put", &ask, bytes("xyz"), 0).await?;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{said}");
    }
    assert!(matches!(store.get("x").await, Err(Error::Missing { .. })));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_kept() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("repository");
    let serving = Serving::by(&folder, |rule| rule.quota_bytes = Some(1_000_000)).await?;
    let store = serving.store();
    store.put_new("a", noise(1, 600_000).into()).await?;
    let error = store.put_new("b", noise(2, 600_000).into()).await.unwrap_err().to_string();
    assert!(error.contains("quota"), "{error}");
    let mut growing = store.append_new("c").await?;
    growing.append(noise(3, 300_000).into()).await?;
    assert!(growing.append(noise(3, 300_000).into()).await.is_err());
    assert_eq!(leftovers(&folder).await?, 0);
    store.delete("a").await?;
    store.put_new("b", noise(2, 600_000).into()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_are_made_and_restored_over_it_and_opened_as_a_folder() -> Result<()> {
    let (dir, folder, serving) = serving().await?;
    let mut fixture = Fixture::on(dir, serving.store()).await?;
    fixture.put("base/5/1", &noise(1, 40 << 20));
    fixture.back_up().await?;
    fixture.put("base/5/2", &noise(2, 300_000));
    let second = fixture.back_up().await?;
    assert_eq!(fixture.check_all().await?.len(), 2);
    assert_eq!(fixture.keys("keeps/").await?, [format!("keeps/{}", second.id)]);
    fixture.repository = fixture.through(Arc::new(Folder::new(folder))).await?;
    assert_eq!(fixture.check_all().await?.len(), 2);
    Ok(())
}
