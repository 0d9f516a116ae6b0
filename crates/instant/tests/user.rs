//! The same without root, by `fusermount3`: as the user that runs the database. Needs root to become that user.

mod common;

use anyhow::{Result, ensure};
use common::{
    Prepared, numbers,
    postgres::Postgres,
    server::{self, Server},
};
use std::process::Command;

const RATE: u64 = 20 << 20;

/// Started by the test, as another user.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: it is a part of the other test"]
async fn serve() -> Result<()> {
    server::serve_if_asked().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: becomes another user. `scripts/setup.sh --test` installs fuse3 for it"]
async fn the_databases_user_restores_without_root() -> Result<()> {
    let prepared = Prepared::new(5, |original| original.query(numbers::TABLE).map(drop)).await?;
    prepared.make_target()?;
    let mut give = Command::new("chown");
    give.args(["-R", "postgres:"]).arg(prepared.scratch.path("repository"));
    ensure!(give.status()?.success());

    let mut server = Server::start_as_user(&prepared, Some(RATE))?;
    prepared.bring_wal()?;
    let postgres = Postgres::at(&prepared.target)?;
    postgres.start()?;
    let mut load = postgres.bench_behind(&["-n", "-c", "2", "-T", "600"])?;
    postgres.query("checkpoint")?;
    ensure!(server.left()? > 0);
    // It dies, and goes on.
    server.kill()?;
    postgres.crash();
    load.kill()?;
    load.wait()?;
    let mut server = Server::start_as_user(&prepared, None)?;
    postgres.start()?;
    let mut load = postgres.bench_behind(&["-n", "-c", "2", "-T", "600"])?;
    server.say("switch")?;
    server.wait_for("switched")?;
    postgres.check()?;
    postgres.query("create database a")?;
    postgres.query("drop database a")?;
    server.wait_for("unused")?;
    ensure!(load.try_wait()?.is_none(), "pgbench ended");
    load.kill()?;
    load.wait()?;
    postgres.stop("fast")?;
    postgres.checksums()?;
    postgres.start()?;
    postgres.check()
}
