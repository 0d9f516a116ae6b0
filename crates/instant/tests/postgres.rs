//! A PostgreSQL runs on its backup, and goes over to local files. Needs root, /dev/fuse and PostgreSQL.

mod common;

use anyhow::{Result, ensure};
use common::{
    Prepared, Scratch,
    postgres::{self, Postgres},
};
use sempre_instant::{Instant, Options, Phase, STATE_DIR};
use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

const RATE: u64 = 12 << 20;

fn scale() -> u32 {
    std::env::var("SEMPRE_INSTANT_SCALE").ok().and_then(|s| s.parse().ok()).unwrap_or(10)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: mounts a file system"]
async fn a_database_runs_on_its_backup_and_goes_over_to_local_files() -> Result<()> {
    let prepared = Prepared::new(scale(), |original| {
        let place = original.data.with_extension("tablespace");
        postgres::make_dir(&place)?;
        original.query(&format!("create tablespace there location '{}'", place.display()))?;
        original.query(
            "create table there tablespace there as select g, repeat(md5(g::text), 20) as t \
             from generate_series(1, 50000) g",
        )?;
        Ok(())
    })
    .await?;
    let target = prepared.make_target()?;
    let place = prepared.scratch.path("original.tablespace");
    fs::remove_dir_all(&place)?;
    std::process::Command::new("sync").status()?;

    // It answers at once.
    let began = std::time::Instant::now();
    let options = Options { max_bytes_per_s: Some(RATE), ..Options::default() };
    let (repository, backup) = (prepared.repository.clone(), prepared.backup.clone());
    let mut serving = Instant::mount(repository, backup, &target, options).await?;
    let mounted = began.elapsed();
    prepared.bring_wal()?;
    let began = std::time::Instant::now();
    let postgres = Postgres::at(&target)?;
    postgres.start()?;
    let count = postgres.query("select abalance from pgbench_accounts where aid = 77777")?;
    ensure!(count == "0");
    let progress = serving.progress();
    eprintln!(
        "{} MB: mounted after {mounted:?}, first query {:?} later; left {} MB, waited for {} kB",
        progress.total_bytes >> 20,
        began.elapsed(),
        progress.left_bytes >> 20,
        progress.waited_for_bytes >> 10,
    );
    ensure!(serving.mounted() == [target.join("base"), place], "{:?}", serving.mounted());
    ensure!(progress.phase == Phase::BringingIn && progress.left_bytes > 0, "{progress:?}");

    // It reads and writes meanwhile.
    let rows = (scale() * 100_000).to_string();
    postgres
        .query("create table more as select g, md5(g::text) from generate_series(1, 50000) g")?;
    postgres.query("create database other")?;
    let mut load = postgres.bench_behind(&["-n", "-c", "4", "-T", "600"])?;
    ensure!(postgres.query("select count(*) from pgbench_accounts")? == rows);
    ensure!(postgres.query("select count(*) from there")? == "50000");
    postgres.query("update there set t = 'new' where g % 100 = 0")?;
    postgres.query("vacuum full pgbench_branches")?;
    postgres.query("truncate pgbench_history")?;
    postgres.query("checkpoint")?;

    // It goes over, under load.
    tokio::time::timeout(Duration::from_secs(300), serving.switch()).await??;
    eprintln!("switched, {} files open by the mounts", serving.open_handles());
    ensure!(serving.progress().left_bytes == 0 && !target.join(STATE_DIR).exists());
    postgres.query("create table after as select g from generate_series(1, 50000) g")?;
    postgres.query("checkpoint")?;
    postgres.check()?;

    // Since PostgreSQL 15 a dropped database lets every process close its files, idle ones too.
    postgres.query("drop database other")?;
    let unused = tokio::time::timeout(Duration::from_secs(20), serving.unused()).await;
    eprintln!("{} files open by the mounts, {unused:?}", serving.open_handles());
    ensure!(load.try_wait()?.is_none(), "pgbench ended: {:?}", load.wait_with_output()?);
    ensure!(unused.is_ok() && serving.open_handles() == 0, "{:?}", serving.progress());
    drop(serving);
    postgres.query("insert into after values (7)")?;
    std::process::Command::new("kill").args(["-INT", &load.id().to_string()]).status()?;
    let said = load.wait_with_output()?;
    let errors = String::from_utf8_lossy(&said.stderr);
    ensure!(!errors.contains("ERROR") && !errors.contains("FATAL"), "{errors}");
    postgres.check()?;
    let balances = "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) \
                    from pgbench_branches)";
    ensure!(postgres.query(balances)? == "t");

    // And starts there again.
    postgres.stop("fast")?;
    ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains(&*target.to_string_lossy()));
    postgres.checksums()?;
    postgres.start()?;
    postgres.check()?;
    ensure!(postgres.query("select count(*) from there where t = 'new'")? == "500");
    let log = postgres.log();
    let bad = ["PANIC", "could not open", "could not read", "could not write", "could not fsync"];
    ensure!(!bad.iter().any(|bad| log.contains(bad)), "{log}");
    Ok(())
}

/// A whole cluster in a mounted directory, its WAL too: everything it does with files goes through the mount.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: mounts a file system"]
async fn a_cluster_is_made_on_a_mount_and_goes_over() -> Result<()> {
    let scratch = Scratch::new()?;
    let dir = scratch.path("original/base");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("1"), vec![7; 1 << 20])?;
    let (repository, _) = scratch.repository().await?;
    let backup = common::back_up(&repository, &scratch.path("original")).await?;
    let options = Options { mount_above_bytes: 0, bring_in: false, ..Options::default() };
    let target = scratch.path("data");
    let mut serving = Instant::mount(repository, backup, &target, options).await?;
    for dir in [&target, &target.join("base")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    let place = scratch.path("sockets");
    let inside = target.join("base/cluster");
    Postgres::init(&inside)?;
    let postgres = Postgres::with_sockets(&inside, place)?;
    postgres.start()?;
    postgres.bench(&["-i", "-q", "-s", "5"])?;
    postgres.bench(&["-c", "4", "-T", "4"])?;
    postgres.query("select pg_switch_wal()")?;
    postgres.query("checkpoint")?;
    // Its directory is in the mount: it stays there, and what it opens, too, until it is restarted.
    postgres.crash();
    postgres.start()?;
    postgres.check()?;
    serving.start_bringing_in()?;
    serving.switch().await?;
    postgres.bench(&["-n", "-c", "4", "-T", "3"])?;
    postgres.check()?;
    postgres.stop("fast")?;
    serving.unused().await;
    postgres.checksums()?;
    postgres.start()?;
    postgres.check()
}
