//! The routing table, made from what this member knows.

use crate::state::State;
use sempre_decide::Millis;
use sempre_model::{
    Member, MemberId, MemberKind, Record,
    observation::{Database, ProcessState, Role},
    record::Phase,
};
use sempre_route::{Limits, Standby, Table, Target};
use std::collections::BTreeMap;

/// A silent primary stays in the table this long past its detection time, ms: sessions on it may
/// well live, and only a newer generation says that they do not.
const PATIENCE_MS: u64 = 5_000;
/// Lag is shown to routing in steps, so that the table does not change with every byte.
const LAG_STEP_BYTES: u64 = 1 << 20;

/// The table (its version is set by the caller).
pub fn table(state: &State, hosts: &BTreeMap<MemberId, Vec<String>>, now: Millis) -> Table {
    let record = &state.record;
    let target = |member: &Member| Target {
        member: member.name.clone(),
        hosts: hosts.get(&member.name).cloned().unwrap_or_default(),
        port: member.ports.database,
        rest_port: Some(member.ports.rest),
    };
    let mut table = Table {
        generation: record.generation,
        cut_below: record.generation,
        limits: Limits {
            // An administrator who gave the databases a certificate wants clients to use it.
            client_tls: record.policy.client_tls || own_certificates(record),
            database_tls: own_certificates(record),
            ..Limits::from(&record.policy)
        },
        ..Table::default()
    };
    table.warm = state.warming.target.as_ref().and_then(|to| record.member(to)).map(target);
    let primary = record.primary.as_ref().and_then(|p| record.member(p));
    let leading = primary.and_then(|p| database(state, &p.name, now));
    match (&record.phase, primary, &leading) {
        (Phase::Serving, Some(primary), Some(database))
            if database.admitted && database.generation == record.generation =>
        {
            table.primary = Some(target(primary));
        }
        (Phase::Serving, Some(primary), Some(database)) => {
            table.primary_stopped = matches!(
                database.process,
                ProcessState::Crashed | ProcessState::Stopped | ProcessState::Failing(_)
            );
            table.why_no_primary = format!("{} does not let clients in yet", primary.name);
        }
        (Phase::Serving, Some(primary), None) => {
            table.why_no_primary = format!("the primary {} is not heard", primary.name);
        }
        (phase, _, _) => {
            table.primary_stopped = false;
            table.draining = matches!(phase, Phase::HandingOver { .. });
            table.why_no_primary =
                format!("the cluster is {} generation {}", phase.name(), record.generation);
        }
    }
    // Of a primary that rests (it runs as a standby) nobody knows how far others have gone.
    let leading = leading.filter(|d| d.role == Role::Primary);
    let lsn = leading.as_ref().map(|d| d.lsn);
    // One that has gone further on an older timeline, and is not rewound yet, does not lag at all.
    let follows = |d: &Database| {
        let same = |leading: &Database| d.timeline == leading.timeline;
        d.streaming_from.is_some() && leading.as_ref().is_some_and(same)
    };
    for member in record.data_members() {
        let heard = database(state, &member.name, now);
        let rests = heard.as_ref().is_some_and(|d| d.role == Role::Standby);
        let leads = record.primary.as_ref() == Some(&member.name);
        if member.kind == MemberKind::Witness || leads && !rests {
            continue;
        }
        match heard {
            Some(d) if d.process == ProcessState::Running && d.role == Role::Standby => {
                let lag_fits = lsn.is_some() || record.policy.route_stale_reads;
                if !member.tags.no_route && lag_fits {
                    let lag = lsn.map_or(0, |lsn| lsn.bytes_since(d.replay_lsn));
                    let lag_bytes = lag / LAG_STEP_BYTES * LAG_STEP_BYTES;
                    let (target, follows) = (target(member), follows(&d));
                    table.standbys.push(Standby { target, lag_bytes, follows });
                }
            }
            Some(d) if d.process == ProcessState::Starting => {}
            _ => table.lost.push(member.name.clone()),
        }
    }
    table
}

fn own_certificates(record: &Record) -> bool {
    record.parameters.contains_key("ssl_cert_file")
        || record.data_members().any(|member| member.own_certificate)
}

fn database(state: &State, member: &MemberId, now: Millis) -> Option<Database> {
    let heard = state.heard.get(member)?;
    let limit = state.record.policy.detect_ms + PATIENCE_MS;
    if now.saturating_sub(heard.at) > limit {
        return None;
    }
    heard.observation.database.clone()
}
