//! How long it takes until the database answers, by size: run by name. Needs root, /dev/fuse and PostgreSQL.
//!
//! `SEMPRE_INSTANT_SCALES=13,100` names pgbench scales (15 MB each), `SEMPRE_INSTANT_LARGE_GB=100` the size of
//! the large one without a database.

mod common;

use anyhow::Result;
use common::{Prepared, Scratch, postgres::Postgres};
use sempre_instant::{Instant, Options};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

fn setting(name: &str, otherwise: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| otherwise.to_owned())
}

/// The repository is not in memory when it is needed.
fn forget(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            forget(&path)?;
        } else {
            let file = File::open(&path)?;
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: mounts a file system"]
async fn the_first_query_is_answered_in_time_whatever_the_size() -> Result<()> {
    for scale in setting("SEMPRE_INSTANT_SCALES", "5,20").split(',') {
        let prepared = Prepared::new(scale.parse()?, |_| Ok(())).await?;
        let target = prepared.make_target()?;
        forget(&prepared.scratch.path("repository"))?;

        let began = std::time::Instant::now();
        let (repository, backup) = (prepared.repository.clone(), prepared.backup.clone());
        let mut serving = Instant::mount(repository, backup, &target, Options::default()).await?;
        let mounted = began.elapsed();
        prepared.bring_wal()?;
        let copied = began.elapsed() - mounted;
        let postgres = Postgres::at(&target)?;
        postgres.start()?;
        let started = began.elapsed() - mounted - copied;
        postgres.query("select abalance from pgbench_accounts where aid = 77777")?;
        // Copying WAL stands for what recovery does, and is not counted.
        let answered = began.elapsed() - copied;
        let waited = serving.progress().waited_for_bytes;
        let meanwhile = postgres.bench(&["-n", "-c", "2", "-T", "3", "-S"])?;
        serving.local().await;
        let local = began.elapsed();
        let total = serving.progress().total_bytes;
        serving.switch().await?;
        let after = postgres.bench(&["-n", "-c", "2", "-T", "3", "-S"])?;
        let rate = |said: &str| {
            said.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap_or("?").to_owned()
        };
        println!(
            "{} MB: mounted {mounted:?}, PostgreSQL ready {started:?} later, first query {answered:?} \
             after the beginning ({} kB waited for); all local after {local:?}\n  select-only meanwhile \
             {}\n  and after the switch {}",
            total >> 20,
            waited >> 10,
            rate(&meanwhile),
            rate(&after),
        );
        postgres.check()?;
        postgres.query("create database a")?;
        postgres.query("drop database a")?;
        serving.unused().await;
        postgres.stop("fast")?;

        let plain = prepared.scratch.path("plain");
        let began = std::time::Instant::now();
        forget(&prepared.scratch.path("repository"))?;
        prepared
            .repository
            .restore_files(&prepared.backup, &plain, Default::default(), Default::default())
            .await?;
        println!("  a plain restore takes {:?}", began.elapsed());
    }
    Ok(())
}

/// Files of 1 GiB with something in every block, and nearly nothing on disk.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: mounts a file system"]
async fn a_large_one_is_mounted_in_time() -> Result<()> {
    let scratch = Scratch::new()?;
    let gigabytes: u32 = setting("SEMPRE_INSTANT_LARGE_GB", "2").parse()?;
    let dir = scratch.path("original/base/5");
    fs::create_dir_all(&dir)?;
    for number in 0..gigabytes {
        let file = File::create(dir.join(format!("16384.{number}")))?;
        file.set_len(1 << 30)?;
        for block in 0..(1_u64 << 30) / u64::from(sempre_backup::BLOCK_BYTES) {
            let content = (u64::from(number) << 32 | block).to_le_bytes();
            file.write_all_at(&content, block * u64::from(sempre_backup::BLOCK_BYTES))?;
        }
    }
    let (repository, _) = scratch.repository().await?;
    let backup = common::back_up(&repository, &scratch.path("original")).await?;
    fs::remove_dir_all(scratch.path("original"))?;
    forget(&scratch.path("repository"))?;
    let began = std::time::Instant::now();
    let options = Options { bring_in: false, ..Options::default() };
    let serving = Instant::mount(repository, backup, &scratch.path("data"), options).await?;
    let mounted = began.elapsed();
    let last = File::open(scratch.path(&format!("data/base/5/16384.{}", gigabytes - 1)))?;
    let mut content = [0; 8];
    last.read_exact_at(&mut content, (1 << 30) - u64::from(sempre_backup::BLOCK_BYTES))?;
    ensure!(u64::from_le_bytes(content) >> 32 == u64::from(gigabytes) - 1);
    println!(
        "{gigabytes} GiB: mounted after {mounted:?}, read {:?} later",
        began.elapsed() - mounted
    );
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("  {peak} (with the backup)");
    drop(last);
    serving.stop().await?;
    Ok(())
}
