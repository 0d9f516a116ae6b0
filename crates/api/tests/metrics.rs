//! The metrics can be read by Prometheus, and say what the snapshot says.

mod common;

use common::{change_record, change_seen, id, silence, snapshot};
use sempre_api::{PoolView, Snapshot, metrics};
use sempre_model::backup::{ArchiveView, BackupKey, Proof, Repository, StoreAt};
use std::collections::{BTreeMap, BTreeSet};

/// Reads the text format strictly: each sample after its HELP and TYPE, names and labels well
/// formed, no sample twice. Labels `scope` and `name` are dropped from the keys.
fn read(snapshot: &Snapshot) -> BTreeMap<String, f64> {
    read_text(&metrics::render(snapshot, &[]))
}

fn read_text(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'));
    let mut samples = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut typed = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helped.insert(name.to_owned()), "{name} twice");
            assert!(!help.is_empty());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(helped.contains(name) && typed.insert(name.to_owned()), "{line}");
            assert!(["gauge", "counter"].contains(&kind), "{line}");
        } else {
            let (name, rest) = line.split_once('{').unwrap_or_else(|| panic!("{line}"));
            let (labels, value) = rest.rsplit_once("} ").unwrap();
            assert!(typed.contains(name), "{line}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            let own = labels.strip_prefix("scope=\"demo\",name=\"").unwrap();
            let labels = own.split_once('"').unwrap().1.trim_start_matches(',');
            let key = format!("{name}{{{labels}}}");
            let value = value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
            assert!(samples.insert(key, value).is_none(), "{line} twice");
        }
    }
    samples
}

fn expect(samples: &BTreeMap<String, f64>, wanted: &[(&str, f64)]) {
    for (name, value) in wanted {
        let key = if name.contains('{') { (*name).to_owned() } else { format!("{name}{{}}") };
        assert_eq!(samples.get(&key), Some(value), "{key}");
    }
}

#[test]
fn of_a_primary() {
    expect(
        &read(&snapshot("m1")),
        &[
            ("patroni_version", 100.0),
            ("patroni_postgres_running", 1.0),
            ("patroni_postmaster_start_time", 1_769_774_800.0),
            ("patroni_primary", 1.0),
            ("patroni_replica", 0.0),
            ("patroni_standby_leader", 0.0),
            ("patroni_xlog_location", 83_886_176.0),
            ("patroni_xlog_received_location", 0.0),
            ("patroni_xlog_replayed_location", 0.0),
            ("patroni_xlog_replayed_timestamp", 0.0),
            ("patroni_xlog_paused", 0.0),
            ("patroni_postgres_streaming", 0.0),
            ("patroni_postgres_in_archive_recovery", 0.0),
            ("patroni_postgres_server_version", 150_018.0),
            ("patroni_cluster_unlocked", 0.0),
            ("patroni_failsafe_mode_is_active", 0.0),
            ("patroni_failsafe_mode_enabled", 0.0),
            ("patroni_failsafe_member", 0.0),
            ("patroni_postgres_timeline", 2.0),
            ("patroni_dcs_last_seen", 1_769_860_799.0),
            ("patroni_pending_restart", 0.0),
            ("patroni_is_paused", 0.0),
            ("patroni_sync_standby", 0.0),
            ("patroni_quorum_standby", 0.0),
            ("patroni_postgres_state", 5.0),
            ("patroni_failover_priority", 1.0),
            ("sempre_generation", 2.0),
            ("sempre_writable", 1.0),
            ("sempre_lease_remaining_seconds", 1.89),
            ("sempre_lease_held", 1.0),
            ("sempre_sync_set_size", 2.0),
            ("sempre_sync_k", 1.0),
            ("sempre_record_version", 42.0),
            ("sempre_raft_term", 3.0),
            ("sempre_raft_quorum", 1.0),
            ("sempre_last_stall_seconds", 1.24),
            ("sempre_oddities", 0.0),
            ("sempre_certificate_expiry_seconds", 300.0 * 86_400.0),
            ("sempre_failovers_total{cause=\"member_lost\"}", 1.0),
            ("sempre_failovers_total{cause=\"bootstrap\"}", 1.0),
            ("sempre_lag_bytes{member=\"m2\",kind=\"replay\"}", 0.0),
            ("sempre_path_up{member=\"m2\",path=\"1\",host=\"10.0.2.2\"}", 1.0),
            ("sempre_path_rtt_seconds{member=\"w1\",path=\"0\",host=\"10.0.1.4\"}", 0.000_21),
            ("sempre_route_sessions{port=\"read_write\"}", 4.0),
            ("sempre_route_accepted_total", 17.0),
        ],
    );
}

#[test]
fn of_a_standby_in_trouble() {
    let mut snapshot = snapshot("m2");
    silence(&mut snapshot, "m1", 5_000);
    change_record(&mut snapshot, |record| {
        record.paused = true;
        record.members.get_mut(&id("m2")).unwrap().tags.never_primary = true;
    });
    expect(
        &read(&snapshot),
        &[
            ("patroni_primary", 0.0),
            ("patroni_replica", 1.0),
            ("patroni_quorum_standby", 1.0),
            ("patroni_xlog_received_location", 83_886_176.0),
            ("patroni_postgres_streaming", 1.0),
            ("patroni_cluster_unlocked", 1.0),
            ("patroni_is_paused", 1.0),
            ("patroni_failover_priority", 0.0),
            ("sempre_writable", 0.0),
            ("sempre_lease_remaining_seconds", 0.0),
            ("sempre_member_silent{member=\"m1\"}", 1.0),
            ("sempre_path_up{member=\"m1\",path=\"0\",host=\"10.0.1.1\"}", 0.0),
        ],
    );
}

#[test]
fn of_pools_under_the_names_of_pgbouncers_exporter() {
    let none = read(&snapshot("m1"));
    assert!(!none.keys().any(|key| key.starts_with("pgbouncer_")));

    let pool = |port, user: &str, first: f64| PoolView {
        port,
        database: "shop".into(),
        user: user.into(),
        values: metrics::POOLS
            .iter()
            .zip(0_u8..)
            .map(|((name, _), i)| (*name, first + f64::from(i)))
            .collect(),
    };
    let pools = [
        pool("read_write", "app", 1.0),
        pool("read_write", "o\"ne", 0.5),
        pool("read_only", "app", 100.0),
    ];
    let text = metrics::render(&snapshot("m1"), &pools);
    let samples = read_text(&text);
    assert_eq!(samples.keys().filter(|key| key.starts_with("pgbouncer_")).count(), 36);
    expect(
        &samples,
        &[
            (
                "pgbouncer_pools_client_active_connections{database=\"shop\",user=\"app\",port=\"read_write\"}",
                1.0,
            ),
            (
                "pgbouncer_pools_client_active_connections{database=\"shop\",user=\"o\\\"ne\",port=\"read_write\"}",
                0.5,
            ),
            (
                "pgbouncer_stats_client_wait_seconds_total{database=\"shop\",user=\"app\",port=\"read_only\"}",
                111.0,
            ),
        ],
    );
    assert!(text.contains("# TYPE pgbouncer_stats_queries_pooled_total counter\n"));
    assert!(text.contains("# TYPE pgbouncer_pools_client_maxwait_seconds gauge\n"));
}

#[test]
fn of_a_witness_and_of_nothing() {
    expect(
        &read(&snapshot("w1")),
        &[("patroni_postgres_running", 0.0), ("patroni_postgres_state", 12.0)],
    );
    let mut strange = snapshot("m1");
    change_record(&mut strange, |record| {
        record.members.get_mut(&id("m2")).unwrap().paths[0].host = "a\"b\\c\nd".into();
    });
    change_seen(&mut strange, "m1", |seen| seen.agent_version = "\n".into());
    let samples = read(&strange);
    assert!(samples.keys().any(|key| key.contains(r#"host="a\"b\\c\nd""#)));
}

#[test]
fn of_repositories_and_their_keys_are_nowhere() {
    let mut snapshot = snapshot("m1");
    change_record(&mut snapshot, |record| {
        let repository = Repository {
            store: StoreAt::Folder("/backup".into()),
            members: Default::default(),
            key: BackupKey("the key of the house".into()),
            made_unix_ms: 0,
        };
        record.backups.repositories.insert("main".into(), repository);
        record.backups.newest_unix_ms.insert("main".into(), 5_000);
        let proof = Proof {
            backup: "b".into(),
            at_unix_ms: 6_000,
            rto_ms: 7_500,
            bytes: 1,
            checks: Vec::new(),
            lost_bytes: Some(0),
            rpo_ms: Some(0),
        };
        record.backups.proved.insert("main".into(), Ok(proof));
    });
    let idle = read(&snapshot);
    expect(
        &idle,
        &[
            ("sempre_archive_running{repository=\"main\"}", 0.0),
            ("sempre_backup_last_success_timestamp_seconds{repository=\"main\"}", 5.0),
            ("sempre_restore_proved_seconds{repository=\"main\"}", 7.5),
        ],
    );
    assert!(!idle.contains_key("sempre_archive_lag_bytes{repository=\"main\"}"));
    change_seen(&mut snapshot, "m2", |observation| {
        let (timeline, end) = (sempre_model::Timeline(1), sempre_model::Lsn(1_000_000));
        let archive = ArchiveView {
            timeline,
            flushed: sempre_model::Lsn(999_000),
            server: end,
            gap: None,
            behind_ms: 1_500,
        };
        observation.archives.insert("main".into(), archive);
    });
    let busy = read(&snapshot);
    assert_eq!(busy["sempre_archive_running{repository=\"main\"}"], 1.0);
    assert!(busy["sempre_archive_lag_bytes{repository=\"main\"}"] >= 1_000.0);
    assert!(busy["sempre_archive_lag_seconds{repository=\"main\"}"] >= 1.5);
    let status = serde_json::to_string(&sempre_api::status::status(&snapshot)).unwrap();
    assert!(status.contains("/backup") && !status.contains("the key of the house"));
}
