//! The checkers find what they are there for, shown with plain PostgreSQL: rows that vanish, and two
//! members that take writes after a careless failover. Needs root.

use sempre_lab::{
    load::{self, Load},
    plain::Plain,
    probe::{self, Acceptance, Probe},
    rig::wait_until,
    scope,
};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_database_restarted_in_place_loses_nothing() {
    scope::run(async {
        let mut plain = Plain::start(1, false).await?;
        let options = load::Options::new(plain.target("h1"), "rows");
        let load = Load::start(&plain.base.app, options).await?;
        wait_until("writes", DEADLINE, async || load.fewest_acks() > 20).await?;
        let killed = Instant::now();
        plain.base.topology.power_off("h1")?;
        plain.base.topology.restore("h1")?;
        plain.run("h1").await?;
        wait_until("writes go on", DEADLINE, async || load.all_written_since(killed)).await?;
        let report = load.finish().await?;
        assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
        assert!(report.acked > 80 && report.errors > 0 && report.sessions_cut > 0, "{report:?}");
        assert!(!report.idle_session_survived && report.stall_ms > 10, "{report:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_careless_failover_is_found_out() {
    scope::run(async {
        let plain = Plain::start(2, true).await?;
        let base = &plain.base;
        let members = base.stations.iter().map(|(h, s)| (h.as_str(), s, plain.target(h)));
        let probe = Probe::start(members, Acceptance::Local);
        let load = Load::start(&base.app, load::Options::new(plain.target("h1"), "rows")).await?;
        wait_until("writes", DEADLINE, async || load.fewest_acks() > 20).await?;
        // The standby misses what follows, and is promoted while the primary goes on.
        base.topology.cut("h2")?;
        let cut = Instant::now();
        wait_until("writes go on", DEADLINE, async || load.all_written_since(cut)).await?;
        plain.promote("h2").await?;
        let promoted = Instant::now();
        wait_until("writes go on", DEADLINE, async || load.all_written_since(promoted)).await?;
        plain.wait_for_probe_rows("h2").await?;
        base.topology.restore("h2")?;
        plain.ask("h1", "delete from rows where n = 7").await?;
        let report = load.finish().await?;
        assert_eq!(report.lost, 4, "one of each writer: {report:?}");
        assert_eq!(report.lost_rows[0], (0, 7));
        let spans = probe.finish().await?;
        assert_eq!(probe::violations(&spans).len(), 1, "{spans:?}");
        let (h1, h2) = (plain.count("h1", "rows").await?, plain.count("h2", "rows").await?);
        assert!(h2 < h1, "{h2} rows at h2, {h1} at h1");
        Ok(())
    })
    .unwrap();
}
