//! `cargo xtask proxies`: what a client pays on its way through `sempre`, `PgBouncer` and `HAProxy`,
//! in turns, to the same server.
//!
//! The server is the primary of a `sempre demo` with one member, so that its database is reached
//! directly, through the member's own read-write port, and through the two others.

mod bulk;
mod crowd;
mod rate;
mod ways;

use anyhow::Result;
use comfy_table::{Table, presets};
use std::path::PathBuf;
use ways::Ways;

#[derive(clap::Args)]
pub struct Arguments {
    /// Rounds of each measurement; medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each pgbench run
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Clients of each pgbench run
    #[arg(long, default_value_t = 16)]
    clients: u32,
    /// Idle connections whose memory is measured
    #[arg(long, default_value_t = 5_000)]
    idle: usize,
    /// Size of what COPY moves, MB
    #[arg(long, default_value_t = 1_000)]
    copy_mb: u32,
    /// Only this part, several times if wished
    #[arg(long = "part", value_enum)]
    parts: Vec<Part>,
    /// Policy of sempre, as key=value
    #[arg(long = "set")]
    settings: Vec<String>,
    /// This binary of sempre, instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// `pgbench -S` in its three protocol modes.
    Rate,
    /// Connections opened and closed, and many that are idle.
    Crowd,
    /// COPY in and out, and one large row.
    Bulk,
}

pub fn main(arguments: &Arguments) -> Result<bool> {
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => crate::project::build_sempre()?,
    };
    let wanted = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    let ways = Ways::start(&binary, &arguments.settings)?;
    ways.pgbench_init()?;
    if wanted(Part::Rate) {
        rate::measure(&ways, arguments.rounds, arguments.seconds, arguments.clients)?;
    }
    if wanted(Part::Crowd) {
        crowd::measure(&ways, arguments.rounds, arguments.seconds, arguments.idle)?;
    }
    if wanted(Part::Bulk) {
        bulk::measure(&ways, arguments.rounds, arguments.copy_mb)?;
    }
    Ok(true)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header.iter().copied());
    table
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
