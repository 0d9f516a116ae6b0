//! The reason for anything odd.

use super::{MemberRole, MemberStatus, PathState, Status, repositories};
use crate::{
    codes::{self, Code},
    render::cause_words,
    snapshot::Snapshot,
    units::{show_bytes, show_ms, show_time_short},
};
use sempre_model::{
    MemberKind, Phase,
    observation::{DiskState, ProcessState, Role},
    policy::Durability,
};
use serde::{Deserialize, Serialize};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oddity {
    /// What is odd.
    pub what: String,
    /// Why it is so, as far as is known.
    pub why: String,
    /// What to do about it.
    pub what_to_do: String,
}

/// A certificate this near to its end should have been renewed (7 days).
const CERTIFICATE_SOON_MS: u64 = 7 * 86_400_000;
/// WAL kept for one member that is worth a word when `slot_max_wal_bytes` sets no limit.
const SLOT_WAL_WORTH_SAYING: u64 = 4 << 30;

pub(super) fn odd(
    what: impl Into<String>,
    why: impl Into<String>,
    do_: impl Into<String>,
) -> Oddity {
    Oddity { what: what.into(), why: why.into(), what_to_do: do_.into() }
}

/// All of them, those that stop writes first.
pub(super) fn oddities(snapshot: &Snapshot, status: &Status) -> Vec<Oddity> {
    let mut found = Vec::new();
    cluster(snapshot, status, &mut found);
    sync_set(status, &mut found);
    for member in &status.members {
        scheduled_restart(snapshot, member, &mut found);
        members(snapshot, status, member, &mut found);
    }
    certificate(snapshot, &mut found);
    repositories::oddities(snapshot, &status.repositories, &mut found);
    found
}

fn cluster(snapshot: &Snapshot, status: &Status, found: &mut Vec<Oddity>) {
    let record = &snapshot.record;
    if record.cluster.is_none() {
        found.push(odd(
            "the cluster is not initialised",
            "this member has no record yet",
            "run `sempre init` on the first member, `sempre join` on the others",
        ));
        return;
    }
    if !status.raft.quorum {
        let silent: Vec<_> = record
            .members
            .keys()
            .filter(|name| snapshot.is_silent(name))
            .map(|name| name.as_str())
            .collect();
        let why = match (&snapshot.raft_leader, silent.as_slice()) {
            (None, []) => "no Raft leader is known; an election may be under way".to_owned(),
            (Some(leader), []) => format!("nothing was agreed with Raft leader {leader} lately"),
            (_, silent) => {
                format!(
                    "of {} members these are silent: {}",
                    record.members.len(),
                    silent.join(", ")
                )
            }
        };
        found.push(odd(
            "no majority agrees, as seen from here: nothing can change",
            why,
            "bring the silent members or their networks back; if they are gone for good, `sempre recover`",
        ));
    }
    match &record.phase {
        Phase::Forming => found.push(odd(
            "there has not been a primary yet",
            "the first member initialises or adopts its data directory",
            "wait; if it lasts, see the notes of the first member",
        )),
        Phase::Fencing { cause, evidence, began_unix_ms, .. } => found.push(odd(
            format!("no primary: {} being replaced ({})", from_word(&record.phase), cause_words(cause)),
            evidence.join("; "),
            since(snapshot, *began_unix_ms, "wait: a standby is chosen once enough of the sync set is fenced"),
        )),
        Phase::Promoting { evidence, began_unix_ms, .. } => found.push(odd(
            "no writes yet: the new primary is being promoted",
            evidence.join("; "),
            since(snapshot, *began_unix_ms, "wait: clients are let in once the sync set has its end of WAL"),
        )),
        Phase::HandingOver { to, began_unix_ms } => found.push(odd(
            format!("a switchover to {to} is under way"),
            "it was requested",
            since(snapshot, *began_unix_ms, "wait: new transactions are held meanwhile"),
        )),
        Phase::Serving if status.lease.is_none() => found.push(odd(
            "the primary's lease is not seen to hold",
            match &record.primary {
                Some(primary) if snapshot.is_silent(primary) => {
                    format!("{primary} is not heard from here")
                }
                Some(primary) => format!("{primary} has no lease on generation {}", record.generation),
                None => "nobody is primary".to_owned(),
            },
            "wait: it is renewed, or the primary is replaced; if it lasts, see what is said of the members",
        )),
        Phase::Serving => {}
    }
    if record.paused {
        found.push(odd(
            "the cluster is paused: nothing automatic happens",
            "an operator asked for it",
            "`sempre resume` when the work is done",
        ));
    }
    if let Some(wish) = &record.switchover {
        let to = wish.to.as_ref().map_or("the best standby", |to| to.as_str());
        let (what, do_) = match wish.at_unix_ms.filter(|at| *at > snapshot.now_unix_ms) {
            Some(at) => (
                format!("a switchover to {to} is scheduled for {} UTC", show_time_short(at)),
                "`sempre switchover --cancel` takes it back",
            ),
            None => (
                format!("a switchover to {to} waits"),
                "wait until the target is near enough, or `sempre switchover --cancel`",
            ),
        };
        found.push(odd(what, "it was requested", do_));
    }
}

fn from_word(phase: &Phase) -> String {
    match phase {
        Phase::Fencing { from: Some(from), .. } => format!("{from} is"),
        _ => "the old one is".into(),
    }
}

fn since(snapshot: &Snapshot, began_unix_ms: u64, do_: &str) -> String {
    format!("{do_} (since {})", show_ms(snapshot.now_unix_ms.saturating_sub(began_unix_ms)))
}

fn sync_set(status: &Status, found: &mut Vec<Oddity>) {
    let sync = &status.sync;
    if sync.durability == Durability::Async || status.primary.is_none() {
        return;
    }
    let have = sync.record.members.len();
    if sync.record.k < sync.wished_k {
        found.push(odd(
            format!("commits wait for {} standbys instead of {}", sync.record.k, sync.wished_k),
            format!("{have} members are in the sync set"),
            "bring standbys back or add members; until then losing the primary's disk may lose commits",
        ));
    } else if have < sync.record.k {
        found.push(odd(
            "writes wait: fewer standbys are left than commits must wait for",
            format!("{have} members are in the sync set, and `strict` is set"),
            "bring standbys back, or `sempre config set strict=false` to go on with fewer copies",
        ));
    } else if have < sync.wished {
        found.push(odd(
            format!("the sync set has {have} of {} members", sync.wished),
            "the others are silent, lagging or still catching up",
            "look at the members outside the set; losing one more may stall writes for a moment",
        ));
    }
    if let Some(database) = sync.database.as_ref().filter(|database| **database != sync.record) {
        found.push(odd(
            "the database waits for another set than the record holds",
            format!(
                "the database: {} of {} members; a change is under way",
                database.k,
                database.members.len()
            ),
            "nothing, if it is gone in a moment",
        ));
    }
}

fn members(snapshot: &Snapshot, status: &Status, member: &MemberStatus, found: &mut Vec<Oddity>) {
    let name = &member.name;
    let Some(seen) = snapshot.seen.get(name) else {
        found.push(odd(
            format!("{name} has never been heard from here"),
            "its agent does not run, or cannot be reached on any path",
            format!("on {name}: `systemctl status sempre`; check its addresses and the peer port"),
        ));
        return;
    };
    if snapshot.is_silent(name) {
        found.push(odd(
            format!("{name} is silent for {}", show_ms(seen.age_ms)),
            "its machine, its agent, or every path to it is down",
            format!("look at machine {name}; it rejoins by itself when it is back"),
        ));
        kept_wal(snapshot, member, found);
        return;
    }
    let lost: Vec<_> = member
        .paths
        .iter()
        .filter(|path| matches!(path.state, PathState::Lost | PathState::Unheard))
        .map(|path| path.host.as_str())
        .collect();
    if !lost.is_empty() {
        found.push(odd(
            format!("path {} to {name} is lost", lost.join(", ")),
            "nothing arrives there, while another path works",
            "check that network; the cluster goes on without it, but the next loss would count",
        ));
    }
    if let Some(disk) = &member.disk {
        found.push(odd(
            format!("the disk of {name}: {disk}"),
            "a small write and fsync to the data directory did not work",
            match snapshot.seen.get(name).map(|seen| &seen.observation.disk) {
                Some(DiskState::Full) => {
                    format!("{} ({})", codes::DISK_FULL.entry().next, codes::DISK_FULL)
                }
                _ => format!("look at the disk of {name} (space, mount, kernel log)"),
            },
        ));
    }
    if let Some(database) = snapshot.database(name) {
        let kind = snapshot.record.member(name).map(|m| m.kind);
        if kind == Some(MemberKind::Data) {
            database_oddities(snapshot, status, member, database, found);
        }
    }
    for note in &member.notes {
        // Other notes explain what is said above; these ask for something by themselves.
        if let Some(code) = Code::named_in(note).filter(|code| *code == codes::BAD_HBA) {
            found.push(odd(
                format!("pg_hba.conf of {name} is not in force"),
                note.clone(),
                code.entry().next,
            ));
        }
    }
    if member.restart_requested {
        found.push(odd(
            format!("a restart of {name} is to come"),
            "it was requested",
            if status.paused { "it is done after `sempre resume`" } else { "wait" },
        ));
    }
    if member.reinit_requested {
        found.push(odd(format!("{name} is to get a fresh copy"), "it was requested", "wait"));
    }
}

/// Also of a member that is silent: it may not be able to take its turn.
fn scheduled_restart(snapshot: &Snapshot, member: &MemberStatus, found: &mut Vec<Oddity>) {
    let Some(wish) = &member.scheduled_restart else { return };
    let name = &member.name;
    let what = if wish.at_unix_ms > snapshot.now_unix_ms {
        format!("a restart of {name} is scheduled for {} UTC", show_time_short(wish.at_unix_ms))
    } else {
        format!("a scheduled restart of {name} waits")
    };
    found.push(odd(
        what,
        "it was requested",
        format!("`sempre restart {name} --cancel` takes it back"),
    ));
}

fn database_oddities(
    snapshot: &Snapshot,
    status: &Status,
    member: &MemberStatus,
    database: &sempre_model::observation::Database,
    found: &mut Vec<Oddity>,
) {
    let name = &member.name;
    match &database.process {
        ProcessState::Failing(why) => found.push(odd(
            format!("the database of {name} does not start"),
            why.clone(),
            match Code::named_in(why).filter(|code| *code != codes::DATABASE_DOES_NOT_START) {
                Some(code) => code.entry().next.to_owned(),
                None => format!(
                    "put right what PostgreSQL names, then `sempre restart {name}`; or `sempre reinit {name}`"
                ),
            },
        )),
        ProcessState::Crashed | ProcessState::Hung | ProcessState::Stopped if member.busy.is_none() => {
            let do_ = if status.paused {
                "nothing is done about it while the cluster is paused: `sempre resume`"
            } else {
                "wait: it is started again or replaced"
            };
            found.push(odd(
                format!("the database of {name}: {}", member.state),
                member.notes.first().cloned().unwrap_or_else(|| "no reason is known".into()),
                do_,
            ));
        }
        _ => {}
    }
    if !database.pending_restart.is_empty() {
        found.push(odd(
            format!("{name} waits for a restart"),
            format!("these parameters need one: {}", database.pending_restart.join(", ")),
            format!("`sempre restart {name}`"),
        ));
    }
    if member.role == MemberRole::FormerPrimary {
        found.push(odd(
            format!("{name} is out of recovery, but not the primary"),
            format!("the primary is {}", status.primary.as_ref().map_or("none", |p| p.as_str())),
            "nothing: it holds no lease, lets no clients in, and rejoins by itself",
        ));
    }
    if database.role == Role::Standby
        && database.process == ProcessState::Running
        && status.writable
        && member.busy.is_none()
    {
        standby(snapshot, member, database, found);
    }
}

fn standby(
    snapshot: &Snapshot,
    member: &MemberStatus,
    database: &sempre_model::observation::Database,
    found: &mut Vec<Oddity>,
) {
    let name = &member.name;
    if database.streaming_from.is_none() {
        found.push(odd(
            format!("{name} does not stream"),
            member.notes.first().cloned().unwrap_or_else(|| "it has no connection to its upstream".into()),
            format!("wait: it is pointed to the primary, rewound or copied afresh; if it lasts, `sempre reinit {name}`"),
        ));
        kept_wal(snapshot, member, found);
        return;
    }
    let policy = &snapshot.record.policy;
    let lags = member.database.as_ref().map(|d| (d.receive_lag_bytes, d.replay_lag_bytes));
    match lags {
        Some((Some(receive), _)) if receive > policy.route_max_lag_bytes => {
            found.push(odd(
                format!("{name} is {} behind", show_bytes(receive)),
                "it receives more slowly than the primary writes",
                "look at its network and disk; it gets no read-only clients meanwhile",
            ));
            kept_wal(snapshot, member, found);
        }
        Some((_, Some(replay))) if replay > policy.route_max_lag_bytes => found.push(odd(
            format!("{name} replays {} behind", show_bytes(replay)),
            "it has the WAL, but replays it more slowly than the primary writes, or a query holds replay up",
            "look for long queries there; it gets no read-only clients meanwhile",
        )),
        _ => {}
    }
    if let Some(wished) = &member.tags.replicate_from
        && database.streaming_from.as_ref() != Some(wished)
    {
        found.push(odd(
            format!("{name} does not stream from {wished}"),
            "its tag replicate_from names it, but it cannot be used now",
            format!("look at {wished}; until then the primary serves {name}"),
        ));
    }
}

/// WAL that the primary keeps for a member that does not take it.
fn kept_wal(snapshot: &Snapshot, member: &MemberStatus, found: &mut Vec<Oddity>) {
    let (Some(primary), Some(own)) = (snapshot.primary_lsn(), snapshot.database(&member.name))
    else {
        return;
    };
    let kept = primary.bytes_since(own.lsn);
    let limit = snapshot.record.policy.slot_max_wal_bytes;
    let worth_saying = if limit == 0 { SLOT_WAL_WORTH_SAYING } else { limit / 2 };
    if kept <= worth_saying {
        return;
    }
    let why = match limit {
        0 => "slot_max_wal_bytes sets no limit, so the disk may fill".to_owned(),
        limit => format!(
            "beyond {} it is dropped, and {} needs a fresh copy",
            show_bytes(limit),
            member.name
        ),
    };
    found.push(odd(
        format!("the slot of {} keeps {} of WAL back", member.name, show_bytes(kept)),
        why,
        format!("bring {0} back, or `sempre remove {0}`", member.name),
    ));
}

fn certificate(snapshot: &Snapshot, found: &mut Vec<Oddity>) {
    let Some(expires) = snapshot.certificate_expires_unix_ms else { return };
    let left = expires.saturating_sub(snapshot.now_unix_ms);
    if left >= CERTIFICATE_SOON_MS {
        return;
    }
    let what = if left == 0 {
        format!("the certificate of {} has ended", snapshot.me)
    } else {
        format!("the certificate of {} ends in {}", snapshot.me, show_ms(left))
    };
    found.push(odd(
        what,
        "it should have been renewed by itself long before",
        "check the clock and the log of this member; restart its agent (the database goes on)",
    ));
}
