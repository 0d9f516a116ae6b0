//! What a server does every day raises no alarm; what is done to it once, does.

use crate::{
    rig::{Rig, run},
    servers::{Server, folder, secrets},
};
use anyhow::{Result, ensure};
use std::process::Command;

fn pgbench(server: &Server, words: &[&str]) -> Result<()> {
    let installation = &server.instance.installation;
    let out = Command::new(installation.bin_dir.join("pgbench"))
        .args(["-h", server.instance.layout.run_dir.to_str().unwrap()])
        .args(["-p", &server.instance.port.to_string(), "-U", "sempre"])
        .args(words)
        .arg("postgres")
        .env("PGPASSWORD", secrets().admin)
        .output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_encrypted_raises_an_alarm_and_a_usual_load_none() -> Result<()> {
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;
    let session = server.start(&server.primary_settings()).await?;
    let rig = Rig::of(&server).await?;
    let _keeping = rig.keep_local(&server);
    pgbench(&server, &["-i", "-q"])?;
    run(&session, "create extension pgcrypto").await?;
    let letters = "select i, convert_to(repeat(md5(i::text), 10), 'utf8')";
    let fill = format!("create table letters as {letters} as t from generate_series(1, 50000) i");
    run(&session, &fill).await?;
    let first = rig.back_up(&server).await?;
    assert_eq!(first.alarms, [""; 0]);

    pgbench(&server, &["-c", "2", "-t", "400"])?;
    run(&session, "vacuum").await?;
    let usual = rig.back_up(&server).await?;
    assert_eq!(usual.alarms, [""; 0], "{:?}", usual.stats);
    // Nearly every block of the large table.
    assert!(usual.stats.rewritten_bytes > 10_000_000, "{:?}", usual.stats);

    run(&session, "update letters set t = encrypt(t, 'the key of a thief', 'aes')").await?;
    let encrypted = rig.back_up(&server).await?;
    let said = encrypted.alarms.join("; ");
    assert!(said.contains("was it encrypted?"), "{said} {:?}", encrypted.stats);
    // Each new row stands behind the old ones: in place, or not, it is noticed.
    assert!(encrypted.stats.noise_bytes > 15_000_000, "{:?}", encrypted.stats);

    run(&session, "drop table letters").await?;
    run(&session, "create table much as select repeat('x', 900) from generate_series(1, 99999)")
        .await?;
    let grown = rig.back_up(&server).await?;
    assert_eq!(grown.alarms, [""; 0], "too few backups were made to tell");
    run(&session, "drop table much").await?;
    let shrunk = rig.back_up(&server).await?;
    assert!(shrunk.alarms.join("; ").contains("shrank"), "{shrunk:?}");
    Ok(())
}
