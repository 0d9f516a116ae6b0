//! What every store promises: the same for a folder, an S3-compatible store and another member.

use anyhow::Result;
use bytes::Bytes;
use sempre_backup::{Error, Store};
use std::sync::Arc;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// What every store promises.
pub async fn keeps_its_promises(store: Arc<dyn Store>) -> Result<()> {
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
    let now = super::real_now();
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
