//! Keys are replaced: whatever dies in between, one of both keys opens everything.

mod common;

use anyhow::Result;
use common::{
    Fixture, noise,
    wrapped::{Then, Wrapped},
};
use sempre_backup::{Error, Repository, Secret};

/// Opens all, or nothing.
async fn opens(fixture: &Fixture, key: &Secret) -> Result<Option<Repository>> {
    match Repository::open(fixture.repository.store.clone(), key).await {
        Ok(opened) => Ok(Some(opened)),
        Err(Error::WrongKey { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_any_moment_one_of_both_keys_opens_everything() -> Result<()> {
    for from in 0.. {
        let mut fixture = Fixture::quick().await?;
        fixture.put("base/5/1", &noise(1, 300_000));
        fixture.back_up().await?;
        // Not the first time.
        let (first, old, new) = (fixture.key.clone(), Secret::random(), Secret::random());
        fixture.repository.rotate(&first, &old).await?;
        fixture.put("base/5/1", &noise(2, 300_000));
        fixture.back_up().await?;
        assert!(opens(&fixture, &first).await?.is_none());

        let wrapped = Wrapped::new(fixture.repository.store.clone(), move |call| {
            let gone = call.number >= from;
            Box::pin(async move { if gone { Then::Fail("it is gone") } else { Then::Go } })
        });
        let rotated =
            async { Repository::open(wrapped.clone(), &old).await?.rotate(&old, &new).await };
        let rotated = rotated.await;
        // As a place with both keys is opened.
        let (by_old, by_new) = (opens(&fixture, &old).await?, opens(&fixture, &new).await?);
        assert!(rotated.is_err() || by_old.is_none(), "call {from}: the old one still opens it");
        let Some(opened) = by_old.or(by_new) else { panic!("call {from}: no key opens it") };
        fixture.repository = opened;
        assert_eq!(fixture.check_all().await?.len(), 2, "call {from}");
        fixture.put("base/5/1", &noise(3, 300_000));
        fixture.back_up().await?;

        // The second try ends it, wherever the first one died.
        fixture.repository.rotate(&old, &new).await?;
        assert!(opens(&fixture, &old).await?.is_none(), "call {from}");
        fixture.repository = opens(&fixture, &new).await?.expect("the new key opens it");
        fixture.put("base/5/1", &noise(4, 300_000));
        fixture.back_up().await?;
        assert_eq!(fixture.check_all().await?.len(), 4, "call {from}");
        if wrapped.calls() <= from {
            assert!(from > 8 && rotated.is_ok());
            break;
        }
    }
    Ok(())
}
