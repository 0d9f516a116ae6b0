//! `cargo xtask versions`: what depends on PostgreSQL's version, with one installation after the
//! other.

use crate::{
    project::cargo,
    suites::{Count, watch},
    tally::{Dialect, Tally},
};
use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Servers alone; then clusters of real members: a demo, planned and unplanned changes of primary,
/// logical slots.
const TESTS: [&[&str]; 3] = [
    &["--package", "sempre-postgres", "--test", "real"],
    &["--package", "sempre", "--test", "demo"],
    &["--package", "sempre", "--test", "whole", "--", "logical", "hand_over"],
];

#[derive(clap::Args)]
pub struct Arguments {
    /// The bin folder of an installation; several times for several versions
    #[arg(long, required = true)]
    pg_bin: Vec<PathBuf>,
}

pub fn main(arguments: &Arguments) -> Result<bool> {
    let mut total = Tally::default();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["version", "passed", "failed", "skipped"]);
    for bin in &arguments.pg_bin {
        let version = version(bin)?;
        println!("==== {version}");
        let mut tally = Tally::default();
        for test in TESTS {
            let mut command = cargo();
            command.args(["test", "--no-fail-fast"]).args(test).env("SEMPRE_PG_BIN", bin);
            let (success, counted) = watch(&mut command, Count::Lines(Dialect::Libtest))?;
            tally += counted;
            if !success && counted.failed == 0 {
                // It broke off before it counted.
                tally.failed += 1;
            }
        }
        let Tally { passed, failed, skipped } = tally;
        let numbers = [passed, failed, skipped].map(|n| n.to_string());
        let [passed, failed, skipped] = numbers;
        table.add_row([version, passed, failed, skipped]);
        total += tally;
    }
    println!("{table}");
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(total.failed == 0)
}

/// What `postgres --version` says.
fn version(bin: &Path) -> Result<String> {
    let program = bin.join("postgres");
    let output = Command::new(&program)
        .arg("--version")
        .output()
        .with_context(|| format!("could not run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success() && !text.is_empty(), "{} has no version", program.display());
    Ok(text)
}
