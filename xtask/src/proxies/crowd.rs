//! Many connections: idle ones, and ones that come and go.

use super::ways::{self, Way, Ways};
use super::{median, rate::per_second, table};
use anyhow::{Context, Result};
use std::{fs, thread::sleep, time::Duration};

/// Connections that are opened at the same time.
const AT_ONCE: usize = 50;
/// After they are open, until buffers are given back.
const SETTLE: Duration = Duration::from_secs(3);
/// Clients that come and go.
const COMING: &str = "16";

pub fn measure(ways: &Ways, rounds: usize, seconds: u32, idle: usize) -> Result<()> {
    let memory = format!("MB more with {idle} idle");
    let mut shown = table(&["way", "connections/s", &memory, "errors"]);
    for way in &ways.all {
        let rates = (0..rounds).map(|_| churn(ways, way, seconds)).collect::<Result<Vec<_>>>()?;
        // What hands each connection to a server of its own cannot hold more than the server.
        let pools = matches!(way.name, "sempre" | "pgbouncer");
        let (more, errors) = match way.pid.filter(|_| pools) {
            Some(pid) => {
                let (more, errors) = hold(&ways.dsn(way), pid, idle)?;
                (format!("{more:.1}"), errors.to_string())
            }
            None => ("-".into(), "-".into()),
        };
        shown.add_row([way.name.into(), format!("{:.0}", median(rates)), more, errors]);
    }
    println!("connections: a log-in, one SELECT, closed ({COMING} at a time)\n{shown}");
    Ok(())
}

fn churn(ways: &Ways, way: &Way, seconds: u32) -> Result<f64> {
    let mut command = ways.client(way, "pgbench");
    command.args(["-n", "-S", "-C", "-T", &seconds.to_string(), "-c", COMING]);
    per_second(&ways::output(&mut command)?).context("pgbench did not say how many")
}

/// MB that `count` idle connections take in the process, and how many could not be opened.
fn hold(dsn: &str, pid: u32, count: usize) -> Result<(f64, usize)> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let before = resident_kb(pid)?;
        let mut open = Vec::with_capacity(count);
        let mut errors = 0;
        for _ in 0..count.div_ceil(AT_ONCE) {
            let some = (0..AT_ONCE).map(|_| tokio_postgres::connect(dsn, tokio_postgres::NoTls));
            for done in futures_util::future::join_all(some).await {
                match done {
                    Ok((client, connection)) => {
                        open.push((client, tokio::spawn(connection)));
                    }
                    Err(error) => {
                        if errors == 0 {
                            eprintln!("cannot open: {error:?}");
                        }
                        errors += 1;
                    }
                }
            }
        }
        sleep(SETTLE);
        let after = resident_kb(pid)?;
        Ok((after.saturating_sub(before) as f64 / 1024.0, errors))
    })
}

fn resident_kb(pid: u32) -> Result<u64> {
    field(pid, "VmRSS:")
}

/// A field of `/proc/PID/status`, kB.
pub fn field(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).context("no such field")
}
