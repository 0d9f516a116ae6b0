//! Logical slots live on after a promotion.

use crate::servers::{Server, caught_up, folder, member, until};
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
    let (before, copied) = (on_a.logical_slots().await?.remove(0), on_b.flush_lsn().await?);
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
        let slot = on_a.logical_slots().await?.remove(0);
        let state = on_a.logical_slot_state("feed").await?;
        let error = b.instance.install_logical_slot(&before, &state).unwrap_err().to_string();
        assert!(error.contains("reader has read on"), "{error}");
        let mut stranger = slot.clone();
        stranger.name = "../feed".into();
        assert!(b.instance.install_logical_slot(&stranger, &state).is_err());
        b.instance.install_logical_slot(&slot, &state)?;
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
    on_b.drop_logical_slot("feed").await?;
    assert!(on_b.logical_slots().await?.is_empty());
    Ok(())
}
