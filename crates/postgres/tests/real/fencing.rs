//! Standbys: cloned, observed, fenced.

use crate::servers::{Server, caught_up, folder, member, secrets, until};
use anyhow::Result;
use sempre_model::{Lsn, observation::Role};
use sempre_postgres::{CloneOptions, DataDir, Error};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

#[tokio::test]
async fn a_clone_streams_and_a_fence_stops_it_exactly() -> Result<()> {
    let root = folder();
    let mut a = Server::new(root.path(), "a").await;
    let mut b = Server::empty(root.path(), "b");
    let on_a = a.start(&a.primary_settings()).await?;
    on_a.execute("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)").await?;

    // slots
    let others: BTreeSet<_> = [member("b"), member("x-1")].into();
    assert_eq!(on_a.ensure_slots(&others).await?, ["sempre_b", "sempre_x_1"]);
    assert!(on_a.ensure_slots(&others).await?.is_empty());
    assert!(on_a.slots().await?.iter().all(|s| s.restart_lsn > Lsn(0)));
    let others: BTreeSet<_> = [member("b")].into();
    assert_eq!(on_a.ensure_slots(&others).await?, ["sempre_x_1"]);

    // an interrupted copy leaves nothing that looks whole
    let options = CloneOptions { slot: Some("sempre_b".into()), max_rate_kib: Some(1024) };
    let source = a.as_upstream();
    let slow = b.instance.clone_from(&source, &options, |_| ());
    let slow = tokio::time::timeout(std::time::Duration::from_millis(700), slow).await;
    assert!(slow.is_err(), "{slow:?}");
    assert_eq!(b.instance.inspect(), DataDir::Missing);

    let seen = Mutex::new(Vec::new());
    let options = CloneOptions { slot: Some("sempre_b".into()), ..CloneOptions::default() };
    until("the slot is free again", async || {
        Ok(on_a.slots().await?.iter().all(|s| s.active_pid.is_none()))
    })
    .await?;
    b.instance.clone_from(&source, &options, |p| seen.lock().unwrap().push(p)).await?;
    let seen = seen.into_inner()?;
    assert!(seen.last().is_some_and(|p| Some(p.done_bytes) >= p.total_bytes), "{seen:?}");

    // it streams
    let on_b = b.start(&b.standby_settings(Some(&a))).await?;
    caught_up(&on_a, &on_b).await?;
    until("it streams", async || {
        let seen = on_a.observe().await?.downstreams.remove(&member("b"));
        let flushed = seen.is_some_and(|s| s.state == "streaming" && s.flush_lsn > Lsn(0));
        Ok(flushed && on_b.observe().await?.streaming_from.is_some())
    })
    .await?;
    let (of_a, of_b) = (on_a.observe().await?, on_b.observe().await?);
    assert_eq!((of_a.role, of_b.role), (Role::Primary, Role::Standby));
    assert_eq!((of_a.timeline.0, of_b.timeline.0), (1, 1));
    assert_eq!(of_a.system_identifier, of_b.system_identifier);
    assert_eq!(of_b.streaming_from, Some(member("a")));
    assert_eq!(of_b.sender_host.as_deref(), Some("127.0.0.1"));
    assert!(of_b.receiver_age_ms.is_some());
    assert_eq!(of_a.downstreams.len(), 1);
    let seen = &of_a.downstreams[&member("b")];
    assert_eq!(seen.state, "streaming");
    assert_eq!(seen.client_addr.as_deref(), Some("127.0.0.1"));
    assert!(of_a.redo_bytes > 0);

    // a walsender that is ended comes back
    assert_eq!(on_a.terminate_walsender(&member("b"), Some("10.0.0.1")).await?, 0);
    assert_eq!(on_a.terminate_walsender(&member("b"), None).await?, 1);
    until("it streams again", async || {
        Ok(on_a.observe().await?.downstreams.contains_key(&member("b")))
    })
    .await?;

    // a slot on a standby does not keep WAL for ever
    on_b.ensure_slots(&[member("a")].into()).await?;
    let kept = on_b.slots().await?[0].restart_lsn;
    on_a.execute("INSERT INTO t SELECT generate_series(1, 1000)").await?;
    caught_up(&on_a, &on_b).await?;
    let positions = BTreeMap::from([(member("a"), Lsn(u64::MAX))]);
    assert_eq!(on_b.advance_slots(&positions).await?, 1);
    assert!(on_b.slots().await?[0].restart_lsn > kept);

    // a fence is refused while an upstream is configured
    assert!(matches!(on_b.fence_position().await, Err(Error::DataDir { .. })));

    // fence, in the middle of a writing load
    let load = tokio::spawn(async move {
        for _ in 0..200 {
            on_a.execute("INSERT INTO t SELECT generate_series(1, 50)").await?;
        }
        anyhow::Ok(on_a)
    });
    b.reconfigure(&on_b, &b.standby_settings(None)).await?;
    let fenced = Mutex::new(None);
    until("it is fenced", async || {
        *fenced.lock().unwrap() = on_b.fence_position().await?;
        Ok(fenced.lock().unwrap().is_some())
    })
    .await?;
    let (timeline, lsn) = fenced.into_inner()?.unwrap();
    assert_eq!(timeline.0, 1);
    let on_a = load.await??;
    assert!(on_a.flush_lsn().await? > lsn, "the primary went on");

    // the position is what replay comes to, and stays
    until("all is replayed", async || Ok(on_b.observe().await?.replay_lsn >= lsn)).await?;
    assert_eq!(on_b.observe().await?.replay_lsn, lsn);
    assert_eq!(on_b.fence_position().await?, Some((timeline, lsn)));
    assert!(on_b.observe().await?.streaming_from.is_none());

    // and still so after a crash, when nothing has been received since
    drop(on_b);
    b.crash();
    assert_eq!(b.instance.end_of_wal().await?, (timeline, lsn));
    let on_b = b.start(&b.standby_settings(None)).await?;
    assert_eq!(on_b.fence_position().await?, Some((timeline, lsn)));
    assert_eq!(on_b.observe().await?.timeline, timeline);

    // the next generation: the promoted one goes on from exactly there
    on_b.promote().await?;
    on_b.checkpoint().await?;
    let history = b.instance.history_of(&b.as_upstream(), &secrets().admin).await?;
    assert_eq!(history.ancestors, [(timeline, lsn)]);
    assert_eq!(on_b.observe().await?.role, Role::Primary);
    Ok(())
}
