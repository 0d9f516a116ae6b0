//! Who commits numbers one after the other, and remembers which were acknowledged.

use super::postgres::Postgres;
use anyhow::{Context, Result, ensure};
use std::{
    io::{BufRead, BufReader},
    process::Child,
    thread::JoinHandle,
};

/// The table they are in.
pub const TABLE: &str = "create table numbers (n bigint primary key)";

pub struct Writer {
    psql: Child,
    acknowledged: JoinHandle<u64>,
}

impl Writer {
    /// Begins with this number.
    pub fn start(postgres: &Postgres, from: u64) -> Result<Self> {
        let mut psql = postgres.numbers(from)?;
        let lines = BufReader::new(psql.stdout.take().context("no output")?).lines();
        let acknowledged = std::thread::spawn(move || {
            lines.map_while(|line| line.ok()?.trim().parse().ok()).last().unwrap_or(from - 1)
        });
        Ok(Self { psql, acknowledged })
    }

    /// The last that was acknowledged, when the database is gone.
    pub fn end(mut self) -> Result<u64> {
        self.psql.wait()?;
        Ok(self.acknowledged.join().expect("it only reads"))
    }
}

/// All that were acknowledged are there, without gaps; removes one more that may be.
pub fn check(postgres: &Postgres, acknowledged: u64) -> Result<()> {
    let there = postgres.query("select count(*), coalesce(max(n), 0) from numbers")?;
    let (count, max) = there.split_once('|').context("two columns")?;
    ensure!(count == max, "there are {count} numbers up to {max}");
    let max: u64 = max.parse()?;
    // The one that was on its way may have been committed, too.
    ensure!(max >= acknowledged, "{acknowledged} was acknowledged, and {max} is the last there");
    postgres.query(&format!("delete from numbers where n > {acknowledged}"))?;
    Ok(())
}
