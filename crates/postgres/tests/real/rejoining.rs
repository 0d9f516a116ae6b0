//! An old primary comes back: straight, or rewound.

use crate::servers::{Server, caught_up, folder, member, secrets, until};
use anyhow::{Context, Result};
use sempre_postgres::{CloneOptions, DataDir, Divergence, Foreign};
use std::fs;

async fn pair(root: &std::path::Path) -> Result<(Server, Server)> {
    let mut a = Server::new(root, "a").await;
    let mut b = Server::empty(root, "b");
    let on_a = a.start(&a.primary_settings()).await?;
    on_a.execute("CREATE TABLE t (n int)").await?;
    on_a.ensure_slots(&[member("b")].into()).await?;
    b.instance.clone_from(&a.as_upstream(), &CloneOptions::default(), |_| ()).await?;
    let on_b = b.start(&b.standby_settings(Some(&a))).await?;
    on_b.ensure_slots(&[member("a")].into()).await?;
    until("it streams", async || Ok(on_b.observe().await?.streaming_from.is_some())).await?;
    Ok((a, b))
}

/// Starts as a standby of `of`, and waits until it has everything.
async fn follow(server: &mut Server, of: &mut Server) -> Result<()> {
    let session = server.start(&server.standby_settings(Some(of))).await?;
    let upstream = of.session().await?;
    upstream.execute("INSERT INTO t VALUES (99)").await?;
    until("it streams", async || {
        Ok(session.observe().await?.streaming_from == Some(of.instance.me.clone()))
    })
    .await?;
    caught_up(&upstream, &session)
        .await
        .with_context(|| server.instance.tail_log(20).join("\n"))?;
    let (own, theirs) = (session.observe().await?, upstream.observe().await?);
    assert_eq!(own.timeline, theirs.timeline);
    Ok(())
}

#[tokio::test]
async fn a_diverged_primary_is_salvaged_and_rewound() -> Result<()> {
    let root = folder();
    let (mut a, mut b) = pair(root.path()).await?;
    let (on_a, on_b) = (a.session().await?, b.session().await?);

    // Phase 1: b is promoted, and both write.
    b.reconfigure(&on_b, &b.standby_settings(None)).await?;
    until("b is fenced", async || Ok(on_b.fence_position().await?.is_some())).await?;
    on_a.execute("INSERT INTO t SELECT generate_series(1, 5000); SELECT pg_switch_wal()").await?;
    on_a.execute("INSERT INTO t SELECT generate_series(1, 5000)").await?;
    let last = on_a.flush_lsn().await?;
    b.instance.write_config(&b.primary_settings()).await?;
    on_b.promote().await?;
    on_b.execute("INSERT INTO t VALUES (1)").await?;
    on_b.checkpoint().await?;

    // Phase 2: a crashes; its WAL says where it is.
    a.crash();
    let own = a.instance.end_of_wal().await?;
    assert!(own.1 >= last && own.0.0 == 1, "{own:?}, wrote to {last}");
    let theirs = a.instance.history_of(&b.as_upstream(), &secrets().admin).await?;
    let Divergence::At { lsn, bytes_discarded } = a.instance.divergence(own, &theirs)? else {
        panic!("it has diverged");
    };
    assert_eq!(bytes_discarded, own.1.0 - lsn.0);

    // Phase 3: what goes is kept.
    let saved = a.instance.salvage(own, lsn).await?;
    let note = fs::read_to_string(saved.join("README.txt"))?;
    assert!(note.contains(&lsn.to_string()) && note.contains("member a"), "{note}");
    let segments = fs::read_dir(&saved)?.flatten().filter(|f| f.file_name().len() == 24).count();
    assert_eq!(segments, 2, "the one of the fork and the one after it");

    // Phase 4: an unreachable source changes nothing.
    let mut nowhere = b.as_upstream();
    nowhere.port = 1;
    a.instance.rewind(&nowhere, &secrets().admin).await.unwrap_err();
    assert!(matches!(a.instance.inspect(), DataDir::Present(_)), "{:?}", a.instance.inspect());

    // Phase 5: rewound, it streams again.
    a.instance.rewind(&b.as_upstream(), &secrets().admin).await?;
    assert!(a.instance.is_standby_prepared());
    follow(&mut a, &mut b).await?;

    // Phase 6: an orderly stop of the primary; the roles change without a rewind.
    let on_a = a.session().await?;
    caught_up(&on_b, &on_a).await?;
    b.stop();
    let own = b.instance.end_of_wal().await?;
    a.reconfigure(&on_a, &a.standby_settings(None)).await?;
    until("a is fenced at the very end", async || Ok(on_a.fence_position().await? == Some(own)))
        .await?;
    a.instance.write_config(&a.primary_settings()).await?;
    on_a.promote().await?;
    on_a.checkpoint().await?;
    // a rewind or a copy leaves no slots
    assert_eq!(on_a.ensure_slots(&[member("b")].into()).await?, ["sempre_b"]);
    let theirs = b.instance.history_of(&a.as_upstream(), &secrets().admin).await?;
    assert_eq!(b.instance.divergence(own, &theirs)?, Divergence::None);
    follow(&mut b, &mut a).await
}

#[tokio::test]
async fn a_standby_that_was_ahead_is_rewound_too() -> Result<()> {
    let root = folder();
    let (mut a, mut b) = pair(root.path()).await?;
    let mut c = Server::empty(root.path(), "c");
    let on_a = a.session().await?;
    on_a.ensure_slots(&[member("b"), member("c")].into()).await?;
    c.instance.clone_from(&a.as_upstream(), &CloneOptions::default(), |_| ()).await?;
    let on_c = c.start(&c.standby_settings(Some(&a))).await?;
    caught_up(&on_a, &on_c).await?;

    // b gets less than c, and is promoted all the same; c crashes
    let on_b = b.session().await?;
    b.reconfigure(&on_b, &b.standby_settings(None)).await?;
    until("b is fenced", async || Ok(on_b.fence_position().await?.is_some())).await?;
    on_a.execute("INSERT INTO t SELECT generate_series(1, 5000)").await?;
    caught_up(&on_a, &on_c).await?;
    a.crash();
    c.crash();
    b.instance.write_config(&b.primary_settings()).await?;
    on_b.promote().await?;
    on_b.checkpoint().await?;
    on_b.ensure_slots(&[member("a"), member("c")].into()).await?;

    let own = c.instance.end_of_wal().await?;
    let theirs = c.instance.history_of(&b.as_upstream(), &secrets().admin).await?;
    assert!(matches!(c.instance.divergence(own, &theirs)?, Divergence::At { .. }));
    c.instance.rewind(&b.as_upstream(), &secrets().admin).await?;
    follow(&mut c, &mut b).await?;

    // a rewind that does not end is seen, and a fresh copy replaces it
    fs::write(a.instance.layout.config_dir.join("rewind-unfinished"), "")?;
    assert_eq!(a.instance.inspect(), DataDir::Foreign(Foreign::Unfinished));
    a.instance.clone_from(&b.as_upstream(), &CloneOptions::default(), |_| ()).await?;
    assert!(matches!(a.instance.inspect(), DataDir::Present(_)));
    let left: Vec<_> = fs::read_dir(root.path().join("a"))?.flatten().collect();
    assert_eq!(left.len(), 6, "data, config, run, salvage, log, tls: {left:?}");
    follow(&mut a, &mut b).await
}
