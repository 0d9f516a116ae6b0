//! Logical slots live on after a promotion.

use crate::servers::{Server, caught_up, folder, member, secrets, until};
use anyhow::Result;
use sempre_model::Lsn;
use sempre_postgres::CloneOptions;

const READ: &str = "DO $$BEGIN IF (SELECT count(*) FROM pg_logical_slot_get_binary_changes('feed', \
     NULL, NULL, 'proto_version', '1', 'publication_names', 'p')) = 0 \
     THEN RAISE 'nothing to read'; END IF; END$$";

#[tokio::test]
async fn a_logical_slot_goes_on_where_its_reader_was() -> Result<()> {
    let root = folder();
    let mut a = Server::new(root.path(), "a").await;
    let mut b = Server::empty(root.path(), "b");
    let mut primary = a.primary_settings();
    primary.parameters.insert("wal_level".into(), "logical".into());
    let on_a = a.start(&primary).await?;
    on_a.execute("CREATE TABLE t (n int); CREATE PUBLICATION p FOR TABLE t").await?;
    on_a.ensure_slots(&[member("b")].into()).await?;
    // from 17 on the server copies it by itself
    let by_itself = b.instance.installation.major >= 17;
    let failover = if by_itself { ", failover => true" } else { "" };
    let make = format!("SELECT pg_create_logical_replication_slot('feed', 'pgoutput'{failover})");
    on_a.execute(&make).await?;
    b.instance.clone_from(&a.as_upstream(), &CloneOptions::default(), |_| ()).await?;

    let mut standby = b.standby_settings(Some(&a));
    standby.parameters = primary.parameters.clone();
    let mut on_b = b.start(&standby).await?;
    // The copy of the cluster has no WAL from before it: the reader must have gone past that.
    let copied = on_b.flush_lsn().await?;
    let before = if by_itself { None } else { Some(on_a.copy_logical_slot("feed").await?) };
    until("the reader has read on", async || {
        on_a.execute("INSERT INTO t VALUES (1)").await?;
        on_a.checkpoint().await?;
        on_a.execute(READ).await?;
        Ok(on_a.logical_slots().await?[0].restart_lsn > copied)
    })
    .await?;
    on_a.checkpoint().await?;
    if !by_itself {
        caught_up(&on_a, &on_b).await?;
        b.stop();
        let copy = on_a.copy_logical_slot("feed").await?;
        let before = before.unwrap();
        let error = b.instance.install_logical_slot(&before).unwrap_err().to_string();
        assert!(error.contains("reader has read on"), "{error}");
        on_a.copy_logical_slot("../feed").await.unwrap_err();
        b.instance.install_logical_slot(&copy)?;
        assert_eq!(b.instance.installed_logical_slots()?, ["feed"]);
        on_b = b.start(&standby).await?;
    }
    on_a.execute("INSERT INTO t VALUES (1)").await?;
    on_a.execute(READ).await?;
    let confirmed = on_a.logical_slots().await?[0].confirmed_lsn;
    assert!(confirmed > Lsn(0));
    caught_up(&on_a, &on_b).await?;
    until("the copy has followed", async || {
        if !by_itself {
            on_b.advance_logical_slot("feed", confirmed).await?;
        }
        let slots = on_b.logical_slots().await?;
        Ok(slots.first().is_some_and(|s| s.confirmed_lsn >= confirmed && !s.lost))
    })
    .await?;

    a.crash();
    b.instance.write_config(&primary).await?;
    on_b.promote().await?;
    on_b.execute(READ).await.unwrap_err();
    on_b.execute("INSERT INTO t VALUES (2)").await?;
    on_b.execute(READ).await?;
    assert!(on_b.drop_logical_slot("feed").await?);
    assert!(on_b.logical_slots().await?.is_empty());
    Ok(())
}

/// Reads all there is, and fails unless it has exactly this many inserted rows.
fn read_rows(rows: usize) -> String {
    format!(
        "DO $$DECLARE n int; BEGIN SELECT count(*) INTO n FROM \
         pg_logical_slot_get_binary_changes('feed', NULL, NULL, 'proto_version', '1', \
         'publication_names', 'p') WHERE get_byte(data, 0) = ascii('I'); \
         IF n <> {rows} THEN RAISE '% rows', n; END IF; END$$"
    )
}

#[tokio::test]
async fn what_was_under_way_where_decoding_starts_is_not_missed() -> Result<()> {
    let root = folder();
    let mut a = Server::new(root.path(), "a").await;
    let mut b = Server::empty(root.path(), "b");
    if b.instance.installation.major >= 17 {
        return Ok(()); // the server's own duty
    }
    let mut primary = a.primary_settings();
    primary.parameters.insert("wal_level".into(), "logical".into());
    let mut standby = b.standby_settings(Some(&a));
    standby.parameters = primary.parameters.clone();
    let on_a = a.start(&primary).await?;
    on_a.ensure_slots(&[member("b")].into()).await?;
    b.instance.clone_from(&a.as_upstream(), &CloneOptions::default(), |_| ()).await?;
    on_a.execute("CREATE DATABASE d").await?;
    let admin = secrets().admin;
    let feeder = a.instance.session_in(&admin, "d").await?;
    let first = a.instance.session_in(&admin, "d").await?;
    let second = a.instance.session_in(&admin, "d").await?;
    feeder.execute("CREATE TABLE public.t (n int)").await?;
    feeder.execute("CREATE PUBLICATION p FOR TABLE public.t").await?;
    feeder.execute("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')").await?;
    let on_b = b.start(&standby).await?;
    caught_up(&on_a, &on_b).await?;
    // The first transaction is under way where the second one's decoding will have to start.
    first.execute("BEGIN; INSERT INTO public.t VALUES (1)").await?;
    on_a.checkpoint().await?;
    feeder.execute(&read_rows(0)).await?;
    let start = on_a.logical_slots().await?[0].restart_lsn;
    second.execute("BEGIN; INSERT INTO public.t VALUES (2)").await?;
    first.execute("COMMIT").await?;
    until("decoding starts there", async || {
        on_a.checkpoint().await?;
        feeder.execute(&read_rows(1)).await.or(feeder.execute(&read_rows(0)).await)?;
        Ok(on_a.logical_slots().await?[0].restart_lsn > start)
    })
    .await?;
    on_a.checkpoint().await?;
    let copy = on_a.copy_logical_slot("feed").await?;
    second.execute("INSERT INTO public.t VALUES (3); COMMIT").await?;
    caught_up(&on_a, &on_b).await?;
    b.stop();
    b.instance.install_logical_slot(&copy)?;
    let on_b = b.start(&standby).await?;
    a.crash();
    b.instance.write_config(&primary).await?;
    on_b.promote().await?;
    let reader = b.instance.session_in(&admin, "d").await?;
    reader.execute(&read_rows(2)).await?;
    Ok(())
}
