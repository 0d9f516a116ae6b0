//! What managing a database takes from its host: memory and processor time of everything that runs
//! there but the database itself.

use crate::rig::Base;
use anyhow::Result;
use serde::Serialize;
use std::{collections::BTreeMap, fs, time::Duration};
use tokio::time::{Instant, sleep};

/// Processes of one name on one host.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Where.
    pub host: String,
    /// Which program.
    pub program: String,
    /// How many processes.
    pub processes: usize,
    /// Resident memory of all, kB; pages that several share count for each.
    pub resident_kb: u64,
    /// Resident memory of all, kB; pages that several share are divided among them.
    pub proportional_kb: u64,
    /// Of one core, per cent.
    pub core_percent: f64,
}

/// Measures for `duration`, while the caller does nothing with the cluster.
pub async fn measure(base: &Base, duration: Duration) -> Result<Vec<Cost>> {
    let hosts = base.topology.hosts().iter().map(String::as_str).chain([crate::topology::APP]);
    let watched: Vec<(String, String, u32)> = hosts
        .flat_map(|host| {
            let processes = base.topology.processes(host).into_iter();
            processes.map(|p| (host.to_owned(), p.name, p.pid)).collect::<Vec<_>>()
        })
        .filter(|(_, name, _)| name != "postgres")
        .collect();
    let began = Instant::now();
    let before: BTreeMap<u32, u64> = watched.iter().map(|(.., pid)| (*pid, ticks(*pid))).collect();
    sleep(duration).await;
    let seconds = began.elapsed().as_secs_f64();
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut costs: BTreeMap<(String, String), Cost> = BTreeMap::new();
    for (host, program, pid) in watched {
        let used = ticks(pid).saturating_sub(before.get(&pid).copied().unwrap_or_default());
        let cost = costs.entry((host.clone(), program.clone())).or_insert(Cost {
            host,
            program,
            processes: 0,
            resident_kb: 0,
            proportional_kb: 0,
            core_percent: 0.0,
        });
        let (resident, proportional) = memory(pid);
        cost.processes += 1;
        cost.resident_kb += resident;
        cost.proportional_kb += proportional;
        cost.core_percent += used as f64 / per_second / seconds * 100.0;
    }
    Ok(costs.into_values().collect())
}

/// Processor time used so far, in the kernel's clock ticks; 0 of a process that is gone.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything; fields are counted after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum()
}

/// Resident and proportional memory, kB.
fn memory(pid: u32) -> (u64, u64) {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let of = |key: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or_default()
    };
    (of("Rss:"), of("Pss:"))
}
