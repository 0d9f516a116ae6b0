//! A repository that keeps WAL, the process of a member that brings it there, and the fence that a
//! failover puts up. That process outlives its agent here, and goes on as long as it can: what it
//! acknowledges after the fence must not count.

use crate::{
    clock::{MS, Micros},
    database::{Rec, Sender},
    event::{Msg, What},
    scenario::Bug,
    world::World,
};
use sempre_decide::archive::{SILENT, archiver};
use sempre_model::{
    Generation, Lsn, MemberId, Phase, Timeline,
    backup::{ArchiveView, archiver_of},
    record::Fenced,
};
use std::collections::BTreeMap;

/// The repository's name.
pub const REPOSITORY: &str = "main";
/// The archiver tries to connect, and says that it lives, this often.
const TICK_US: Micros = 500 * MS;
/// Silence after which it connects anew.
const SILENCE_US: Micros = 2_000 * MS;

/// What is in the repository: seen by every member, and lost by no fault.
#[derive(Debug, Default)]
pub struct Repository {
    /// The whole log up to what is kept of each timeline.
    branches: BTreeMap<u32, Vec<Rec>>,
    /// Writers of a generation below acknowledge nothing any more.
    fenced_below: Generation,
    /// Nothing gets through before.
    pub hangs_until: Micros,
}

impl Repository {
    /// Where this timeline ends here; 0 if there is nothing of it.
    fn end_of(&self, timeline: u32) -> u64 {
        self.branches.get(&timeline).and_then(|log| log.last()).map_or(0, |r| r.lsn)
    }

    /// The log that leads to this end, if it is kept.
    pub fn up_to(&self, timeline: Timeline, lsn: Lsn) -> Option<&[Rec]> {
        let log = self.branches.get(&timeline.0)?;
        log.binary_search_by_key(&lsn.0, |r| r.lsn).ok().map(|end| &log[..=end])
    }

    /// How many records of this log are kept already.
    fn common(&self, log: &[Rec]) -> usize {
        let same = |kept: &Vec<Rec>| kept.iter().zip(log).take_while(|(a, b)| a == b).count();
        self.branches.values().map(same).max().unwrap_or(0)
    }
}

/// The process that keeps WAL.
#[derive(Clone, Debug)]
pub struct Archiver {
    /// Drawn at each connect.
    session: u64,
    /// For which generation it was begun.
    generation: Generation,
    upstream: usize,
    streaming: bool,
    heard_at: Micros,
    /// What it received, with all before.
    log: Vec<Rec>,
    timeline: u32,
    /// Records durable, and said to be.
    flushed: usize,
    writing: bool,
}

impl World {
    /// The walsender's key of the archiver: behind all members.
    pub fn archiver_key(&self) -> usize {
        self.members.len()
    }

    /// Who a walsender is for.
    pub fn sender_name(&self, key: usize) -> &MemberId {
        self.sender_names().nth(key).expect("only known keys are used")
    }

    /// Members, then the archiver.
    pub fn sender_names(&self) -> impl Iterator<Item = &MemberId> {
        self.names.iter().chain([&self.archiver_name])
    }

    /// The agent sees to it that its archiver runs, or does not; and that the repository is fenced.
    pub fn keep_archive(&mut self, m: usize) {
        if !self.scenario.archive {
            return;
        }
        let record = self.members[m].agent.record.clone();
        let primary = match &record.phase {
            Phase::Serving | Phase::Promoting { .. } => record.primary.clone(),
            _ => None,
        };
        let wanted = primary
            .filter(|_| self.archiver_chosen(m))
            .map(|primary| (record.generation, self.index_of(&primary)));
        let running = self.members[m].archiver.as_ref().map(|a| (a.generation, a.upstream));
        if wanted != running {
            self.members[m].archiver = None;
            if let Some((generation, upstream)) = wanted {
                self.begin_archiver(m, generation, upstream);
            }
        }
        let relied = record.sync.members.contains(&self.archiver_name);
        let fencing = matches!(record.phase, Phase::Fencing { .. }) && relied;
        let agent = &mut self.members[m].agent;
        if fencing && agent.archive_fencing != Some(record.generation) {
            agent.archive_fencing = Some(record.generation);
            agent.archive_fenced = None;
            let life = agent.life;
            let delay = self.rng.range(1, 200) * MS;
            self.at(
                delay,
                m,
                What::FenceArchive { life, generation: record.generation, put: true },
            );
        }
    }

    fn archiver_chosen(&self, m: usize) -> bool {
        let (now, agent) = (self.clock(m), &self.members[m].agent);
        let limit = agent.record.policy.detect_ms * SILENT;
        let alive = agent
            .heard
            .iter()
            .filter(|(name, heard)| **name == self.names[m] || now.saturating_sub(heard.at) < limit)
            .map(|(name, heard)| {
                (name.clone(), heard.observation.archives.contains_key(REPOSITORY))
            });
        archiver(&agent.record, REPOSITORY, &alive.collect()) == Some(self.names[m].clone())
    }

    fn begin_archiver(&mut self, m: usize, generation: Generation, upstream: usize) {
        let (session, now) = (self.rng.draw(), self.now);
        self.stats.count("archiver");
        self.members[m].archiver = Some(Archiver {
            session,
            generation,
            upstream,
            streaming: false,
            heard_at: now,
            log: Vec::new(),
            timeline: 0,
            flushed: 0,
            writing: false,
        });
        self.send_any(m, upstream, Msg::ConnectArchive { session });
        self.at(TICK_US, m, What::ArchiverTick { session });
    }

    /// Its own timer: connects anew after silence, else says that it lives.
    pub fn on_archiver_tick(&mut self, m: usize, session: u64) {
        let now = self.now;
        let machine = &mut self.members[m];
        let Some(archiver) = machine.archiver.as_ref().filter(|a| a.session == session) else {
            return;
        };
        if now - archiver.heard_at > SILENCE_US {
            let (generation, upstream) = (archiver.generation, archiver.upstream);
            self.begin_archiver(m, generation, upstream);
            return;
        }
        self.archiver_replies(m);
        self.at(TICK_US, m, What::ArchiverTick { session });
    }

    fn archiver_replies(&mut self, m: usize) {
        let Some(archiver) = self.members[m].archiver.as_ref().filter(|a| a.streaming) else {
            return;
        };
        let lsn = archiver.flushed.checked_sub(1).map_or(0, |i| archiver.log[i].lsn);
        let (session, upstream) = (archiver.session, archiver.upstream);
        self.send_any(m, upstream, Msg::ArchiveFlushed { session, lsn });
    }

    /// A server takes on the archiver: from where the repository has its WAL.
    pub fn accept_archiver(&mut self, m: usize, from: usize, path: usize, session: u64) {
        let key = self.archiver_key();
        let senders = &self.members[m].db.senders;
        if senders.get(&key).is_some_and(|s| s.session == session) {
            return;
        }
        let data = &self.members[m].data;
        let sent = self.repository.common(&data.log[..data.flushed]);
        let known = data.log[..sent].to_vec();
        let (now, sync) = (self.now, data.sync.clone());
        // What is there may have been stored by a writer that was fenced: before it is said to be
        // there, it is looked again.
        if let Some(archiver) =
            self.members[from].archiver.as_mut().filter(|a| a.session == session)
        {
            (archiver.log, archiver.writing) = (known, true);
            let delay = self.repository_takes(30);
            self.at(delay, from, What::Archived { session, upto: sent, durable: true });
        }
        let sender = Sender { session, sent, flushed: None, replied_at: now, sync, path, at: from };
        self.members[m].db.senders.insert(key, sender);
        self.stream(m, true);
        self.oracle.dirty = true;
    }

    /// WAL for the archiver, or only a sign of life.
    pub fn archiver_hears(
        &mut self,
        m: usize,
        session: u64,
        start: usize,
        records: &[Rec],
        timeline: u32,
    ) {
        let now = self.now;
        let Some(archiver) = self.members[m].archiver.as_mut().filter(|a| a.session == session)
        else {
            return;
        };
        archiver.heard_at = now;
        archiver.timeline = archiver.timeline.max(timeline);
        let first = !std::mem::replace(&mut archiver.streaming, true);
        let have = archiver.log.len();
        if start <= have {
            archiver.log.extend_from_slice(records.get(have - start..).unwrap_or(&[]));
        }
        if first {
            self.archiver_replies(m);
        }
        self.archiver_writes(m);
    }

    fn archiver_writes(&mut self, m: usize) {
        let below = self.repository.fenced_below;
        let early = self.scenario.bug == Some(Bug::ArchiveFenceSeenEarly);
        let Some(archiver) = self.members[m].archiver.as_mut() else { return };
        if archiver.writing || archiver.flushed == archiver.log.len() {
            return;
        }
        if early && below > archiver.generation {
            self.members[m].archiver = None;
            return;
        }
        archiver.writing = true;
        let (session, upto) = (archiver.session, archiver.log.len());
        let delay = self.repository_takes(30);
        self.at(delay, m, What::Archived { session, upto, durable: false });
    }

    /// How long a request to the repository takes, µs.
    fn repository_takes(&mut self, usual_ms: u64) -> Micros {
        let longest = if self.rng.chance(30) { 3_000 } else { usual_ms };
        let hangs = self.repository.hangs_until.saturating_sub(self.now);
        hangs + self.rng.range(300, longest * MS)
    }

    /// First the WAL is durable; then it is looked whether that may be said.
    pub fn on_archived(&mut self, m: usize, session: u64, upto: usize, durable: bool) {
        let early = self.scenario.bug == Some(Bug::ArchiveFenceSeenEarly);
        let Some(archiver) = self.members[m].archiver.as_mut().filter(|a| a.session == session)
        else {
            return;
        };
        if durable && !early && self.repository.fenced_below > archiver.generation {
            self.members[m].archiver = None;
            self.stats.count("archiver fenced");
            self.log(|| format!("m{m}: archiver is fenced"));
            return;
        }
        if !durable {
            let log = archiver.log[..upto].to_vec();
            // Of two writers of the same timeline one has what the other one has, and more.
            for (i, record) in log.iter().enumerate() {
                if log.get(i + 1).is_none_or(|next| next.timeline != record.timeline) {
                    let kept = self.repository.branches.entry(record.timeline).or_default();
                    if kept.len() <= i {
                        *kept = log[..=i].to_vec();
                    }
                }
            }
            let delay = self.repository_takes(10);
            self.at(delay, m, What::Archived { session, upto, durable: true });
            return;
        }
        archiver.writing = false;
        archiver.flushed = archiver.flushed.max(upto);
        self.archiver_replies(m);
        self.archiver_writes(m);
    }

    /// A member fences the repository, then reads how far it has come.
    pub fn on_fence_archive(&mut self, m: usize, life: u64, generation: Generation, put: bool) {
        if !self.alive(m, life) || self.members[m].agent.record.generation != generation {
            return;
        }
        let delay = self.repository_takes(30);
        if put {
            let below = &mut self.repository.fenced_below;
            *below = generation.max(*below);
            self.at(delay, m, What::FenceArchive { life, generation, put: false });
            return;
        }
        // What a primary wrote that never served counts for nothing.
        let served = self.members[m].agent.record.history.last();
        let timeline = served.map_or(1, |h| h.timeline.0);
        let lsn = self.repository.end_of(timeline);
        self.log(|| {
            format!("m{m}: has fenced the repository below {generation}: {timeline}, {lsn}")
        });
        self.members[m].agent.archive_fenced = Some(Fenced {
            member: self.archiver_name.clone(),
            generation,
            timeline: Timeline(timeline),
            lsn: Lsn(lsn),
            ancestors: Vec::new(),
        });
        self.act(m);
    }

    /// What the agent says of the WAL that it keeps.
    pub fn archive_views(&self, m: usize) -> BTreeMap<String, ArchiveView> {
        let archiver = self.members[m].archiver.as_ref().filter(|a| a.streaming);
        let view = |a: &Archiver| ArchiveView {
            timeline: Timeline(a.timeline),
            flushed: Lsn(a.flushed.checked_sub(1).map_or(0, |i| a.log[i].lsn)),
            server: Lsn(a.log.last().map_or(0, |r| r.lsn)),
            gap: None,
            behind_ms: 0,
        };
        archiver.map(|a| (REPOSITORY.to_owned(), view(a))).into_iter().collect()
    }

    /// What it says of the repository that it has fenced.
    pub fn archive_fences(&self, m: usize) -> BTreeMap<String, Fenced> {
        let agent = &self.members[m].agent;
        let fenced = agent.archive_fenced.clone();
        let fenced = fenced.filter(|f| {
            f.generation == agent.record.generation
                && matches!(agent.record.phase, Phase::Fencing { .. })
        });
        fenced.map(|f| (REPOSITORY.to_owned(), f)).into_iter().collect()
    }
}

/// The archiver's name in the sync set.
pub fn archiver_name() -> MemberId {
    archiver_of(REPOSITORY).expect("a word")
}
