//! The store on a real S3 server: what a store promises, and what it does when the server fails.

mod common;

use anyhow::Result;
use bytes::Bytes;
use common::{
    Fixture,
    promises::keeps_its_promises,
    s3::{Fault, HASTE, Server},
};
use sempre_backup::{Error, Patience, S3, S3Config, Store};
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

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_what_a_store_promises() -> Result<()> {
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
    // One who may not delete is too early, as far as a collection knows.
    let error = store.delete("there").await.unwrap_err();
    assert!(matches!(error, Error::TooEarly { .. }), "{error}");
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
