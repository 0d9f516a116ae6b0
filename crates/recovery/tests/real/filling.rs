//! A standby's data directory from the repository, and how it goes on from there.

use crate::{
    rig::{Rig, ask, fetch_command, run},
    servers::{Server, caught_up, folder, member, until},
};
use anyhow::Result;
use sempre_model::Timeline;
use sempre_postgres::{DataDir, History};
use sempre_recovery::Fill;
use std::{fs, sync::Arc};

const ROWS: &str = "select count(*) || ' ' || coalesce(sum(id), 0) from t";

fn fill(rig: &Rig, to: &Server, system_identifier: u64, history: Option<History>) -> Fill {
    let (instance, place) = (Box::new(to.instance.clone()), rig.place.clone());
    Fill { instance, place, system_identifier, history, threads: 2 }
}

#[tokio::test]
async fn a_standby_comes_from_the_repository_and_streams_on() -> Result<()> {
    let root = folder();
    let mut primary = Server::new(root.path(), "m1").await;
    let settings = primary.primary_settings();
    let session = primary.start(&settings).await?;
    session.ensure_slots(&[member("m2")].into()).await?;
    let rig = Rig::of(&primary).await?;
    let mut keeping = rig.keep_local(&primary);
    run(&session, "create table t (id int primary key, x text)").await?;
    let rows = |from: u32, to: u32| {
        format!("insert into t select i, repeat('x', 500) from generate_series({from}, {to}) i")
    };
    run(&session, &rows(1, 2_000)).await?;
    let identifier = primary.instance.control_data()?.system_identifier;

    let mut standby = Server::empty(root.path(), "m2");
    let none = fill(&rig, &standby, identifier, None).run(&fetch_command(), Arc::default()).await;
    assert!(none.unwrap_err().to_string().contains("none of its 0 backups"));
    let backup = rig.back_up(&primary).await?;
    // Several segments of WAL behind it, the last of them not whole.
    for at in 0..3 {
        run(&session, &rows(2_001 + at * 1_000, 3_000 + at * 1_000)).await?;
        run(&session, "select pg_switch_wal()").await?;
    }
    let end = run(&session, &rows(5_001, 5_010)).await?;
    keeping.until(end).await?;

    // Of another cluster, or another future: not that one.
    let other = fill(&rig, &standby, identifier + 1, None);
    other.run(&fetch_command(), Arc::default()).await.unwrap_err();
    let parted = History { timeline: Timeline(2), ancestors: vec![(Timeline(1), backup.start)] };
    let parted = fill(&rig, &standby, identifier, Some(parted));
    let parted = parted.run(&fetch_command(), Arc::default()).await.unwrap_err().to_string();
    assert!(parted.contains("timeline 2 or one before it"), "{parted}");

    standby.instance.begin_filling()?;
    assert!(matches!(standby.instance.inspect(), DataDir::Foreign(_) | DataDir::Missing));
    let history = session.history().await?;
    let task = fill(&rig, &standby, identifier, Some(history.clone()));
    let filled = task.run(&fetch_command(), Arc::default()).await?;
    assert!(!matches!(standby.instance.inspect(), DataDir::Present(_)), "it is not done yet");
    standby.instance.end_filling()?;
    assert!(filled.backup == backup.id && filled.end >= end, "{filled:?}, {end}");
    assert_eq!(filled.timeline, Timeline(1));

    // It is at the end before it follows anybody.
    let settings = standby.standby_settings(None);
    let alone = standby.start(&settings).await?;
    assert!(alone.observe().await?.replay_lsn >= end);
    assert_eq!(ask(&standby, ROWS).await?, ask(&primary, ROWS).await?);
    drop(alone);
    standby.stop();
    let settings = standby.standby_settings(Some(&primary));
    let following = standby.start(&settings).await?;
    run(&session, &rows(6_000, 6_100)).await?;
    caught_up(&session, &following).await?;
    assert_eq!(ask(&standby, ROWS).await?, ask(&primary, ROWS).await?);
    until("it streams", async || Ok(following.observe().await?.streaming_from.is_some())).await?;
    drop(following);
    standby.stop();

    // Over what is there, but for what is damaged and what does not belong there.
    let data_dir = &standby.instance.layout.data_dir;
    fs::write(data_dir.join("global/pg_filenode.map"), "no")?;
    fs::write(data_dir.join("too-much"), "x")?;
    standby.instance.begin_filling()?;
    let again = task.run(&fetch_command(), Arc::default()).await?;
    standby.instance.end_filling()?;
    assert!(again.fetched_bytes < filled.fetched_bytes / 2, "{again:?}, {filled:?}");
    assert!(!data_dir.join("too-much").exists());
    let following = standby.start(&settings).await?;
    caught_up(&session, &following).await?;
    assert_eq!(ask(&standby, ROWS).await?, ask(&primary, ROWS).await?);
    Ok(())
}
