//! The store on a real S3 server: what a store promises, and what it does when the server fails.

mod common;

use anyhow::Result;
use bytes::Bytes;
use common::{
    Fixture,
    s3::{Fault, HASTE, Server},
};
use sempre_backup::{Error, Folder, Patience, S3, S3Config, Store};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// For a server that is silent on purpose.
const IMPATIENCE: Patience = Patience { timeout: Duration::from_millis(500), ..HASTE };

async fn s3() -> Result<(tempfile::TempDir, Server, S3)> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(dir.path()).await?;
    let store = S3::new(&server.config(), HASTE)?;
    Ok((dir, server, store))
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// What every store promises.
async fn keeps_its_promises(store: Arc<dyn Store>) -> Result<()> {
    store.put_new("a/b/1", bytes("one")).await?;
    store.put_new("a/b/2", bytes("two")).await?;
    store.put_new("a/bb", bytes("more")).await?;
    assert!(matches!(store.put_new("a/b/1", bytes("one")).await, Err(Error::Exists { .. })));
    assert_eq!(store.get("a/b/1").await?, bytes("one"));
    assert!(matches!(store.get("a/b/3").await, Err(Error::Missing { .. })));
    assert!(matches!(store.get_range("a/b/3", 0..1).await, Err(Error::Missing { .. })));
    for (range, found) in [(0..2, "mo"), (1..3, "or"), (2..9, "re"), (4..9, ""), (7..9, "")] {
        assert_eq!(store.get_range("a/bb", range.clone()).await?, bytes(found), "{range:?}");
    }
    let listed = store.list("a/b/").await?;
    let keys: Vec<_> = listed.iter().map(|l| (l.key.as_str(), l.bytes)).collect();
    assert_eq!(keys, [("a/b/1", 3), ("a/b/2", 3)], "and not a/bb");
    let now = common::real_now();
    assert!(listed.iter().all(|l| now.abs_diff(l.written_unix_ms) < 60_000), "{listed:?}");
    assert_eq!(store.list("").await?.len(), 3);
    assert!(store.list("nothing/").await?.is_empty() && store.leftovers().await?.is_empty());

    // Objects that grow.
    let mut growing = store.append_new("a/wal/x").await?;
    assert!(matches!(store.append_new("a/wal/x").await, Err(Error::Exists { .. })));
    assert_eq!(store.get_appended("a/wal/x").await?, bytes(""));
    for piece in ["one", "", "two"] {
        growing.append(bytes(piece)).await?;
    }
    assert_eq!(store.get_appended("a/wal/x").await?, bytes("onetwo"));
    let listed = store.list("a/wal/").await?;
    assert_eq!((listed.len(), listed[0].key.as_str(), listed[0].bytes), (1, "a/wal/x", 6));
    assert!(matches!(store.get_appended("a/wal/y").await, Err(Error::Missing { .. })));
    store.delete_appended("a/wal/x").await?;
    assert!(matches!(store.get_appended("a/wal/x").await, Err(Error::Missing { .. })));
    store.delete_appended("a/wal/x").await?;

    store.delete("a/b/1").await?;
    store.delete("a/b/1").await?;
    assert!(matches!(store.get("a/b/1").await, Err(Error::Missing { .. })));
    store.put_new("a/b/1", bytes("again")).await?;
    store.barrier().await?;

    // Of several that create the same object, one succeeds, and its content is there.
    for round in 0..10 {
        let key = format!("race/{round}");
        let tries: Vec<_> = (0..8)
            .map(|n| {
                let (store, key) = (store.clone(), key.clone());
                tokio::spawn(async move { store.put_new(&key, bytes(&format!("{n}"))).await })
            })
            .collect();
        let mut winners = Vec::new();
        for (n, tried) in tries.into_iter().enumerate() {
            match tried.await? {
                Ok(()) => winners.push(n),
                Err(Error::Exists { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(store.get(&key).await?, bytes(&format!("{}", winners[0])));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_store_keeps_its_promises() -> Result<()> {
    let dir = tempfile::tempdir()?;
    keeps_its_promises(Arc::new(Folder::new(dir.path().join("repository")))).await?;
    let (_dir, _server, store) = s3().await?;
    keeps_its_promises(Arc::new(store)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_whole_however_long_it_is() -> Result<()> {
    let (_dir, server, store) = s3().await?;
    for first in (0..1100).step_by(50) {
        let puts = (first..first + 50).map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.put_new(&format!("many/{n:08}"), bytes("x")).await })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await??;
        }
    }
    let before = server.requests();
    let listed = store.list("many/").await?;
    assert_eq!((listed.len(), server.requests() - before), (1100, 2), "two pages");
    assert!(listed.is_sorted_by(|a, b| a.key < b.key));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_fails_is_tried_again_and_not_for_ever() -> Result<()> {
    let (_dir, server, _) = s3().await?;
    let store = S3::new(&server.config(), IMPATIENCE)?;
    store.put_new("there", bytes("x")).await?;
    for fault in [Fault::Busy, Fault::DoneBusy, Fault::Code(429), Fault::DoneSilent] {
        let key = format!("{fault:?}").replace(['(', ')'], "-");
        // A put whose answer was lost finds what it wrote.
        server.faults([fault]);
        store.put_new(&key, bytes("mine")).await?;
        server.faults([fault]);
        assert_eq!(store.get(&key).await?, bytes("mine"));
        server.faults([fault]);
        assert_eq!(store.get_range(&key, 1..3).await?, bytes("in"));
        server.faults([fault]);
        assert_eq!(store.list("").await?.iter().filter(|l| l.key == key).count(), 1);
        // But not what somebody else wrote.
        server.faults([fault]);
        let error = store.put_new("there", bytes("mine")).await.unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
        server.faults([fault]);
        store.delete(&key).await?;
    }
    // A conflict with somebody who then wrote nothing.
    server.faults([Fault::Code(409)]);
    store.put_new("conflict", bytes("x")).await?;

    server.always(Some(Fault::Busy));
    let before = server.requests();
    let error = store.put_new("never", bytes("x")).await.unwrap_err().to_string();
    assert!(error.contains("write never") && error.contains("503"), "{error}");
    assert!(!error.contains("TOPSECRET"));
    assert_eq!(server.requests() - before, HASTE.tries as usize);
    // What is refused is not asked for again.
    server.always(Some(Fault::Code(403)));
    let before = server.requests();
    assert!(matches!(store.get("there").await, Err(Error::Store { .. })));
    assert!(matches!(store.put_new("new", bytes("x")).await, Err(Error::Store { .. })));
    assert_eq!(server.requests() - before, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_silent_or_gone_is_given_up_in_time() -> Result<()> {
    let (_dir, server, _) = s3().await?;
    let store = S3::new(&server.config(), IMPATIENCE)?;
    server.always(Some(Fault::DoneSilent));
    let begun = Instant::now();
    let error = store.get("x").await.unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error}");
    let longest = IMPATIENCE.timeout * IMPATIENCE.tries + Duration::from_secs(2);
    assert!(begun.elapsed() < longest, "{:?}", begun.elapsed());
    let gone = S3Config { endpoint: Some("http://127.0.0.1:1".to_owned()), ..server.config() };
    let error = S3::new(&gone, HASTE)?.get("x").await.unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_encrypted_and_trusts_whom_it_is_told_to() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start_tls(dir.path()).await?;
    keeps_its_promises(Arc::new(S3::new(&server.config(), HASTE)?)).await?;
    let stranger = S3Config { ca_pem: None, ..server.config() };
    let error = S3::new(&stranger, HASTE)?.get("x").await.unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error}");
    let plain = S3Config { endpoint: Some("http://127.0.0.1:1".to_owned()), ..stranger };
    let error = S3::new(&plain, HASTE).unwrap_err().to_string();
    assert!(error.contains("allow_http"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_said_and_not_shown() -> Result<()> {
    let (_dir, server, _) = s3().await?;
    let wrong = S3Config { secret_access_key: "GUESSED".to_owned(), ..server.config() };
    let error = S3::new(&wrong, HASTE)?.list("").await.unwrap_err().to_string();
    assert!(error.contains("s3://bucket/here") && !error.contains("GUESSED"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_conditional_writes_is_refused() -> Result<()> {
    let (_dir, _server, store) = s3().await?;
    store.probe().await?;
    assert!(store.list("").await?.is_empty());
    let dir = tempfile::tempdir()?;
    let server = Server::start_careless(dir.path()).await?;
    let store = S3::new(&server.config(), HASTE)?;
    let error = store.probe().await.unwrap_err().to_string();
    assert!(error.contains("If-None-Match"), "{error}");
    assert!(store.list("").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_missing_is_missed() -> Result<()> {
    let (_dir, _server, store) = s3().await?;
    let mut growing = store.append_new("wal/x").await?;
    for piece in ["one", "two", "three"] {
        growing.append(bytes(piece)).await?;
    }
    store.delete("wal/x/part.00000002").await?;
    let error = store.get_appended("wal/x").await.unwrap_err().to_string();
    assert!(error.contains("part 2 is missing"), "{error}");
    Ok(())
}

/// Two repositories in one bucket do not see each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_a_place_of_its_own() -> Result<()> {
    let (dir, server, _store) = s3().await?;
    let other = S3Config { prefix: "here-too".to_owned(), ..server.config() };
    let other = S3::new(&other, HASTE)?;
    other.put_new("x", bytes("theirs")).await?;
    let store = Arc::new(S3::new(&server.config(), HASTE)?);
    let mut fixture = Fixture::on(dir, store).await?;
    fixture.put("PG_VERSION", b"15");
    fixture.back_up().await?;
    assert_eq!(other.list("").await?.len(), 1);
    assert!(!fixture.keys("").await?.contains(&"x".to_owned()));
    Ok(())
}
