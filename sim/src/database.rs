//! A fake PostgreSQL: a log of records on timelines, what is flushed of it, walsenders, one
//! walreceiver, and backends that wait for synchronous replication as PostgreSQL's do.

use crate::clock::Micros;
use sempre_decide::member::DataDir;
use sempre_model::{Generation, Lsn, SyncSet, Timeline, observation::Role, policy::Durability};
use std::collections::BTreeMap;

/// One record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rec {
    /// Its end.
    pub lsn: u64,
    /// Its timeline.
    pub timeline: u32,
    /// Of this record and all before it: two logs with the same hash are the same.
    pub hash: u64,
    /// The client's commit; 0: something of the database's own.
    pub commit: u64,
}

/// What is in the data directory: survives crashes as far as it is flushed.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// There is a cluster.
    pub present: bool,
    /// The log; written, not all of it flushed.
    pub log: Vec<Rec>,
    /// Records flushed.
    pub flushed: usize,
    /// The newest timeline it knows of.
    pub timeline_known: u32,
    /// It last ran out of recovery.
    pub was_primary: bool,
    /// A primary's data that last ran as a standby of nobody.
    pub resting: bool,
    /// Configured upstream.
    pub upstream: Option<usize>,
    /// Configured sync set.
    pub sync: SyncSet,
    /// Clients are let in.
    pub admitted: bool,
    /// Managed parameters in force.
    pub parameters: BTreeMap<String, String>,
    /// Where a clean shutdown left it.
    pub clean_end: Option<u64>,
    /// Compared with the upstream for this generation.
    pub checked_for: Generation,
}

impl Data {
    /// Where the flushed log ends.
    pub fn flushed_lsn(&self) -> u64 {
        self.flushed.checked_sub(1).map_or(0, |i| self.log[i].lsn)
    }

    /// Where the log ends.
    pub fn end_lsn(&self) -> u64 {
        self.log.last().map_or(0, |r| r.lsn)
    }

    /// The timeline of the flushed end.
    pub fn timeline(&self) -> u32 {
        self.flushed.checked_sub(1).map_or(1, |i| self.log[i].timeline)
    }

    /// The timelines that it came from, each with where the next one begins.
    pub fn ancestors(&self) -> Vec<(Timeline, Lsn)> {
        let log = &self.log[..self.flushed];
        let ends = log.windows(2).filter(|w| w[0].timeline != w[1].timeline);
        ends.map(|w| (Timeline(w[0].timeline), Lsn(w[0].lsn))).collect()
    }

    /// The hash of the flushed end.
    pub fn hash(&self) -> u64 {
        self.flushed.checked_sub(1).map_or(0, |i| self.log[i].hash)
    }

    /// Writes a record at the end.
    pub fn append(&mut self, timeline: u32, bytes: u64, commit: u64) -> Rec {
        let (lsn, hash) = self.log.last().map_or((0, 0), |r| (r.lsn, r.hash));
        let lsn = lsn + bytes;
        let hash = [lsn, u64::from(timeline), commit].iter().fold(hash ^ 0x51ED_270B, |h, v| {
            (h.rotate_left(23) ^ v).wrapping_mul(0x2545_F491_4F6C_DD1D)
        });
        let record = Rec { lsn, timeline, hash, commit };
        self.log.push(record);
        self.timeline_known = self.timeline_known.max(timeline);
        record
    }

    /// Does the log contain the record that ends at `lsn` with `hash`, and so everything before?
    pub fn contains(&self, lsn: u64, hash: u64) -> bool {
        lsn == 0
            || self
                .log
                .binary_search_by_key(&lsn, |r| r.lsn)
                .is_ok_and(|i| self.log[i].hash == hash)
    }

    /// PostgreSQL's own rule: may a standby at (timeline, lsn) stream from here? The timeline must
    /// be in this log's history, and not have been left before `lsn`.
    pub fn history_has(&self, timeline: u32, lsn: u64) -> bool {
        let log = &self.log[..self.flushed];
        let end = log.partition_point(|r| r.timeline <= timeline);
        lsn == 0 || (end > 0 && log[end - 1].timeline == timeline && lsn <= log[end - 1].lsn)
    }

    /// The first record that ends after `lsn`.
    pub fn index_after(&self, lsn: u64) -> usize {
        self.log.partition_point(|r| r.lsn <= lsn)
    }

    /// The power went: what was not flushed is gone.
    pub fn lose_unflushed(&mut self) {
        self.log.truncate(self.flushed);
    }

    /// As `decide` sees it.
    pub fn dir(&self) -> DataDir {
        if self.present {
            DataDir::Present { was_primary: self.was_primary || self.resting }
        } else {
            DataDir::Missing
        }
    }
}

/// A walsender.
#[derive(Clone, Debug)]
pub struct Sender {
    /// Of the receiver.
    pub session: u64,
    /// Records sent.
    pub sent: usize,
    /// The standby has flushed up to here (none: it has not said yet).
    pub flushed: Option<u64>,
    /// Its last reply.
    pub replied_at: Micros,
    /// The sync set as this process last read it.
    pub sync: SyncSet,
    /// The path in use.
    pub path: usize,
    /// The member that the receiver runs on.
    pub at: usize,
}

/// The walreceiver.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// Drawn at each connect.
    pub session: u64,
    /// From whom.
    pub upstream: usize,
    /// It streams.
    pub streaming: bool,
    /// Last message from upstream.
    pub heard_at: Micros,
    /// Last reply to it.
    pub replied_at: Micros,
    /// The path in use.
    pub path: usize,
}

/// A backend that waits to acknowledge a commit.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// The commit's end.
    pub lsn: u64,
    /// Its hash.
    pub hash: u64,
    /// Whose.
    pub client: usize,
    /// Which.
    pub commit: u64,
}

/// What the process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Running {
    /// Not running.
    #[default]
    Down,
    /// Started, does not answer yet.
    Starting,
    /// Answers.
    Up,
}

/// The process; all of it is lost when it ends.
#[derive(Clone, Debug, Default)]
pub struct Database {
    /// Counts the process's lives.
    pub life: u64,
    /// Is there one?
    pub running: Running,
    /// Paused since.
    pub hung_since: Option<Micros>,
    /// It answers from then on (a standby: `role` says which it becomes).
    pub ready_at: Micros,
    /// It is being shut down: takes no more work.
    pub stopping: bool,
    /// Since when.
    pub stopping_since: Micros,
    /// The upstream as the process last read it.
    pub upstream: Option<usize>,
    /// Out of recovery?
    pub role: Role,
    /// End of WAL at its start or promotion.
    pub recovered: u64,
    /// Flush position sampled after every process of it enforced `Data::sync`.
    pub sync_since: Option<u64>,
    /// The checkpointer's sync set: whether commits wait at all.
    pub sync: SyncSet,
    /// Commits up to here need not wait.
    pub released: u64,
    /// Commits that wait, in order.
    pub waiting: Vec<Waiting>,
    /// Walsenders by standby.
    pub senders: BTreeMap<usize, Sender>,
    /// The walreceiver.
    pub receiver: Option<Receiver>,
    /// A flush is under way.
    pub flushing: bool,
}

impl Database {
    /// It answers, and is out of recovery.
    pub fn is_primary(&self) -> bool {
        self.running == Running::Up && self.role == Role::Primary
    }

    /// Up to where `sync` is satisfied, seen with the walsenders' eyes. `names` are those of the
    /// walsenders' keys.
    pub fn synced(
        &self,
        sync: &SyncSet,
        durability: Durability,
        names: &[&sempre_model::MemberId],
    ) -> u64 {
        let mut flushed: Vec<u64> = self
            .senders
            .iter()
            .filter(|(m, _)| sync.members.contains(names[**m]))
            .filter_map(|(_, s)| s.flushed)
            .collect();
        if sync.k == 0 || flushed.len() < sync.k {
            return 0;
        }
        match durability {
            // FIRST k: the k connected ones of highest priority, here the first by name.
            Durability::Sync => flushed.iter().take(sync.k).copied().min().unwrap_or(0),
            _ => {
                flushed.sort_unstable_by(|a, b| b.cmp(a));
                flushed[sync.k - 1]
            }
        }
    }
}
