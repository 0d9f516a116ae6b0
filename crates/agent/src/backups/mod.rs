//! What a member does for backups: it keeps WAL in repositories, where that is its duty, and makes the base
//! backups that the record asks it for. The work itself is done by processes of their own.

mod drills;
mod fence;
mod files;
mod order_files;
mod orders;
mod reach;
mod rotate;
mod worker;

use crate::{
    clock,
    executor::{Executor, encryption_of},
    looper::{Event, Shown},
};
use drills::Spare;
use sempre_consensus::Consensus;
use sempre_decide::{
    archive::{SILENT, archiver},
    drill,
};
use sempre_model::{
    Command, MemberId, Phase, Record,
    backup::{ArchiveView, BackupChange, BackupProgress, archiver_of, files_progress},
    command::Change,
    observation::{ProcessState, Role},
    record::Fenced,
};
use sempre_postgres::Upstream;
use sempre_recovery::{Drill, Feed, Job, Said, Worked, retention};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};
use worker::{Key, Report};

pub use orders::Orders;
pub use reach::Reached;
pub(crate) use reach::place_of;
pub(crate) use worker::once;

/// How often it is looked whether something else is to be done.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What failed is begun again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The same for what commits or a failover may wait for.
const SOON_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Reports that may wait.
const REPORTS_MAX: usize = 256;
/// Between two rounds of orders.
const ORDER_PAUSE: Duration = Duration::from_secs(2);
/// Files that a base backup copies at a time.
const THREADS: usize = 2;

/// What this member does for backups, as its heartbeats say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupView {
    /// WAL that it keeps, by repository.
    pub archives: BTreeMap<String, ArchiveView>,
    /// Repositories that it has fenced for a failover, and how far they go.
    pub fenced: BTreeMap<String, Fenced>,
    /// Base backups that it is making, by repository.
    pub backing_up: BTreeMap<String, BackupProgress>,
    /// What does not work, in words.
    pub troubles: BTreeMap<String, String>,
}

impl BackupView {
    /// What does not work, in words.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let words = |(name, why): (&String, &String)| {
            format!("WAL is not being archived in repository {name}: {why}")
        };
        self.troubles.iter().map(words)
    }
}

/// Sees to it.
pub struct Keeper {
    executor: Arc<Executor>,
    consensus: Arc<dyn Consensus>,
    shown: watch::Receiver<Arc<Shown>>,
    events: mpsc::Sender<Event>,
    program: PathBuf,
    reached: Reached,
    running: BTreeMap<Key, Running>,
    /// Not to be begun again before.
    pauses: BTreeMap<Key, Instant>,
    /// Since when WAL is not kept that should be.
    failing: BTreeMap<String, Instant>,
    view: BackupView,
    /// When this member last ordered base backups.
    ordered: Instant,
    /// Where drills take place.
    spare: Spare,
}

struct Running {
    /// The job as it was handed out: another one takes its place.
    job: String,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    /// `shown` is the loop's own view; `program` is run for the work.
    pub fn new(
        executor: Arc<Executor>,
        consensus: Arc<dyn Consensus>,
        shown: watch::Receiver<Arc<Shown>>,
        events: mpsc::Sender<Event>,
        program: PathBuf,
        reached: Reached,
    ) -> Self {
        let (running, pauses, failing, view) = Default::default();
        let ordered = Instant::now();
        let spare = Spare::of(&executor.instance.layout.data_dir);
        Self {
            executor,
            consensus,
            shown,
            events,
            program,
            reached,
            running,
            pauses,
            failing,
            view,
            ordered,
            spare,
        }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let (tell, mut reports) = mpsc::channel(REPORTS_MAX);
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let before = self.view.clone();
            tokio::select! {
                _ = ticks.tick() => {
                    self.look(&tell).await;
                    self.order().await;
                }
                // A failover does not wait for the next look.
                changed = fence::begins(&mut self.shown) => match changed {
                    Some(()) => self.look(&tell).await,
                    None => return,
                },
                report = reports.recv() => match report {
                    Some((key, report)) => self.take(key, report).await,
                    None => return,
                },
            }
            if before != self.view {
                let _ = self.events.send(Event::Backups(Box::new(self.view.clone()))).await;
            }
        }
    }

    /// Begins what is to be done, and ends what is not.
    async fn look(&mut self, tell: &mpsc::Sender<(Key, Report)>) {
        let shown = self.shown.borrow().clone();
        let wanted = self.wanted(&shown);
        // A drill is measured by how far the primary was when it began: that it is further now is no news.
        let stays = |key: &Key, running: &Running| match key {
            Key::Drill(..) => wanted.contains_key(key),
            _ => wanted.get(key) == Some(&running.job),
        };
        self.running.retain(|key, running| stays(key, running));
        let there = |key: &Key| wanted.contains_key(key);
        self.pauses.retain(|key, _| there(key));
        let is_there = |wanted: fn(String) -> Key, name: &String| there(&wanted(name.clone()));
        self.failing.retain(|name, _| is_there(Key::Archive, name));
        // One that begins again in a moment leaves no sync set for it.
        let patience = Duration::from_millis(shown.record.policy.sync_timeout_ms);
        let failing =
            |name: &String| self.failing.get(name).is_some_and(|since| since.elapsed() > patience);
        self.view.archives.retain(|name, _| is_there(Key::Archive, name) && !failing(name));
        self.view
            .fenced
            .retain(|name, fenced| there(&Key::Fence(name.clone(), fenced.generation.0)));
        self.view.backing_up.retain(|name, _| {
            wanted.keys().any(|key| match key {
                Key::Archive(_) | Key::Fence(..) | Key::Drill(..) | Key::Once => false,
                Key::Backup(of, _) => of == name,
                Key::Files(of, _) => files_progress(of) == *name,
            })
        });
        self.view.troubles.retain(|name, _| is_there(Key::Archive, name));
        let drills = self.running.keys().any(|key| matches!(key, Key::Drill(..)));
        let mut may_drill = !drills && self.spare.is_clear().await;
        for (key, job) in wanted {
            if matches!(key, Key::Drill(..)) && !self.running.contains_key(&key) {
                if !may_drill {
                    continue;
                }
                // One at a time.
                may_drill = false;
                self.spare.used();
            }
            let paused = self.pauses.get(&key).is_some_and(|until| Instant::now() < *until);
            let fenced = matches!(&key, Key::Fence(name, _) if self.view.fenced.contains_key(name));
            if paused || fenced || self.running.contains_key(&key) {
                continue;
            }
            let task = worker::run(self.program.clone(), key.clone(), job.clone(), tell.clone());
            self.running.insert(key, Running { job, task: tokio::spawn(task) });
        }
    }

    /// The Raft leader orders base backups when they are due.
    async fn order(&mut self) {
        let shown = self.shown.borrow().clone();
        let leads = shown.record.members.get(&shown.me).map(|m| m.node) == shown.standing.leader;
        if !leads || Instant::now() < self.ordered + ORDER_PAUSE {
            return;
        }
        let now = clock::now_unix_ms();
        for repository in sempre_decide::archive::due(&shown.record, now) {
            let Some(member) = source(&shown, &repository) else { continue };
            self.ordered = Instant::now();
            let order = BackupChange::Order { repository, member, full: false };
            let command = Command { at_unix_ms: now, change: Change::Backup(Box::new(order)) };
            if let Err(error) = self.consensus.propose(command).await {
                tracing::warn!(%error, "a base backup is due, and was not ordered");
            }
        }
        self.order_files(&shown, now).await;
        self.order_drills().await;
    }

    /// The same of drills.
    async fn order_drills(&mut self) {
        let shown = self.shown.borrow().clone();
        let now = clock::now_unix_ms();
        for repository in drill::due(&shown.record, now) {
            let alive = alive(&shown, &repository);
            let Some(member) = drill::driller(&shown.record, &repository, &alive) else { continue };
            self.ordered = Instant::now();
            let order = BackupChange::Drill { repository, member };
            let command = Command { at_unix_ms: now, change: Change::Backup(Box::new(order)) };
            if let Err(error) = self.consensus.propose(command).await {
                tracing::warn!(%error, "a drill is due, and was not ordered");
            }
        }
    }

    /// What is to be done by this member now, each as its process gets it.
    fn wanted(&self, shown: &Shown) -> BTreeMap<Key, String> {
        let record = &shown.record;
        let mut wanted = BTreeMap::new();
        let mut want = |key: Key, job: Job| {
            if let Ok(job) = serde_json::to_string(&job) {
                wanted.insert(key, job);
            }
        };
        for name in record.backups.repositories.keys() {
            if let Some(job) = self.archive(shown, name) {
                want(Key::Archive(name.clone()), job);
            }
            if let Some(job) = fence::wanted(shown, name, &self.reached) {
                want(Key::Fence(name.clone(), record.generation.0), job);
            }
        }
        for (name, order) in &record.backups.orders {
            if order.member == shown.me
                && let Some(job) = self.base_backup(record, name, order.full)
            {
                want(Key::Backup(name.clone(), order.version), job);
            }
        }
        for (name, order) in &record.backups.drills {
            if order.member == shown.me
                && let Some(job) = self.drill(shown, name)
            {
                want(Key::Drill(name.clone(), order.version), job);
            }
        }
        for (key, job) in files::wanted(record, &self.reached) {
            want(key, job);
        }
        wanted
    }

    fn archive(&self, shown: &Shown, name: &str) -> Option<Job> {
        let record = &shown.record;
        let cluster = record.cluster.as_ref()?;
        // A new primary may need it to be confirmed.
        let primary = match record.phase {
            Phase::Serving | Phase::Promoting { .. } => record.primary.as_ref()?,
            _ => return None,
        };
        if archiver(record, name, &alive(shown, name))? != shown.me {
            return None;
        }
        let feed = match *primary == shown.me {
            true => Feed::Local(cluster.secrets.admin.clone()),
            false => {
                let known = record.member(primary)?;
                Feed::Remote(Upstream {
                    member: primary.clone(),
                    hosts: known.paths.iter().map(|path| path.host.clone()).collect(),
                    port: known.ports.database,
                    password: cluster.secrets.replication.clone(),
                    encryption: encryption_of(record, known.own_certificate),
                })
            }
        };
        let archiver = archiver_of(name).ok()?;
        let slot = archiver.slot_name();
        let place = self.reached.place(record, name)?;
        let instance = Box::new(self.executor.instance.clone());
        // Only one that looks for fences has a name that commits may wait for. No member's has a
        // colon: nobody takes such a connection for a standby.
        let waited_for = record.policy.archive_in_sync_set && record.archive(&archiver).is_some();
        let (application, generation) = match waited_for {
            true => (archiver.to_string(), Some(record.generation.0)),
            false => (format!("{name}:archive"), None),
        };
        let gap = self.view.archives.get(name).and_then(|view| view.gap);
        let behind_backup = gap.and_then(|_| record.backups.newest_unix_ms.get(name).copied());
        Some(Job::Archive {
            instance,
            feed,
            name: application,
            slot,
            place,
            generation,
            behind_backup,
        })
    }

    fn base_backup(&self, record: &Record, name: &str, full: bool) -> Option<Job> {
        let cluster = record.cluster.as_ref()?;
        Some(Job::BaseBackup {
            instance: Box::new(self.executor.instance.clone()),
            admin_password: cluster.secrets.admin.clone(),
            place: self.reached.place(record, name)?,
            owner: format!("{}/{}", cluster.id, self.executor.instance.me),
            full,
            threads: THREADS,
            max_bytes_per_s: Some(record.policy.backup_max_bytes_per_s).filter(|rate| *rate > 0),
            refuse_wrong_pages: record.policy.backup_refuse_wrong_pages,
            retention: retention(&record.policy),
        })
    }

    fn drill(&self, shown: &Shown, name: &str) -> Option<Job> {
        let archives = |heard: &sempre_decide::Heard| heard.observation.archives.get(name).copied();
        let archive = shown.heard.values().filter_map(archives).max_by_key(|a| a.server);
        Some(Job::Drill(Drill {
            instance: Box::new(self.executor.instance.clone()),
            place: self.reached.place(&shown.record, name)?,
            primary: archive.map(|archive| (archive.server, archive.behind_ms)),
            checks: self.executor.config.drill.checks.clone(),
            threads: THREADS,
        }))
    }

    async fn take(&mut self, key: Key, report: Report) {
        match (key, report) {
            (Key::Archive(name), Report::Said(Said::Archived(view))) => {
                self.view.troubles.remove(&name);
                self.failing.remove(&name);
                self.view.archives.insert(name, view);
            }
            (Key::Backup(name, _), Report::Said(Said::Progress(progress))) => {
                self.view.backing_up.insert(name, progress);
            }
            (Key::Files(name, _), Report::Said(Said::Progress(progress))) => {
                self.view.backing_up.insert(files_progress(&name), progress);
            }
            (key @ Key::Files(..), Report::Said(Said::Done(Worked::Backup(made)))) => {
                self.end_files(key, Ok(made)).await;
            }
            (Key::Fence(name, generation), Report::Said(Said::Done(Worked::Fenced(lsn)))) => {
                self.running.remove(&Key::Fence(name.clone(), generation));
                let record = self.executor.record();
                if let Some(fenced) = fence::fenced(&record, &name, generation, lsn) {
                    self.view.fenced.insert(name, fenced);
                }
            }
            (key @ Key::Backup(..), Report::Said(Said::Done(Worked::Backup(made)))) => {
                self.end(key, Ok(made)).await;
            }
            (key @ Key::Drill(..), Report::Said(Said::Done(Worked::Proved(proof)))) => {
                self.end_drill(key, Ok(proof)).await;
            }
            (key, Report::Said(Said::Failed(why)) | Report::Ended(why)) => {
                if !self.running.contains_key(&key) {
                    return;
                }
                self.running.remove(&key);
                let pause = match key {
                    Key::Fence(..) | Key::Archive(_) => SOON_AGAIN_AFTER,
                    _ => RETRY_AFTER,
                };
                self.pauses.insert(key.clone(), Instant::now() + pause);
                match &key {
                    Key::Fence(name, _) => {
                        tracing::warn!(repository = %name, %why, "the repository is not fenced yet");
                    }
                    Key::Archive(name) => {
                        if self.view.troubles.get(name) != Some(&why) {
                            tracing::warn!(repository = %name, %why, "WAL is not being archived");
                        }
                        self.failing.entry(name.clone()).or_insert_with(Instant::now);
                        self.view.troubles.insert(name.clone(), why);
                    }
                    Key::Backup(..) => self.end(key, Err(why)).await,
                    Key::Drill(..) => self.end_drill(key, Err(why)).await,
                    Key::Once => {}
                    Key::Files(..) => self.end_files(key, Err(why)).await,
                }
            }
            _ => {}
        }
    }

    /// The record learns what came of an order. Should that fail, the order stands, and is carried
    /// out again: what is in the repository already is not copied twice.
    async fn end(&mut self, key: Key, outcome: Result<sempre_model::backup::BackupMade, String>) {
        let Key::Backup(repository, version) = &key else { return };
        let (repository, version) = (repository.clone(), *version);
        self.view.backing_up.remove(&repository);
        let change = BackupChange::End { repository, version, outcome };
        let change = Change::Backup(Box::new(change));
        let command = Command { at_unix_ms: clock::now_unix_ms(), change };
        if let Err(error) = self.consensus.propose(command).await {
            tracing::warn!(%error, "what came of a backup is not in the record");
        }
        self.running.remove(&key);
        self.pauses.insert(key, Instant::now() + RETRY_AFTER);
    }

    /// The same of a drill.
    async fn end_drill(&mut self, key: Key, outcome: Result<sempre_model::backup::Proof, String>) {
        let Key::Drill(repository, _) = &key else { return };
        let change = BackupChange::Prove { repository: repository.clone(), outcome };
        let change = Change::Backup(Box::new(change));
        let command = Command { at_unix_ms: clock::now_unix_ms(), change };
        if let Err(error) = self.consensus.propose(command).await {
            tracing::warn!(%error, "what came of a drill is not in the record; it is tried again");
        }
        self.running.remove(&key);
        self.pauses.insert(key, Instant::now() + RETRY_AFTER);
    }
}

/// Who is heard, each with whether it keeps the WAL of this repository.
fn alive(shown: &Shown, repository: &str) -> BTreeMap<MemberId, bool> {
    let limit = shown.record.policy.detect_ms * SILENT;
    let now = clock::now_ms();
    let heard = shown.heard.iter();
    let alive = heard
        .filter(|(member, heard)| **member == shown.me || now.saturating_sub(heard.at) < limit);
    let does = |heard: &sempre_decide::Heard| heard.observation.archives.contains_key(repository);
    alive.map(|(member, heard)| (member.clone(), does(heard))).collect()
}

/// The wish that a member gets its data from this repository (empty: the only one).
pub(crate) fn fill(member: &MemberId, from: &str) -> Change {
    let repository = Some(from.to_owned()).filter(|name| !name.is_empty());
    let fill = BackupChange::Fill { member: member.clone(), repository };
    Change::Backup(Box::new(fill))
}

/// Whom a base backup is made of, unless it is said: a standby that has all, else the primary.
pub fn source(shown: &Shown, repository: &str) -> Option<MemberId> {
    let record = &shown.record;
    let place = record.backups.repositories.get(repository)?;
    let now = clock::now_ms();
    let usable = shown.heard.iter().filter(|(name, heard)| {
        let database = heard.observation.database.as_ref();
        let runs = database.is_some_and(|d| d.process == ProcessState::Running);
        runs && place.is_reached_by(name)
            && record.members.contains_key(*name)
            && now.saturating_sub(heard.at) < record.policy.detect_ms * SILENT
    });
    let rank = |(name, heard): &(&MemberId, &sempre_decide::Heard)| {
        let database = heard.observation.database.as_ref();
        let follows =
            database.is_some_and(|d| d.role == Role::Standby && d.streaming_from.is_some());
        let busy = !heard.observation.backing_up.is_empty();
        let lsn = database.map_or(0, |d| d.lsn.0);
        (!follows, busy, std::cmp::Reverse(lsn), (*name).clone())
    };
    usable.min_by_key(rank).map(|(name, _)| name.clone())
}
