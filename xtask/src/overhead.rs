//! `cargo xtask bench --idle` and `--throughput`: what managing a database costs.

use crate::lab::Start;
use anyhow::Result;
use comfy_table::{Table, presets};
use sempre_lab::{
    client::Target,
    cost,
    load::{self, Load},
    plain::Plain,
    report::median,
    rig::{self, Base},
    scope,
};
use serde_json::json;
use std::time::Duration;
use tokio::time::sleep;

/// After a start, until caches and elections are quiet.
const SETTLE: Duration = Duration::from_secs(5);
const IDLE_FOR: Duration = Duration::from_secs(20);
const WRITE_FOR: Duration = Duration::from_secs(10);
/// Writers without a pause: enough to keep two cores busy.
const WRITERS: usize = 8;
/// PostgreSQL alone, with its replication encrypted as sempre's is.
const ENCRYPTED: &str = "plain, TLS";
const WHOLE_DEADLINE: Duration = Duration::from_secs(60);

/// Memory and processor time of idle clusters.
pub fn idle(starts: &[Start], as_json: bool) -> Result<bool> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["make", "host", "program", "processes", "RSS MB", "PSS MB", "% of a core"]);
    for start in starts {
        let (make, costs) = scope::run(async {
            let rig = start.start(false).await?;
            sleep(SETTLE).await;
            Ok((rig.make(), cost::measure(rig.base(), IDLE_FOR).await?))
        })?;
        for cost in costs {
            if as_json {
                println!("{}", json!({"make": make, "cost": cost}));
                continue;
            }
            let mb = |kb: u64| format!("{:.1}", kb as f64 / 1024.0);
            table.add_row([
                make.to_owned(),
                cost.host,
                cost.program,
                cost.processes.to_string(),
                mb(cost.resident_kb),
                mb(cost.proportional_kb),
                format!("{:.2}", cost.core_percent),
            ]);
        }
    }
    if !as_json {
        println!("{table}");
    }
    Ok(true)
}

struct Rate {
    make: &'static str,
    per_second: u64,
    p50_us: u64,
    p99_us: u64,
}

/// Commits a second and their time at the primary itself, with standbys that commits wait for.
pub fn throughput(starts: &[Start], rounds: usize, as_json: bool) -> Result<bool> {
    let rates = scope::run(async {
        let mut rates = Vec::new();
        for _ in 0..rounds {
            for (make, encrypted) in [("plain", false), (ENCRYPTED, true)] {
                let plain = match encrypted {
                    true => Plain::encrypted(3).await?,
                    false => Plain::start(3, true).await?,
                };
                plain.synchronous().await?;
                rates.push(rate(make, &plain.base, plain.target("h1")).await?);
            }
            for start in starts {
                let rig = start.start(false).await?;
                let primary = rig::wait_whole(rig.base(), WHOLE_DEADLINE).await?;
                rates.push(rate(rig.make(), rig.base(), rig.direct(&primary)).await?);
            }
        }
        Ok(rates)
    })?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "make",
        "commits/s (median)",
        "p50 ms",
        "p99 ms",
        "of plain",
        "of plain, TLS",
    ]);
    let of = |make: &str, value: fn(&Rate) -> u64| {
        median(rates.iter().filter(|rate| rate.make == make).map(value).collect())
    };
    let plain = ["plain", ENCRYPTED].map(|make| of(make, |rate| rate.per_second));
    for make in ["plain", ENCRYPTED, "sempre", "patroni"] {
        let per_second = of(make, |rate| rate.per_second);
        if per_second == 0 {
            continue;
        }
        let ms = |us: u64| format!("{:.2}", us as f64 / 1e3);
        let (p50, p99) = (of(make, |rate| rate.p50_us), of(make, |rate| rate.p99_us));
        let share =
            |plain: u64| format!("{:.1} %", per_second as f64 / plain.max(1) as f64 * 100.0);
        if as_json {
            println!(
                "{}",
                json!({"make": make, "commits_per_s": per_second, "p50_us": p50, "p99_us": p99})
            );
        }
        let [of_plain, of_encrypted] = plain.map(share);
        let row = [make.into(), per_second.to_string(), ms(p50), ms(p99), of_plain, of_encrypted];
        table.add_row(row);
    }
    if !as_json {
        println!("{table}");
    }
    Ok(true)
}

async fn rate(make: &'static str, base: &Base, target: Target) -> Result<Rate> {
    let options = load::Options {
        writers: WRITERS,
        period: Duration::ZERO,
        ..load::Options::new(target, "lab_rate")
    };
    let load = Load::start(&base.app, options).await?;
    sleep(WRITE_FOR).await;
    let report = load.finish().await?;
    let us = |ms: f64| (ms * 1e3) as u64;
    let rate = Rate {
        make,
        per_second: report.acked as u64 * 1000 / report.duration_ms.max(1),
        p50_us: us(report.p50_ms),
        p99_us: us(report.p99_ms),
    };
    eprintln!("{make}: {} commits/s, p50 {} ms", rate.per_second, report.p50_ms);
    Ok(rate)
}
