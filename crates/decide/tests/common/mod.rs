//! A small cluster by hand: `m0` is primary of generation 3, `m1` and `m2` are standbys in its
//! sync set, everyone is well. Tests change what they need.

#![allow(dead_code)]

use sempre_decide::{Heard, LeaderView, Millis};
use sempre_model::{
    Generation, Lsn, Member, MemberId, MemberKind, Observation, Path, Phase, Record, SyncSet, Tags,
    Timeline,
    backup::{BackupKey, Repository, StoreAt},
    member::Ports,
    observation::{Database, Downstream, LeaseView, PathView, ProcessState, Role},
    record::{Cause, Cluster, Fenced, HistoryEntry, Secrets},
};
use std::collections::{BTreeMap, BTreeSet};

/// The moment of every decision.
pub const NOW: Millis = 100_000;
/// The generation in force.
pub const G: Generation = Generation(3);
/// The archiver of repository `main`, in the sync set.
pub const ARCHIVE: &str = "archive-main";
/// Where all WAL ends.
pub const END: Lsn = Lsn(5_000);

pub fn name(text: &str) -> MemberId {
    MemberId::new(text).unwrap()
}

pub fn set(k: usize, members: &[&str]) -> SyncSet {
    SyncSet { members: members.iter().map(|m| name(m)).collect(), k }
}

/// What a view borrows from.
pub struct Cluster3 {
    pub record: Record,
    pub me: MemberId,
    pub since: Millis,
    pub since_before_start: bool,
    pub voters: BTreeSet<MemberId>,
    pub heard: BTreeMap<MemberId, Heard>,
}

impl Cluster3 {
    /// Serving, and nothing to do. Seen by `me`.
    pub fn serving(me: &str) -> Self {
        let names = ["m0", "m1", "m2"];
        let mut record = Record {
            version: 10,
            cluster: Some(cluster()),
            generation: G,
            primary: Some(name("m0")),
            phase: Phase::Serving,
            sync: set(1, &["m1", "m2"]),
            sync_wanted: set(1, &["m1", "m2"]),
            ..Record::default()
        };
        for (i, m) in names.iter().enumerate() {
            record.members.insert(name(m), member(m, i as u64 + 1));
        }
        record.history.push(HistoryEntry {
            generation: G,
            primary: name("m0"),
            from: None,
            cause: Cause::Bootstrap,
            timeline: Timeline(3),
            lsn: Lsn(1_000),
            at_unix_ms: 0,
            stall_ms: 0,
            evidence: vec![],
        });
        let mut all = Self {
            record,
            me: name(me),
            since: NOW - 50_000,
            since_before_start: false,
            voters: names.iter().map(|m| name(m)).collect(),
            heard: BTreeMap::new(),
        };
        all.hear(primary("m0", G, &["m1", "m2"]));
        all.hear(standby("m1", Some("m0")));
        all.hear(standby("m2", Some("m0")));
        all
    }

    /// `m0` was replaced, nobody is primary of generation 4 yet; everybody has promised it and is
    /// fenced, and `m0` has attested.
    pub fn fencing(me: &str) -> Self {
        let mut all = Self::serving(me);
        all.record.generation = Generation(4);
        all.record.primary = None;
        all.record.phase = Phase::Fencing {
            from: Some(name("m0")),
            cause: Cause::MemberLost,
            target: None,
            allow_data_loss: false,
            began_unix_ms: 0,
            served_until_unix_ms: 0,
            evidence: vec![],
        };
        all.since = NOW - 100;
        for m in ["m1", "m2"] {
            let mut o = standby(m, None);
            o.fenced = Some(fenced(m, Generation(4), END));
            all.hear(o);
        }
        let mut old = primary("m0", G, &[]);
        let database = old.database.as_mut().unwrap();
        *database = Database { has_data: true, ..Database::default() };
        old.lease = None;
        old.attests_below = Generation(4);
        all.hear(old);
        for o in all.heard.values_mut() {
            o.observation.generation = Generation(4);
            o.observation.promised = Generation(4);
            o.observation.grant_ms = 0;
        }
        all
    }

    /// It has a repository that commits may wait for.
    pub fn keep_archive(&mut self) {
        let place = Repository {
            store: StoreAt::Folder("/r".into()),
            members: Default::default(),
            key: BackupKey("k".into()),
            made_unix_ms: 0,
        };
        self.record.backups.repositories.insert("main".into(), place);
        self.record.backups.newest_unix_ms.insert("main".into(), 1);
        self.record.policy.archive_in_sync_set = true;
    }

    /// As `fencing`, but only a repository is known to have every commit: it ends at `end`, as `m2`
    /// says, who has fenced it.
    pub fn relying_on_archive(me: &str, end: Lsn) -> Self {
        let mut all = Self::fencing(me);
        all.keep_archive();
        all.record.sync = set(1, &[ARCHIVE]);
        let archived = fenced(ARCHIVE, Generation(4), end);
        all.word("m2").fenced_archives.insert("main".into(), archived);
        all
    }

    /// `m1` is promoted for generation 4, and is to be confirmed by `m2`.
    pub fn promoting(me: &str) -> Self {
        let mut all = Self::fencing(me);
        all.record.primary = Some(name("m1"));
        all.record.phase = Phase::Promoting {
            from: Some(name("m0")),
            cause: Cause::MemberLost,
            fenced: vec![fenced("m1", Generation(4), END), fenced("m2", Generation(4), END)],
            sync: set(1, &["m2"]),
            began_unix_ms: 0,
            served_until_unix_ms: 0,
            evidence: vec![],
        };
        let mut o = primary("m1", Generation(4), &["m2"]);
        let database = o.database.as_mut().unwrap();
        database.timeline = Timeline(4);
        database.sync = Some(set(1, &["m2"]));
        database.admitted = false;
        all.hear(o);
        let mut follows = standby("m2", Some("m1"));
        follows.generation = Generation(4);
        all.hear(follows);
        all
    }

    /// The newest word of a member, just heard.
    pub fn hear(&mut self, observation: Observation) {
        self.heard.insert(observation.member.clone(), Heard { at: NOW - 10, observation });
    }

    pub fn word(&mut self, m: &str) -> &mut Observation {
        &mut self.heard.get_mut(&name(m)).unwrap().observation
    }

    pub fn database(&mut self, m: &str) -> &mut Database {
        self.word(m).database.as_mut().unwrap()
    }

    /// `m` was heard for the last time so long ago.
    pub fn silent_for(&mut self, m: &str, ms: u64) {
        self.heard.get_mut(&name(m)).unwrap().at = NOW - ms;
        for o in self.heard.values_mut() {
            o.observation
                .heard
                .insert(name(m), vec![PathView { age_ms: Some(ms), rtt_us: None }; 2]);
        }
    }

    pub fn view(&self) -> LeaderView<'_> {
        LeaderView {
            record: &self.record,
            me: &self.me,
            now: NOW,
            now_unix_ms: 1_000_000,
            started: 0,
            since: self.since,
            since_before_start: self.since_before_start,
            voters: &self.voters,
            heard: &self.heard,
        }
    }
}

pub fn fenced(m: &str, generation: Generation, lsn: Lsn) -> Fenced {
    Fenced { member: name(m), generation, timeline: Timeline(3), lsn, ancestors: Vec::new() }
}

fn cluster() -> Cluster {
    Cluster {
        name: "test".into(),
        id: "test".into(),
        system_identifier: Some(1),
        major_version: Some(15),
        ca_certificate: String::new(),
        ca_key: String::new(),
        secrets: Secrets { admin: "a".into(), replication: "r".into(), rest: "t".into() },
    }
}

pub fn member(m: &str, node: u64) -> Member {
    Member {
        name: name(m),
        node,
        kind: MemberKind::Data,
        paths: vec![Path { host: m.into() }],
        ports: Ports::default(),
        zone: None,
        tags: Tags::default(),
        own_certificate: false,
    }
}

fn observation(m: &str) -> Observation {
    let near = vec![PathView { age_ms: Some(20), rtt_us: None }; 2];
    let others = ["m0", "m1", "m2"].iter().filter(|o| **o != m);
    Observation {
        record_version: 10,
        generation: G,
        promised: G,
        grant_ms: 1_900,
        heard: others.map(|o| (name(o), near.clone())).collect(),
        ..Observation::empty(name(m), 1)
    }
}

pub fn primary(m: &str, generation: Generation, standbys: &[&str]) -> Observation {
    let downstream = Downstream {
        state: "streaming".into(),
        flush_lsn: END,
        replay_lsn: END,
        sync_state: "quorum".into(),
        reply_age_ms: 10,
        client_addr: None,
    };
    let mut o = observation(m);
    o.generation = generation;
    o.lease = Some(LeaseView { generation, remaining_ms: 1_800 });
    o.database = Some(Database {
        process: ProcessState::Running,
        role: Role::Primary,
        has_data: true,
        timeline: Timeline(3),
        lsn: END,
        downstreams: standbys.iter().map(|s| (name(s), downstream.clone())).collect(),
        sync: Some(set(1, &["m1", "m2"])),
        sync_since_lsn: Lsn(2_000),
        generation,
        admitted: true,
        recovered_lsn: Lsn(1_000),
        ..Database::default()
    });
    o
}

pub fn standby(m: &str, from: Option<&str>) -> Observation {
    let mut o = observation(m);
    o.database = Some(Database {
        process: ProcessState::Running,
        role: Role::Standby,
        has_data: true,
        timeline: Timeline(3),
        lsn: END,
        replay_lsn: END,
        streaming_from: from.map(name),
        receiver_age_ms: from.map(|_| 30),
        ..Database::default()
    });
    o
}
