//! The end of WAL, as we read it and as PostgreSQL does.

use crate::servers::{Server, folder, until};
use anyhow::Result;
use std::{fs::OpenOptions, os::unix::fs::FileExt};

#[tokio::test]
async fn we_and_recovery_come_to_the_same_end() -> Result<()> {
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;

    // an orderly stop: the checkpoint is the last record
    let session = server.start(&server.primary_settings()).await?;
    session.execute("CREATE TABLE t (n int, x text)").await?;
    server.stop();
    let clean = server.instance.end_of_wal().await?;
    let checkpoint = server.instance.control_data()?.checkpoint_lsn;
    assert!(clean.1.0 > checkpoint.0 && clean.1.0 - checkpoint.0 < 256, "{clean:?} {checkpoint}");

    // crashes after small records, records over many pages, and segment switches
    let loads = [
        ("INSERT INTO t SELECT n, 'x' FROM generate_series(1, 3000) n", true),
        (
            "INSERT INTO t SELECT 1, string_agg(md5(n::text), '') FROM generate_series(1, 20000) n",
            true,
        ),
        ("INSERT INTO t VALUES (1, 'y'); SELECT pg_switch_wal()", true),
        ("SELECT pg_logical_emit_message(true, 'm', repeat('z', 20000000))", true),
        // nobody waits for this one: it may be there in part
        ("SELECT pg_logical_emit_message(false, 'm', repeat('z', 40000000))", false),
        ("SELECT pg_switch_wal(); CHECKPOINT; SELECT pg_switch_wal()", true),
    ];
    for (round, (load, whole)) in loads.iter().enumerate() {
        let session = server.start(&server.primary_settings()).await?;
        session.execute(load).await?;
        let wrote = session.flush_lsn().await?;
        server.crash();
        let ours = server.instance.end_of_wal().await?;
        assert!(!whole || ours.1 >= wrote, "round {round}: {ours:?}, but it wrote to {wrote}");

        // torn: what follows the end is garbage, as after a power cut
        if round == 0 {
            let bytes = server.instance.control_data()?.wal_segment_bytes;
            let name = format!("{:08X}{:08X}{:08X}", ours.0.0, 0, ours.1.0 / bytes);
            let file = server.instance.layout.data_dir.join("pg_wal").join(name);
            let file = OpenOptions::new().write(true).open(file)?;
            file.write_all_at(&[0x5A; 700], ours.1.0 % bytes)?;
            assert_eq!(server.instance.end_of_wal().await?, ours);
        }

        // recovery as a standby replays to its end, and adds nothing
        let session = server.start(&server.standby_settings(None)).await?;
        until("recovery comes to the same end", async || {
            let seen = session.observe().await?;
            anyhow::ensure!(seen.replay_lsn <= ours.1, "it went beyond: {seen:?}");
            Ok(seen.replay_lsn == ours.1 && seen.timeline == ours.0)
        })
        .await?;
        assert_eq!(session.fence_position().await?, Some(ours), "round {round}");
        session.promote().await?;
        session.checkpoint().await?;
        server.stop();
    }
    let end = server.instance.end_of_wal().await?;
    assert_eq!(end.0.0 as usize, loads.len() + 1);
    Ok(())
}
