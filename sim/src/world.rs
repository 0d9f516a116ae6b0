//! The whole cluster: its members, the network between them, its clients, and the queue of what
//! happens next. One event is handled at a time; nothing else moves time or draws randomness.

use crate::{
    agent::Agent,
    archive::{Archiver, REPOSITORY, Repository, archiver_name},
    clients::Client,
    clock::{Clock, MS, Micros},
    database::{Data, Database},
    event::{Event, Msg, Process, What},
    net::{Net, PATHS},
    oracle::Oracle,
    raft::{Entry, Payload, Raft},
    rng::Rng,
    scenario::Scenario,
    stats::Stats,
    trace::Trace,
};
use sempre_model::{
    Command, Generation, Member, MemberId, MemberKind, NodeId, Path, Record, Tags,
    backup::{self as model, BackupChange, BackupKey, BackupMade, StoreAt},
    command::Change,
    member::Ports,
    observation::DiskState,
    record::{Cluster, Secrets},
};
use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    rc::Rc,
};

/// The wall clock at the beginning of every run, ms since 1970.
pub const EPOCH_UNIX_MS: u64 = 1_700_000_000_000;

/// The guard: what it holds in memory, and `fenced_below` on disk.
#[derive(Debug, Default)]
pub struct Guard {
    /// It runs.
    pub up: bool,
    /// On disk: serves nothing below.
    pub fenced_below: Generation,
    /// It runs the database as primary of this generation until then (its clock).
    pub armed: Option<(Generation, u64)>,
    /// It was paused past its deadline: the kill is under way, late.
    pub late: bool,
    /// The database ended unasked, at (its clock).
    pub crashed_at: Option<u64>,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// What a probe of it would find.
    pub state: DiskState,
    /// Since when it is not healthy.
    pub since: Micros,
    /// A flush takes up to this, µs.
    pub flush_us: Micros,
}

/// One member's machine, with all that runs on it.
#[derive(Debug)]
pub struct Machine {
    /// Its monotonic clock.
    pub clock: Clock,
    /// It has power.
    pub powered: bool,
    /// Present Raft node id.
    pub node: NodeId,
    /// On disk: the voter's promise.
    pub promised: Generation,
    /// On disk: no grant is longer, ms.
    pub longest_ms: u64,
    /// Raft.
    pub raft: Raft,
    /// The agent.
    pub agent: Agent,
    /// The guard.
    pub guard: Guard,
    /// The data directory.
    pub data: Data,
    /// The database process.
    pub db: Database,
    /// The disk.
    pub disk: Disk,
    /// Paused: agent, guard, database.
    pub paused: [bool; 3],
    /// What waits for them to go on.
    pub deferred: Vec<Event>,
    /// It is no witness.
    pub has_database: bool,
    /// The process that keeps WAL in the repository.
    pub archiver: Option<Archiver>,
}

impl Machine {
    /// Is the process paused?
    pub fn is_paused(&self, process: Process) -> bool {
        self.paused[process as usize]
    }
}

/// Everything.
pub struct World {
    /// What the seed stands for.
    pub scenario: Scenario,
    /// Real time.
    pub now: Micros,
    /// The generator.
    pub rng: Rng,
    /// Members' names.
    pub names: Vec<MemberId>,
    /// Members.
    pub members: Vec<Machine>,
    /// The archiver's, as a standby.
    pub archiver_name: MemberId,
    /// The repository.
    pub repository: Repository,
    /// Network.
    pub net: Net,
    /// Clients.
    pub clients: Vec<Client>,
    /// The record after each committed entry, and the entry.
    pub committed: Vec<(Entry, Rc<Record>)>,
    /// The invariants' memory.
    pub oracle: Oracle,
    /// Counts.
    pub stats: Stats,
    /// What happened.
    pub trace: Trace,
    /// Faults go on.
    pub storm: bool,
    /// The next commit's number.
    pub next_commit: u64,
    /// A primary's disk was lost.
    pub disk_lost: bool,
    /// How far the wall clocks have jumped, ms. For display only: nothing may depend on them.
    pub wall_jump_ms: i64,
    queue: BinaryHeap<Event>,
    seq: u64,
    started_at: Micros,
}

impl World {
    /// A cluster of one serving primary and empty others.
    pub fn new(scenario: Scenario, print: bool) -> Self {
        let mut rng = Rng::new(scenario.seed);
        let names: Vec<_> = (0..scenario.members).map(name).collect();
        let log = first_log(&scenario, &names);
        let election = (scenario.policy.election_min_ms, scenario.policy.election_max_ms);
        let half = scenario.policy.clock_drift_ppm / 2;
        let members: Vec<Machine> = (0..names.len())
            .map(|m| {
                let drift = rng.range(0, 2 * half + 1) as i64 - half as i64;
                let clock = Clock::new(rng.range(10_000, 1_000_000), drift);
                let node = m as u64 + 1;
                Machine {
                    clock,
                    powered: true,
                    node,
                    promised: Generation(0),
                    longest_ms: 0,
                    raft: Raft::new(node, log.clone(), election),
                    agent: Agent::unborn(names.len()),
                    guard: Guard { up: true, ..Guard::default() },
                    data: Data::default(),
                    db: Database::default(),
                    disk: Disk { state: DiskState::Healthy, since: 0, flush_us: 3 * MS },
                    paused: [false; 3],
                    deferred: Vec::new(),
                    has_database: !(scenario.witness && m + 1 == names.len()),
                    archiver: None,
                }
            })
            .collect();
        let clients = (0..scenario.clients)
            .map(|i| Client { stubborn: i < scenario.stubborn, ..Client::default() })
            .collect();
        let mut world = Self {
            now: 0,
            net: Net::new(names.len()),
            trace: Trace::new(print),
            archiver_name: archiver_name(),
            repository: Repository::default(),
            names,
            members,
            clients,
            committed: Vec::new(),
            oracle: Oracle::default(),
            stats: Stats::default(),
            storm: true,
            next_commit: 1,
            disk_lost: false,
            wall_jump_ms: 0,
            queue: BinaryHeap::new(),
            seq: 0,
            started_at: 0,
            rng,
            scenario,
        };
        world.begin(log);
        world
    }

    fn begin(&mut self, log: Vec<Entry>) {
        for entry in log {
            let record = self.record_after(&entry);
            self.committed.push((entry, record));
        }
        let first = &mut self.members[0].data;
        first.present = true;
        first.was_primary = true;
        first.append(1, 1_000, 0);
        first.flushed = 1;
        for m in 0..self.names.len() {
            self.at(0, m, What::AgentStarts);
        }
        for client in 0..self.clients.len() {
            let at = self.rng.range(0, 100) * MS;
            self.at(at, 0, What::Client { client });
        }
        let storm_end = 5_000 + self.scenario.storm_ms;
        self.at(5_000 * MS, 0, What::Fault);
        self.at(storm_end * MS, 0, What::Heal);
    }

    /// The record after one more entry.
    pub fn record_after(&mut self, entry: &Entry) -> Rc<Record> {
        let last = self.committed.last().map(|(_, r)| r.clone()).unwrap_or_default();
        let Payload::Command(command) = &*entry.payload else { return last };
        let mut next = Record::clone(&last);
        // The events only fill memory here; the trace has them all.
        next.events.clear();
        match next.apply(command) {
            Ok(()) => {
                if let Some(event) = next.events.last() {
                    let text = event.text.clone();
                    self.log(|| format!("record v{}: {} {text}", next.version, event.rule));
                }
                Rc::new(next)
            }
            Err(why) => {
                self.log(|| format!("record refuses: {why}"));
                self.stats.count("command-refused");
                last
            }
        }
    }

    /// The newest record that anyone has applied.
    pub fn newest(&self) -> &Rc<Record> {
        &self.committed.last().expect("the first log is committed").1
    }

    /// A member's name as an index.
    pub fn index_of(&self, name: &MemberId) -> usize {
        self.names.iter().position(|n| n == name).expect("only known names are used")
    }

    /// Real milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.now / MS
    }

    /// A member's clock, ms.
    pub fn clock(&self, m: usize) -> u64 {
        self.members[m].clock.ms(self.now)
    }

    /// The wall clock, ms since 1970.
    pub fn unix_ms(&self) -> u64 {
        (EPOCH_UNIX_MS + self.now / MS).saturating_add_signed(self.wall_jump_ms)
    }

    /// A line for the trace.
    pub fn log(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        self.trace.line(now, line);
    }

    /// Something happens to `member` after `delay`.
    pub fn at(&mut self, delay: Micros, member: usize, what: What) {
        self.seq += 1;
        self.queue.push(Event { at: self.now + delay, seq: self.seq, member, what });
    }

    /// Something happens at a moment of real time.
    pub fn at_real(&mut self, at: Micros, member: usize, what: What) {
        let delay = at.saturating_sub(self.now);
        self.at(delay, member, what);
    }

    /// Sends a message on one path; the network may lose, delay or double it.
    pub fn send(&mut self, from: usize, to: usize, path: usize, msg: Msg) {
        if !self.net.open(from, to, path) || self.rng.chance(self.net.loss) {
            self.stats.lost += 1;
            return;
        }
        let delay = self.net.delay(from, to, &mut self.rng);
        if self.net.twice > 0 && self.rng.chance(self.net.twice) {
            let again = self.net.delay(from, to, &mut self.rng) * 3;
            self.at(again, to, What::Deliver { from, path, msg: msg.clone() });
        }
        self.at(delay, to, What::Deliver { from, path, msg });
    }

    /// Sends on the path that the sender believes to work.
    pub fn send_any(&mut self, from: usize, to: usize, msg: Msg) {
        let path = self.path_to(from, to);
        self.send(from, to, path, msg);
    }

    /// The path to `to` on which it was heard last, or any.
    pub fn path_to(&mut self, from: usize, to: usize) -> usize {
        let heard = &self.members[from].agent.paths[to];
        match (heard[0], heard[1]) {
            (Some(a), Some(b)) if a.abs_diff(b) > 300 => usize::from(b > a),
            (Some(_), None) => 0,
            (None, Some(_)) => 1,
            _ => self.rng.index(PATHS),
        }
    }

    /// Handles one event. False: nothing is left to happen.
    pub fn step(&mut self) -> bool {
        let Some(event) = self.queue.pop() else { return false };
        self.now = event.at;
        self.handle(event);
        self.check();
        true
    }

    /// When the run began to heal (0: not yet), for liveness.
    pub fn healing_since(&self) -> Micros {
        self.started_at
    }

    /// The storm is over.
    pub fn set_healing(&mut self) {
        self.storm = false;
        self.started_at = self.now;
    }

    fn handle(&mut self, event: Event) {
        let m = event.member;
        if let Some(process) = event.process()
            && self.members[m].is_paused(process)
        {
            self.members[m].deferred.push(event);
            return;
        }
        match event.what {
            What::Deliver { from, path, msg } => self.deliver(m, from, path, msg),
            What::Beat { life } => self.on_beat(m, life),
            What::RaftTick { life } => self.on_raft_tick(m, life),
            What::Apply { life } => self.on_apply(m, life),
            What::Written { life, write } => self.on_written(m, life, write),
            What::Step { life, id } => self.on_step(m, life, id),
            What::Fence { life, below } => self.on_fence(m, life, below),
            What::AgentStarts => self.agent_starts(m),
            What::Extend { generation, until } => self.on_extend(m, generation, until),
            What::Deadline => self.on_deadline(m),
            What::Killed { life } => {
                if self.members[m].db.life == life {
                    self.database_ends(m, false, "killed by its guard");
                }
            }
            What::Flush { life, upto } => self.on_flush(m, life, upto),
            What::DatabaseTick { life } => self.on_database_tick(m, life),
            What::Reloaded { life, sender } => self.on_reloaded(m, life, sender),
            What::ArchiverTick { session } => self.on_archiver_tick(m, session),
            What::Archived { session, upto, durable } => {
                self.on_archived(m, session, upto, durable);
            }
            What::FenceArchive { life, generation, put } => {
                self.on_fence_archive(m, life, generation, put);
            }
            What::Client { client } => self.on_client(client),
            What::Fault => self.on_fault(),
            What::Mend(mend) => self.on_mend(m, mend),
            What::Heal => self.heal(),
            What::Resume(process) => self.resume(m, process),
        }
    }

    fn deliver(&mut self, m: usize, from: usize, path: usize, msg: Msg) {
        if !self.net.open(from, m, path) || !self.members[m].powered {
            return;
        }
        match msg.process() {
            Some(Process::Agent) if self.members[m].agent.up => {
                self.agent_hears(m, from, path, msg);
            }
            Some(Process::Database) => self.database_hears(m, from, path, msg),
            _ => {
                if let Msg::ArchiveWal { session, start, records, timeline } = msg {
                    self.archiver_hears(m, session, start, &records, timeline);
                }
            }
        }
    }

    /// A paused process goes on: what waited happens now, in order.
    pub fn resume(&mut self, m: usize, process: Process) {
        if !self.members[m].is_paused(process) {
            return;
        }
        self.log(|| format!("m{m}: {process:?} goes on"));
        self.members[m].paused[process as usize] = false;
        match process {
            // The first thing it does on any wake-up.
            Process::Guard => {
                let now = self.clock(m);
                let guard = &mut self.members[m].guard;
                guard.late = guard.armed.is_some_and(|(_, deadline)| now >= deadline);
                self.on_deadline(m);
            }
            Process::Database => self.members[m].db.hung_since = None,
            Process::Agent => {}
        }
        let (mine, rest) = std::mem::take(&mut self.members[m].deferred)
            .into_iter()
            .partition(|e: &Event| e.process() == Some(process));
        self.members[m].deferred = rest;
        let mine: Vec<Event> = mine;
        for event in mine {
            self.at(0, m, event.what);
        }
    }
}

fn name(m: usize) -> MemberId {
    MemberId::new(format!("m{m}")).expect("a letter and digits")
}

/// A member as the record first knows it.
pub fn member(scenario: &Scenario, m: usize, node: NodeId) -> Member {
    let witness = scenario.witness && m + 1 == scenario.members;
    Member {
        name: name(m),
        node,
        kind: if witness { MemberKind::Witness } else { MemberKind::Data },
        paths: (0..PATHS).map(|p| Path { host: format!("10.{p}.0.{m}") }).collect(),
        ports: Ports::default(),
        zone: (scenario.zones > 0).then(|| format!("z{}", m % scenario.zones)),
        tags: tags(scenario, m),
        own_certificate: false,
    }
}

fn tags(scenario: &Scenario, m: usize) -> Tags {
    let mut rng = Rng::new(scenario.seed ^ (m as u64) << 32 ^ 0x7A65);
    let mut tags = Tags { priority: rng.range(0, 3) as i32, ..Tags::default() };
    tags.spare = scenario.spare == Some(m);
    if m >= 3 {
        tags.never_primary = rng.chance(100);
        tags.no_sync = rng.chance(100);
        if rng.chance(200) {
            tags.replicate_from = Some(name(1 + rng.index(2)));
        }
    }
    tags
}

/// Who the cluster is.
pub fn identity() -> Cluster {
    let secrets = Secrets { admin: "a".into(), replication: "r".into(), rest: "t".into() };
    Cluster {
        name: "sim".into(),
        id: "sim".into(),
        system_identifier: Some(1),
        major_version: Some(15),
        ca_certificate: String::new(),
        ca_key: String::new(),
        secrets,
    }
}

/// A repository with a base backup in it.
fn first_backup(names: &[MemberId]) -> [BackupChange; 3] {
    let name = REPOSITORY.to_owned();
    let repository = model::Repository {
        store: StoreAt::Folder("/backup".into()),
        members: BTreeSet::new(),
        key: BackupKey("key".into()),
        made_unix_ms: EPOCH_UNIX_MS,
    };
    let made = BackupMade {
        id: "first".into(),
        bytes: 1,
        stored_bytes: 1,
        took_ms: 1,
        alarms: Default::default(),
    };
    // One command each for `Init`, the members but the first, the parameters, `Bootstrap`, these.
    let version = names.len() as u64 + 4;
    [
        BackupChange::PutRepository { name: name.clone(), repository },
        BackupChange::Order { repository: name.clone(), member: names[0].clone(), full: true },
        BackupChange::End { repository: name, version, outcome: Ok(made) },
    ]
}

fn first_log(scenario: &Scenario, names: &[MemberId]) -> Vec<Entry> {
    let nodes: BTreeSet<NodeId> = (1..=names.len() as u64).collect();
    let command = |change| Payload::Command(Command { at_unix_ms: EPOCH_UNIX_MS, change });
    let mut payloads = vec![
        Payload::Voters(nodes),
        command(Change::Init {
            cluster: Box::new(identity()),
            policy: Box::new(scenario.policy.clone()),
            member: Box::new(member(scenario, 0, 1)),
        }),
    ];
    for m in 1..names.len() {
        let member = Box::new(member(scenario, m, m as u64 + 1));
        payloads.push(command(Change::PutMember { member, token_hash: None }));
    }
    payloads.push(command(Change::SetParameters {
        parameters: BTreeMap::from([("work_mem".to_owned(), Some("4MB".to_owned()))]),
    }));
    payloads.push(command(Change::Bootstrap {
        primary: names[0].clone(),
        timeline: sempre_model::Timeline(1),
    }));
    if scenario.archive {
        payloads
            .extend(first_backup(names).map(|change| command(Change::Backup(Box::new(change)))));
    }
    payloads.into_iter().map(|p| Entry { term: 1, payload: Rc::new(p) }).collect()
}
