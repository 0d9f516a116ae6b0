//! Many incrementals, any of them forgotten: the rest come back.

use crate::{
    rig::{Rig, ask, run},
    servers::{Server, folder},
};
use anyhow::{Result, ensure};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sempre_backup::VerifyOptions;
use sempre_recovery::Goal;
use std::{collections::BTreeMap, process::Command, sync::Arc};

const ASKED: &str = "select count(*) || ' ' || sum(i) || ' ' || sum(length(t)) from many";

fn amcheck(server: &Server) -> Result<()> {
    let output = Command::new(server.instance.installation.program("pg_amcheck"))
        .args(["--all", "--install-missing", "--heapallindexed"])
        .env("PGHOST", &server.instance.layout.run_dir)
        .env("PGPORT", server.instance.port.to_string())
        .envs([("PGUSER", "sempre"), ("PGDATABASE", "postgres")])
        .env("PGPASSWORD", crate::servers::secrets().admin)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// Makes incrementals, forgets some, collects what nobody needs, reads all of what is left, and restores some.
async fn proved(incrementals: usize, forgotten: usize, restored: usize) -> Result<()> {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;
    let session = server.start(&server.primary_settings()).await?;
    let rig = Rig::of(&server).await?;
    let _keeping = rig.keep_local(&server);
    run(&session, "create table many (i int primary key, t text)").await?;
    run(&session, "create index on many (t)").await?;
    run(&session, "insert into many select i, md5(i::text) from generate_series(1, 20000) i")
        .await?;
    let mut expected = BTreeMap::new();
    let mut made = Vec::new();
    for n in 0..=incrementals {
        let from = rng.random_range(0..19_000);
        for sql in [
            format!("update many set t = md5(t || {n}) where i between {from} and {from} + 300"),
            format!("delete from many where i between {from} + 400 and {from} + 420"),
            format!("insert into many values ({n} + 100000, repeat(md5({n}::text), 20))"),
        ] {
            run(&session, &sql).await?;
        }
        if n % 10 == 9 {
            run(&session, "vacuum many").await?;
        }
        let is = ask(&server, ASKED).await?;
        let backup = rig.back_up(&server).await?;
        ensure!(backup.parent.as_ref() == made.last(), "{n} has another parent");
        made.push(backup.id.clone());
        expected.insert(backup.id, is);
    }
    server.crash();
    drop(session);

    for _ in 0..forgotten {
        let id = made.remove(rng.random_range(0..made.len()));
        rig.repository.forget(&id).await?;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
    let went = rig.repository.collect(u64::try_from(now)?).await?;
    ensure!(went.blocked.is_empty() && went.backups.len() == forgotten, "{went:?}");
    let found = rig.repository.verify(None, VerifyOptions::default(), Arc::default()).await?;
    let left = (incrementals + 1 - forgotten) as u64;
    ensure!(found.damages.is_empty() && found.backups == left, "{found:?}");
    let mut tried = vec![made[0].clone(), made[made.len() - 1].clone()];
    while tried.len() < restored {
        tried.push(made[rng.random_range(0..made.len())].clone());
    }
    for (n, id) in tried.iter().enumerate() {
        let (is, server) =
            rig.restored_from(id, &format!("restored-{n}"), Goal::Backup, ASKED).await?;
        ensure!(is == expected[id], "{id} came back as {is}, not {}", expected[id]);
        amcheck(&server)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_many_incrementals_come_back_whichever_are_forgotten() -> Result<()> {
    proved(15, 5, 3).await
}

/// The same at full length, about two minutes: `cargo nextest run -p sempre-recovery --run-ignored only hundred`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn the_rest_of_a_hundred_incrementals_come_back_whichever_ten_are_forgotten() -> Result<()> {
    proved(100, 10, 8).await
}
