//! What the terminal shows, as golden texts. `INSTA_UPDATE=always cargo test -p sempre-api` takes
//! them anew.

mod common;

use common::{change_database, change_record, change_seen, id, silence, snapshot};
use sempre_api::{render, status::status};
use sempre_model::{
    Lsn, Phase,
    observation::{DiskState, PathView, ProcessState, Role},
    record::{Cause, Switchover},
};

#[test]
fn a_healthy_cluster() {
    let shown = render::render_status(&status(&snapshot("m1")), false, 120);
    insta::assert_snapshot!(shown);
}

#[test]
fn a_healthy_cluster_on_a_narrow_terminal() {
    let shown = render::render_status(&status(&snapshot("m2")), false, 60);
    assert!(shown.lines().all(|line| line.chars().count() <= 60), "{shown}");
    insta::assert_snapshot!(shown);
}

#[test]
fn a_cascade_with_zones_and_tags() {
    let mut snapshot = snapshot("m1");
    change_record(&mut snapshot, |record| {
        let m3 = record.members.get_mut(&id("m3")).unwrap();
        m3.zone = Some("z2".into());
        m3.tags.never_primary = true;
        m3.tags.replicate_from = Some(id("m2"));
        record.sync.members.remove(&id("m3"));
    });
    change_database(&mut snapshot, "m1", |d| {
        d.sync.as_mut().unwrap().members.remove(&id("m3"));
    });
    change_database(&mut snapshot, "m3", |d| d.streaming_from = Some(id("m2")));
    insta::assert_snapshot!(render::render_status(&status(&snapshot), false, 100));
}

#[test]
fn everything_odd_has_its_reason() {
    let mut snapshot = snapshot("m1");
    silence(&mut snapshot, "m3", 65_000);
    change_record(&mut snapshot, |record| {
        record.paused = true;
        record.sync.members.remove(&id("m3"));
        record.switchover =
            Some(Switchover { to: Some(id("m2")), at_unix_ms: Some(common::NOW + 3_600_000) });
    });
    change_database(&mut snapshot, "m3", |d| d.lsn = Lsn(0x100_0000));
    change_database(&mut snapshot, "m1", |d| {
        d.lsn = Lsn(0x3_0500_0060);
        d.pending_restart = vec!["max_connections".into()];
    });
    change_database(&mut snapshot, "m2", |d| d.lsn = Lsn(0x3_0000_0000));
    change_seen(&mut snapshot, "m2", |seen| {
        seen.disk = DiskState::Full;
        seen.notes = vec!["a note\x1b[31m".into()];
    });
    snapshot.paths.get_mut(&id("m2")).unwrap()[1] = PathView { age_ms: Some(9_000), rtt_us: None };
    snapshot.certificate_expires_unix_ms = Some(common::NOW + 3 * 86_400_000);
    insta::assert_snapshot!(render::render_status(&status(&snapshot), false, 100));
}

#[test]
fn a_failover_under_way_without_a_quorum() {
    let mut snapshot = snapshot("m2");
    silence(&mut snapshot, "m1", 2_400);
    snapshot.raft_leader = None;
    snapshot.raft.contact_age_ms = Some(5_000);
    change_record(&mut snapshot, |record| {
        record.generation = record.generation.next();
        record.primary = None;
        record.phase = Phase::Fencing {
            from: Some(id("m1")),
            cause: Cause::MemberLost,
            target: None,
            allow_data_loss: false,
            began_unix_ms: common::NOW - 400,
            served_until_unix_ms: common::NOW - 1_200,
            evidence: vec!["m1 is silent on both paths".into()],
        };
    });
    change_database(&mut snapshot, "m3", |d| {
        d.process =
            ProcessState::Failing("FATAL:  could not open file\nLOG:  shutting down".into());
        d.role = Role::Unknown;
        d.streaming_from = None;
    });
    insta::assert_snapshot!(render::render_status(&status(&snapshot), false, 100));
}

#[test]
fn colours_only_if_asked() {
    let status = status(&snapshot("m1"));
    let plain = render::render_status(&status, false, 100);
    let painted = render::render_status(&status, true, 100);
    assert!(!plain.contains('\x1b'));
    assert!(painted.contains("\x1b["));
}

#[test]
fn lists() {
    let mut record = common::record();
    record.policy.lease_ttl_ms = 5_000;
    record.parameters.insert("work_mem".into(), "64MB".into());
    record.hba = vec!["host all all 10.0.0.0/8 scram-sha-256".into()];
    let shown = [
        render::render_history(&record.history, false, 120),
        render::render_events(&record.events, false, 70),
        render::render_config(&record, false, 80),
    ];
    insta::assert_snapshot!(shown.join("\n"));
}

/// The JSON is an interface: fields are added, never renamed or removed.
#[test]
fn the_json_of_the_status() {
    let json = serde_json::to_value(status(&snapshot("m1"))).unwrap();
    let read: sempre_api::Status = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(read, status(&snapshot("m1")));
    insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap());
}

#[test]
fn an_empty_record_is_no_reason_to_fall_over() {
    let mut snapshot = snapshot("m1");
    snapshot.record = Default::default();
    let shown = render::render_status(&status(&snapshot), false, 80);
    assert!(shown.contains("not initialised"), "{shown}");
    snapshot.seen.clear();
    snapshot.paths.clear();
    render::render_status(&status(&snapshot), true, 0);
    sempre_api::metrics::render(&snapshot, &[]);
}
