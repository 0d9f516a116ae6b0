//! What was measured, in tables.

use super::{
    tool::{self, Tool},
    watch::Cost,
};
use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use std::{collections::BTreeMap, path::Path};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Full,
    Incremental,
    Restore,
    RestoreWhole,
    Delta,
    DeltaWhole,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Full => "full backup",
            Phase::Incremental => "incremental, 1 % of pages changed",
            Phase::Restore => "restore, files",
            Phase::RestoreWhole => "restore, with replay",
            Phase::Delta => "delta restore, files",
            Phase::DeltaWhole => "delta restore, with replay",
        }
    }
}

/// Folders of a repository that hold WAL.
const WAL: [&str; 2] = ["wal", "archive"];

/// All figures.
pub struct Figures {
    tools: Vec<Tool>,
    costs: BTreeMap<(Phase, Tool), Vec<Cost>>,
    sizes: Vec<(Tool, u64, u64)>,
}

impl Figures {
    pub fn new(tools: &[Tool]) -> Self {
        Self { tools: tools.to_vec(), costs: BTreeMap::new(), sizes: Vec::new() }
    }

    pub fn add(&mut self, tool: &Tool, phase: Phase, cost: &Cost) {
        self.costs.entry((phase, *tool)).or_default().push(cost.clone());
    }

    /// Notes how large a repository is.
    pub fn size(&mut self, tool: &Tool, folder: &Path) -> Result<()> {
        let (mut backups_kb, mut wal_kb) = (0, 0);
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let size = tool::output("du", &["-sk", &entry.path().to_string_lossy()])?;
            let kb: u64 = size.split_whitespace().next().context("du says nothing")?.parse()?;
            match WAL.iter().any(|name| entry.file_name() == *name) {
                true => wal_kb += kb,
                false => backups_kb += kb,
            }
        }
        self.sizes.push((*tool, backups_kb, wal_kb));
        Ok(())
    }

    pub fn times(&self) -> Table {
        let mut header = vec!["phase", "tool", "runs", "s", "least s", "CPU s", "peak MB"];
        let peers = self.tools.iter().filter(|tool| **tool != Tool::Sempre);
        let ratios: Vec<String> = peers.clone().map(|peer| format!("x {}", peer.name())).collect();
        header.extend(ratios.iter().map(String::as_str));
        let mut table = table(&header);
        for ((phase, tool), costs) in &self.costs {
            let of = |value: fn(&Cost) -> f64| costs.iter().map(value).collect::<Vec<_>>();
            let seconds = median(of(|cost| cost.seconds));
            let mut row = vec![
                phase.name().to_owned(),
                tool.name().to_owned(),
                costs.len().to_string(),
                format!("{seconds:.2}"),
                format!("{:.2}", of(|cost| cost.seconds).into_iter().fold(f64::MAX, f64::min)),
                format!("{:.2}", median(of(|cost| cost.cpu_seconds))),
                format!("{:.0}", of(|cost| cost.peak_mb).into_iter().fold(0.0, f64::max)),
            ];
            for peer in peers.clone().filter(|_| *tool == Tool::Sempre) {
                let theirs = self.costs.get(&(*phase, *peer)).map(Vec::as_slice);
                let theirs = theirs.unwrap_or_default().iter().map(|cost| cost.seconds);
                row.push(format!("{:.2}", median(theirs.collect()) / seconds));
            }
            table.add_row(row);
        }
        table
    }

    pub fn sizes(&self) -> Table {
        let mut table = table(&["repository after the incrementals", "backups MB", "WAL MB"]);
        for (tool, backups_kb, wal_kb) in &self.sizes {
            let mb = |kb: &u64| format!("{:.0}", *kb as f64 / 1024.0);
            table.add_row([tool.name().to_owned(), mb(backups_kb), mb(wal_kb)]);
        }
        table
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header.iter().copied());
    table
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
