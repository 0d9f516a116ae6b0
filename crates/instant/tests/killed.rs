//! The process that serves is killed, or the machine loses its power, at any moment: what PostgreSQL
//! acknowledged is there when it goes on. Needs root, /dev/fuse and PostgreSQL.

mod common;

use anyhow::{Result, ensure};
use common::{
    Prepared,
    disk::Disk,
    numbers::{self, Writer},
    postgres::Postgres,
    server::{self, Server},
};
use std::{
    process::Child,
    time::{Duration, Instant},
};

/// Slow enough that some rounds pass before everything is local.
const RATE: u64 = 4 << 20;

fn rounds() -> u32 {
    std::env::var("SEMPRE_INSTANT_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4)
}

/// Started by the tests, as a process that can be killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: it is a part of the other tests"]
async fn serve() -> Result<()> {
    server::serve_if_asked().await
}

async fn prepare() -> Result<Prepared> {
    Prepared::new(10, |original| original.query(numbers::TABLE).map(drop)).await
}

/// Serves, starts, checks, and lets it work for a while; then `die`. How many were acknowledged.
fn round(
    prepared: &Prepared,
    postgres: &Postgres,
    acknowledged: u64,
    die: impl FnOnce(Server) -> Result<()>,
) -> Result<u64> {
    let mut server = Server::start(prepared, Some(RATE))?;
    prepared.bring_wal()?;
    postgres.start()?;
    numbers::check(postgres, acknowledged)?;
    let load = postgres.bench_behind(&["-n", "-c", "2", "-T", "600"])?;
    let writer = Writer::start(postgres, acknowledged + 1)?;
    let wait = Duration::from_millis(300 + rand::random_range(0..3500));
    let until = Instant::now() + wait;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        if rand::random_range(0..40) == 0 {
            postgres.query("checkpoint")?;
        }
    }
    let left = server.left()?;
    die(server)?;
    postgres.crash();
    end(load)?;
    // Not on files with holes.
    ensure!(postgres.start().is_err(), "it started though nobody serves its files");
    let acknowledged = writer.end()?;
    eprintln!("died after {wait:?} with {left} bytes left; {acknowledged} were acknowledged");
    Ok(acknowledged)
}

fn end(mut load: Child) -> Result<()> {
    load.kill()?;
    load.wait()?;
    Ok(())
}

/// At last it is whole.
fn finish(prepared: &Prepared, postgres: &Postgres, acknowledged: u64) -> Result<()> {
    let mut server = Server::start(prepared, None)?;
    postgres.start()?;
    server.say("switch")?;
    server.wait_for("switched")?;
    numbers::check(postgres, acknowledged)?;
    postgres.check()?;
    postgres.stop("fast")?;
    server.wait_for("unused")?;
    postgres.checksums()?;
    postgres.start()?;
    numbers::check(postgres, acknowledged)?;
    postgres.check()?;
    let accounts = postgres.query("select count(*) from pgbench_accounts")?;
    ensure!(accounts == "1000000", "{accounts}");
    postgres.stop("fast")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: mounts a file system"]
async fn what_was_acknowledged_survives_the_death_of_the_process() -> Result<()> {
    let prepared = prepare().await?;
    prepared.make_target()?;
    let postgres = Postgres::at(&prepared.target)?;
    let mut acknowledged = 0;
    for _ in 0..rounds() {
        acknowledged = round(&prepared, &postgres, acknowledged, Server::kill)?;
    }
    finish(&prepared, &postgres, acknowledged)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: mounts a file system"]
async fn what_was_acknowledged_survives_the_loss_of_power() -> Result<()> {
    let mut prepared = prepare().await?;
    let disk = Disk::new(prepared.scratch.path("image"), prepared.scratch.path("disk"))?;
    prepared.target = disk.at.join("data");
    prepared.make_target()?;
    let postgres = Postgres::with_sockets(&prepared.target, prepared.scratch.path("sockets"))?;
    // What was copied there by hand must be there as what the restore made.
    drop(Server::start(&prepared, Some(RATE))?);
    prepared.bring_wal()?;
    disk.unmount()?;
    disk.mount()?;
    let mut acknowledged = 0;
    for _ in 0..rounds() {
        acknowledged = round(&prepared, &postgres, acknowledged, |server| {
            disk.cut_power()?;
            server.kill()
        })?;
        disk.unmount()?;
        disk.mount()?;
        // As after the machine was started again: nothing is mounted.
        let refused = postgres.start().unwrap_err().to_string();
        ensure!(refused.contains("does not contain valid data"), "{refused}");
        let notice = std::fs::read_to_string(prepared.target.join("PG_VERSION"))?;
        ensure!(notice.contains("sempre restore --instant"), "{notice}");
    }
    finish(&prepared, &postgres, acknowledged)?;
    disk.unmount()
}

/// After the switch the process is needed for what was open by the mounts. If it dies all the same: errors for
/// who has such a file open, until it closes it; no data is lost, and new sessions see nothing of it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: mounts a file system"]
async fn dying_too_early_after_the_switch_costs_errors_and_no_data() -> Result<()> {
    let prepared = prepare().await?;
    prepared.make_target()?;
    let postgres = Postgres::at(&prepared.target)?;
    let mut server = Server::start(&prepared, None)?;
    prepared.bring_wal()?;
    postgres.start()?;
    let load = postgres.bench_behind(&["-n", "-c", "2", "-T", "600"])?;
    let writer = Writer::start(&postgres, 1)?;
    server.say("switch")?;
    let open: u64 = server.wait_for("switched")?.parse()?;
    ensure!(open > 0, "nothing is open by the mounts");
    std::thread::sleep(Duration::from_millis(500));
    server.kill()?;
    end(load)?;
    // The checkpointer closes its files after an error, and goes on.
    let patience = Instant::now() + Duration::from_secs(60);
    while let Err(error) = postgres.query("checkpoint") {
        ensure!(Instant::now() < patience, "{error}\n{}", postgres.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    let balances = "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) \
                    from pgbench_branches)";
    ensure!(postgres.query(balances)? == "t");
    postgres.check()?;
    postgres.stop("fast")?;
    let acknowledged = writer.end()?;
    postgres.checksums()?;
    postgres.start()?;
    numbers::check(&postgres, acknowledged)?;
    postgres.check()
}
