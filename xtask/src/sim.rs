//! `cargo xtask sim`: runs the simulation, which is a workspace of its own.

use crate::project;
use anyhow::{Context, Result};
use std::process::Command;

#[derive(clap::Args)]
pub struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// Only this one; `-- --trace` prints what happens in it
    #[arg(long)]
    seed: Option<u64>,
    /// The record by itself instead of whole clusters: the real consensus crate
    #[arg(long)]
    raft: bool,
    /// Passed on to the simulation
    #[arg(last = true)]
    more: Vec<String>,
}

/// How the simulation is run.
pub fn command(seeds: u64, seed: Option<u64>, raft: bool, more: &[String]) -> Command {
    let mut command = project::sim_cargo();
    command.args(["run", "--quiet", "--release", "--", "--seeds", &seeds.to_string()]);
    if raft {
        command.arg("--raft");
    }
    if let Some(seed) = seed {
        command.args(["--seed", &seed.to_string()]);
    }
    command.args(more);
    command
}

pub fn main(arguments: &Arguments) -> Result<bool> {
    let mut command = command(arguments.seeds, arguments.seed, arguments.raft, &arguments.more);
    Ok(command.status().context("could not start cargo")?.success())
}
