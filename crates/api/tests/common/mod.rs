//! A cluster as data: three data members and a witness on two networks, all well; tests change
//! what they need. And a backend that serves it.
#![allow(dead_code)] // Each test binary uses a part of it.

use sempre_api::{
    Action, AgentView, Backend, BackupRequest, Done, PoolView, RaftView, RouteCounters, Seen,
    Snapshot,
    codes::{self, ActionError},
};
use sempre_model::{
    Generation, Lsn, Member, MemberId, MemberKind, Observation, Path, Phase, Record, SyncSet, Tags,
    Timeline,
    member::Ports,
    observation::{Database, Downstream, LeaseView, PathView, ProcessState, Role},
    record::{Cause, Cluster, Event, HistoryEntry, Secrets, Switchover},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

pub const TOKEN: &str = "a-secret-token";
pub const NOW: u64 = 1_769_860_800_000;

pub fn id(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

fn member(name: &str, number: u64, kind: MemberKind) -> Member {
    Member {
        name: id(name),
        node: number,
        kind,
        paths: [1, 2].map(|net| Path { host: format!("10.0.{net}.{number}") }).into(),
        ports: Ports::default(),
        zone: None,
        tags: Tags::default(),
        own_certificate: false,
    }
}

fn history(generation: u64, from: Option<&str>, primary: &str, cause: Cause) -> HistoryEntry {
    HistoryEntry {
        generation: Generation(generation),
        primary: id(primary),
        from: from.map(id),
        cause,
        timeline: Timeline(generation as u32),
        lsn: Lsn(0x300_0000 * (generation - 1)),
        at_unix_ms: NOW - 3_600_000 * (10 - generation),
        stall_ms: if generation == 1 { 0 } else { 1_240 },
        evidence: from.map(|from| format!("{from} was silent on all paths")).into_iter().collect(),
    }
}

pub fn record() -> Record {
    let mut record = Record {
        version: 42,
        cluster: Some(Cluster {
            name: "demo".into(),
            id: "c1".into(),
            system_identifier: Some(7_268_616_322_854_375_442),
            major_version: Some(15),
            ca_certificate: String::new(),
            ca_key: String::new(),
            secrets: Secrets { admin: "no".into(), replication: "no".into(), rest: TOKEN.into() },
        }),
        generation: Generation(2),
        primary: Some(id("m1")),
        phase: Phase::Serving,
        sync: SyncSet { members: [id("m2"), id("m3")].into(), k: 1 },
        last_node: 4,
        history: vec![
            history(1, None, "m2", Cause::Bootstrap),
            history(2, Some("m2"), "m1", Cause::MemberLost),
        ],
        events: vec![
            Event {
                seq: 1,
                at_unix_ms: NOW - 9_000,
                rule: "init".into(),
                text: "cluster `demo` made by m2".into(),
            },
            Event {
                seq: 2,
                at_unix_ms: NOW - 5_000,
                rule: "serving".into(),
                text: "generation 2: m1 serves, timeline 2 from 0/3000000, after 1240 ms".into(),
            },
        ],
        ..Record::default()
    };
    for (name, number, kind) in [
        ("m1", 1, MemberKind::Data),
        ("m2", 2, MemberKind::Data),
        ("m3", 3, MemberKind::Data),
        ("w1", 4, MemberKind::Witness),
    ] {
        record.members.insert(id(name), member(name, number, kind));
    }
    record
}

fn primary_database() -> Database {
    let downstream = |addr: &str| Downstream {
        state: "streaming".into(),
        flush_lsn: Lsn(0x500_0060),
        replay_lsn: Lsn(0x500_0060),
        sync_state: "quorum".into(),
        reply_age_ms: 20,
        client_addr: Some(addr.into()),
    };
    Database {
        process: ProcessState::Running,
        role: Role::Primary,
        has_data: true,
        system_identifier: Some(7_268_616_322_854_375_442),
        version_num: Some(150_018),
        timeline: Timeline(2),
        lsn: Lsn(0x500_0060),
        downstreams: [(id("m2"), downstream("10.0.1.2")), (id("m3"), downstream("10.0.2.3"))]
            .into(),
        sync: Some(SyncSet { members: [id("m2"), id("m3")].into(), k: 1 }),
        generation: Generation(2),
        admitted: true,
        pid: Some(100),
        ..Database::default()
    }
}

fn standby_database() -> Database {
    Database {
        process: ProcessState::Running,
        role: Role::Standby,
        has_data: true,
        system_identifier: Some(7_268_616_322_854_375_442),
        version_num: Some(150_018),
        timeline: Timeline(2),
        lsn: Lsn(0x500_0060),
        replay_lsn: Lsn(0x500_0060),
        streaming_from: Some(id("m1")),
        sender_host: Some("10.0.1.1".into()),
        receiver_age_ms: Some(20),
        generation: Generation(2),
        pid: Some(200),
        ..Database::default()
    }
}

/// The healthy cluster, as `me` sees it.
pub fn snapshot(me: &str) -> Snapshot {
    let record = record();
    let mut seen = std::collections::BTreeMap::new();
    let mut paths = std::collections::BTreeMap::new();
    for member in record.members.values() {
        let mut observation = Observation::empty(member.name.clone(), member.node);
        observation.agent_version = "0.1.0".into();
        observation.generation = record.generation;
        observation.record_version = record.version;
        observation.raft_leader = Some(1);
        if member.kind == MemberKind::Data {
            let is_primary = record.primary.as_ref() == Some(&member.name);
            observation.database =
                Some(if is_primary { primary_database() } else { standby_database() });
            observation.lease = is_primary
                .then_some(LeaseView { generation: record.generation, remaining_ms: 1_900 });
        }
        let age_ms = if member.name == id(me) { 10 } else { 100 };
        seen.insert(member.name.clone(), Seen { age_ms, observation });
        if member.name != id(me) {
            let view = |trip| PathView { age_ms: Some(100), rtt_us: Some(trip) };
            paths.insert(member.name.clone(), vec![view(210), view(340)]);
        }
    }
    Snapshot {
        record: Arc::new(record),
        me: id(me),
        raft_leader: Some(id("m1")),
        raft: RaftView {
            term: 3,
            voters: [1, 2, 3, 4].into(),
            learners: [].into(),
            applied: 57,
            last_log: 57,
            contact_age_ms: Some(40),
        },
        seen,
        paths,
        agent: AgentView {
            version: "0.1.0".into(),
            pid: 90,
            guard_pid: Some(91),
            uptime_ms: 86_400_000,
        },
        route: RouteCounters { read_write_now: 4, accepted_total: 17, ..RouteCounters::default() },
        database_started_unix_ms: Some(NOW - 86_000_000),
        certificate_expires_unix_ms: Some(NOW + 300 * 86_400_000),
        now_unix_ms: NOW,
    }
}

/// Changes the record of a snapshot.
pub fn change_record(snapshot: &mut Snapshot, change: impl FnOnce(&mut Record)) {
    change(Arc::make_mut(&mut snapshot.record));
}

/// Changes what was seen of a member.
pub fn change_seen(snapshot: &mut Snapshot, name: &str, change: impl FnOnce(&mut Observation)) {
    change(&mut snapshot.seen.get_mut(&id(name)).unwrap().observation);
}

/// Changes what was seen of a member's database.
pub fn change_database(snapshot: &mut Snapshot, name: &str, change: impl FnOnce(&mut Database)) {
    change_seen(snapshot, name, |seen| change(seen.database.as_mut().unwrap()));
}

/// Nothing was heard of a member for a while.
pub fn silence(snapshot: &mut Snapshot, name: &str, age_ms: u64) {
    snapshot.seen.get_mut(&id(name)).unwrap().age_ms = age_ms;
    if let Some(views) = snapshot.paths.get_mut(&id(name)) {
        views.iter_mut().for_each(|view| view.age_ms = Some(age_ms));
    }
}

/// Serves a snapshot, keeps what it was asked for, and does the simplest of it.
pub struct FakeAgent {
    pub snapshot: Mutex<Snapshot>,
    pub asked: Mutex<Vec<Action>>,
    pub answer: Mutex<Option<ActionError>>,
    /// Agrees to the next change of primary, and then nothing comes of it.
    pub give_up_next: Mutex<bool>,
}

impl FakeAgent {
    pub fn new(snapshot: Snapshot) -> Arc<Self> {
        Arc::new(Self {
            snapshot: Mutex::new(snapshot),
            asked: Mutex::new(Vec::new()),
            answer: Mutex::new(None),
            give_up_next: Mutex::new(false),
        })
    }

    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot.lock().unwrap());
    }

    pub fn asked(&self) -> Vec<Action> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    pub fn refuse_next(&self, error: ActionError) {
        *self.answer.lock().unwrap() = Some(error);
    }
}

#[async_trait::async_trait]
impl Backend for FakeAgent {
    fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().unwrap().clone()
    }

    fn pools(&self) -> Vec<PoolView> {
        Vec::new()
    }

    async fn backups(&self, request: BackupRequest) -> Result<serde_json::Value, ActionError> {
        Ok(serde_json::to_value(request).unwrap())
    }

    async fn act(&self, action: Action) -> Result<Done, ActionError> {
        let parts = match &action {
            Action::Together(parts) => parts.clone(),
            _ => vec![action.clone()],
        };
        self.asked.lock().unwrap().extend(parts.clone());
        if let Some(error) = self.answer.lock().unwrap().take() {
            return Err(error);
        }
        let mut snapshot = self.snapshot.lock().unwrap();
        let mut refused = None;
        change_record(&mut snapshot, |record| {
            record.version += 1;
            if std::mem::take(&mut *self.give_up_next.lock().unwrap()) {
                return;
            }
            for action in &parts {
                match action {
                    Action::Switchover { to, at_unix_ms: Some(at) } => {
                        record.switchover =
                            Some(Switchover { to: to.clone(), at_unix_ms: Some(*at) });
                    }
                    Action::Switchover { to, at_unix_ms: None } => {
                        record.generation = record.generation.next();
                        record.primary = Some(to.clone().unwrap_or_else(|| id("m3")));
                    }
                    Action::Failover { to, .. } => {
                        record.generation = record.generation.next();
                        record.primary = Some(to.clone());
                    }
                    Action::CancelSwitchover if record.switchover.take().is_none() => {
                        refused = Some(codes::NOTHING_TO_CANCEL.error("nothing", "there is none"));
                    }
                    Action::ScheduleRestart { member, wish } => {
                        match record.scheduled_restarts.get(member) {
                            Some(_) => {
                                let code = codes::ALREADY_SCHEDULED;
                                refused = Some(code.error("nothing", "there is one"));
                            }
                            None => {
                                record.scheduled_restarts.insert(member.clone(), wish.clone());
                            }
                        }
                    }
                    Action::CancelRestart { member }
                        if record.scheduled_restarts.remove(member).is_none() =>
                    {
                        refused = Some(codes::NOTHING_TO_CANCEL.error("nothing", "there is none"));
                    }
                    Action::Pause => record.paused = true,
                    Action::Resume => record.paused = false,
                    Action::SetPolicy(changes) => {
                        record.policy =
                            sempre_api::apply_policy_changes(&record.policy, changes).unwrap();
                    }
                    Action::SetParameters(parameters) => {
                        for (name, value) in parameters {
                            match value {
                                Some(value) => {
                                    record.parameters.insert(name.clone(), value.clone())
                                }
                                None => record.parameters.remove(name),
                            };
                        }
                    }
                    Action::SetHba(lines) => record.hba = lines.clone(),
                    _ => {}
                }
            }
        });
        match refused {
            Some(error) => Err(error),
            None => Ok(Done { version: snapshot.record.version, ..Done::said("done") }),
        }
    }

    async fn route(&self, after: u64, wait: Duration, _: bool) -> serde_json::Value {
        serde_json::json!({"after": after, "wait_ms": wait.as_millis() as u64})
    }

    fn verify_route(&self, generation: u64) -> bool {
        let snapshot = self.snapshot();
        snapshot.is_serving_primary() && snapshot.record.generation.0 == generation
    }
}
