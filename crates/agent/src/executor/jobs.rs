//! The steps one by one.

use super::{Done, GUARD_WITHIN, Job, JobContext};
use crate::{looper::Event, member_dir::Applied};
use anyhow::{Context, Result, bail};
use sempre_api::{Code, codes};
use sempre_decide::member::{DataDir, Step};
use sempre_guard::StopMode;
use sempre_model::{
    Generation, Lsn, MemberId, SyncSet, Timeline, backup::archiver_of, command::Change,
    record::Fenced,
};
use sempre_postgres::{CloneOptions, ServerRole, Session};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// Between two looks at a condition that is about to come true.
const POLL: Duration = Duration::from_millis(10);
/// After the hand-over began, every router has heard of it by now, wherever it is.
const DRAIN_HEARD_WITHIN: Duration = Duration::from_millis(200);
/// Routers that have heard take their sessions away at the end of each transaction: when nobody has
/// left and nothing was under way for this long, those that are left stay. (Members' routers hear
/// with the record itself, those beside applications by a question that is kept until there is news.)
const DRAIN_QUIET_FOR: Duration = Duration::from_millis(60);
/// A walreceiver ends within this time of the reload, or the fence is tried again.
const FENCE_WITHIN: Duration = Duration::from_secs(5);
/// The server reads a changed `pg_hba.conf` within this time, or something is wrong with it.
const ADMISSION_WITHIN: Duration = Duration::from_secs(3);
/// A promotion ends within this time. It takes milliseconds unless much is left to replay.
const PROMOTE_WITHIN: Duration = Duration::from_secs(60);
/// A clean shutdown ends within this time, or the database is ended at once.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(8);

impl JobContext {
    pub(crate) async fn execute(mut self, job: &Job) -> Result<Done> {
        match job {
            Job::Step(step) => self.step(step).await,
            Job::Bootstrap => self.bootstrap().await,
            Job::ReadFence => self.read_fence().await,
            Job::SampleRecovered => {
                let session = self.executor.session().await?;
                self.applied.recovered = Some(session.flush_lsn().await?);
                // It runs as a primary again, and its control file says so.
                self.applied.resting = false;
                // Its configuration was in force before it answered.
                self.applied.sync_since = self.applied.sync_since.or(self.applied.recovered);
                self.executor.dir.set_applied(&self.applied)?;
                Ok(self.done())
            }
            Job::SampleSync => {
                let session = self.executor.session().await?;
                self.applied.sync_since = Some(session.flush_lsn().await?);
                Ok(self.done())
            }
            Job::HouseKeeping { positions } => self.keep_house(positions).await,
            Job::Inspect => {
                Ok(Done { data: Some(self.executor.inspect().await), ..Done::default() })
            }
            Job::CutWalsender { member, address } => {
                let session = self.executor.session().await?;
                session.terminate_walsender(member, Some(address)).await?;
                Ok(Done::default())
            }
        }
    }

    async fn step(&mut self, step: &Step) -> Result<Done> {
        match step {
            Step::Fence { below } => {
                let fenced = self.executor.guard.fence(*below, GUARD_WITHIN).await;
                self.executor.replace_silent_guard(fenced).await?;
                Ok(Done::default())
            }
            Step::StartPrimary { generation, sync } => {
                self.start_primary(*generation, sync.clone()).await
            }
            Step::StartStandby { upstream } => {
                // Whatever it was before: whoever decides this knows that its WAL fits.
                self.applied.resting = false;
                self.start_standby(upstream.clone()).await
            }
            Step::Follow { upstream } => self.follow(upstream.clone()).await,
            Step::Promote { generation, sync } => self.promote(*generation, sync.clone()).await,
            Step::SetSync { sync } => {
                let next = Applied { sync: sync.clone(), sync_since: None, ..self.applied.clone() };
                self.configure(ServerRole::Primary, next).await?;
                self.reload().await?;
                Ok(self.done())
            }
            Step::Admit(admitted) => {
                let next = Applied { admitted: *admitted, ..self.applied.clone() };
                self.configure(ServerRole::Primary, next).await?;
                self.reload().await?;
                let hba_error = self.until_admission_is(*admitted).await?;
                Ok(Done { hba_error, ..self.done() })
            }
            Step::Reload => self.rewrite().await,
            Step::Checkpoint => {
                self.executor.session().await?.checkpoint().await?;
                Ok(Done { hand_over_ready: true, ..Done::default() })
            }
            Step::HandOver => self.hand_over().await,
            Step::Rejoin { upstream } => self.rejoin(upstream).await,
            Step::Clone { from, discard } => self.clone_data(from, *discard).await,
            Step::Fill { repository, from, discard } => self.fill(repository, from, *discard).await,
            Step::TakeArchived { repository, timeline, lsn } => {
                self.take_archived(repository, (*timeline, *lsn)).await
            }
            Step::Recover { repository, timeline, .. } => self.recover(repository, *timeline).await,
            Step::Restart => self.restart().await,
            Step::Rest => self.rest().await,
            Step::EndRest => {
                self.stop(StopMode::Fast).await?;
                Ok(Done { data: Some(self.executor.inspect().await), ..self.done() })
            }
        }
    }

    /// The configuration of a primary in its first moment: nobody is let in, nothing is sampled.
    fn as_primary(&self, generation: Generation, sync: SyncSet) -> Applied {
        Applied {
            upstream: None,
            sync,
            admitted: false,
            generation,
            recovered: None,
            sync_since: None,
            ..self.applied.clone()
        }
    }

    async fn start_primary(&mut self, generation: Generation, sync: SyncSet) -> Result<Done> {
        let lease = self.lease_for(generation)?;
        self.instance().prepare_role(false)?;
        let next = self.as_primary(generation, sync);
        self.configure(ServerRole::Primary, next).await?;
        self.start(Some(lease)).await?;
        Ok(self.done())
    }

    async fn start_standby(&mut self, upstream: Option<MemberId>) -> Result<Done> {
        self.instance().prepare_role(true)?;
        let next = Applied {
            upstream,
            sync: SyncSet::default(),
            admitted: false,
            recovered: None,
            ..self.applied.clone()
        };
        self.configure(ServerRole::Standby, next).await?;
        self.bring_logical_slots(self.applied.upstream.as_ref()).await;
        self.start(None).await?;
        Ok(self.done())
    }

    /// A former primary as a standby of nobody. Its folder looks like any standby's from now on, so
    /// that it is none is written down first.
    async fn rest(&mut self) -> Result<Done> {
        self.applied.resting = true;
        self.executor.dir.set_applied(&self.applied)?;
        tracing::warn!("no majority is heard: the database is read-only until one is");
        self.start_standby(None).await
    }

    async fn follow(&mut self, upstream: Option<MemberId>) -> Result<Done> {
        let fence = upstream.is_none();
        let next = Applied { upstream, ..self.applied.clone() };
        self.configure(ServerRole::Standby, next).await?;
        self.reload().await?;
        if fence {
            return match self.read_fence().await {
                Ok(done) => Ok(Done { applied: Some(self.applied.clone()), ..done }),
                // The configuration stands; the position is read again.
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the fence is not read yet");
                    Ok(self.done())
                }
            };
        }
        Ok(self.done())
    }

    /// The position of a standby whose receiver has stopped for good.
    pub(super) async fn read_fence(&mut self) -> Result<Done> {
        let generation = self.record.generation;
        let session = self.executor.session().await?;
        let ends = Instant::now() + FENCE_WITHIN;
        loop {
            if let Some((timeline, lsn)) = session.fence_position().await? {
                let member = self.instance().me.clone();
                let ancestors = self.instance().timeline_history(timeline)?.ancestors;
                let fenced = Fenced { member, generation, timeline, lsn, ancestors };
                return Ok(Done { fenced: Some(fenced), ..Done::default() });
            }
            if Instant::now() >= ends {
                bail!("the walreceiver has not stopped within {} s", FENCE_WITHIN.as_secs());
            }
            sleep(POLL / 4).await;
        }
    }

    async fn promote(&mut self, generation: Generation, sync: SyncSet) -> Result<Done> {
        let lease = self.lease_for(generation)?;
        // The guard counts the deadline before the database can take a write.
        self.executor.guard.arm(lease, GUARD_WITHIN).await?;
        let next = self.as_primary(generation, sync);
        self.configure(ServerRole::Primary, next).await?;
        self.reload().await?;
        // No two promotions may ever give the same number to different timelines.
        self.instance().reserve_timelines(Timeline(u32::try_from(generation.0)?))?;
        let session = self.executor.session().await?;
        let promoted = timeout(PROMOTE_WITHIN, session.promote()).await;
        promoted.context("the promotion takes too long")??;
        self.applied.recovered = Some(session.flush_lsn().await?);
        // The configuration was loaded before the promotion, so it was in force all the time.
        self.applied.sync_since = self.applied.recovered;
        self.executor.dir.set_applied(&self.applied)?;
        let propose = self.settle_logical_slots(&session).await;
        // pg_rewind reads the timeline from the control file, which only a checkpoint updates.
        let checkpoint = self.executor.clone();
        tokio::spawn(async move {
            if let Ok(session) = checkpoint.session().await
                && let Err(error) = session.checkpoint().await
            {
                tracing::warn!(%error, "no checkpoint after the promotion");
            }
        });
        Ok(Done { propose, ..self.done() })
    }

    /// The configuration as it is, written and loaded again, with slots for everyone.
    async fn rewrite(&mut self) -> Result<Done> {
        let session = self.executor.session().await?;
        let role = match session.is_primary().await? {
            true => ServerRole::Primary,
            false => ServerRole::Standby,
        };
        let next = self.applied.clone();
        self.configure(role, next).await?;
        self.reload().await?;
        session.ensure_slots(&self.others()).await?;
        Ok(Done { settings_written: Some(self.settings_change), ..self.done() })
    }

    /// Every other member with a database, and whoever keeps WAL in a repository: each needs a slot
    /// here, whoever is primary.
    fn others(&self) -> BTreeSet<MemberId> {
        let me = &self.instance().me;
        let members = self.record.data_members().map(|m| m.name.clone()).filter(|m| m != me);
        let repositories = self.record.backups.repositories.keys();
        members.chain(repositories.filter_map(|name| archiver_of(name).ok())).collect()
    }

    /// Slots for everyone, none of them holding back WAL that its member has; what waits for a
    /// restart.
    async fn keep_house(&self, positions: &BTreeMap<MemberId, Lsn>) -> Result<Done> {
        let session = self.executor.session().await?;
        session.ensure_slots(&self.others()).await?;
        if !session.is_primary().await? {
            session.advance_slots(positions).await?;
        }
        let pending_restart = Some(session.pending_restart().await?);
        let hba_error = Some(session.hba_error().await?);
        Ok(Done { pending_restart, hba_error, ..Done::default() })
    }

    /// Waits until the server has read who may come in. Clients that are led here earlier are
    /// turned away for good, by words about `pg_hba.conf`. What is wrong with that file, if the
    /// server cannot read it.
    async fn until_admission_is(&self, admitted: bool) -> Result<Option<Option<String>>> {
        let ends = Instant::now() + ADMISSION_WITHIN;
        while self.instance().admits_clients().await != admitted {
            if Instant::now() >= ends {
                let seconds = ADMISSION_WITHIN.as_secs();
                tracing::warn!(seconds, "the server has not read its pg_hba.conf in time");
                return Ok(Some(self.executor.session().await?.hba_error().await?));
            }
            sleep(POLL / 4).await;
        }
        Ok(None)
    }

    async fn hand_over(&mut self) -> Result<Done> {
        let generation = self.record.generation;
        // Routers hear of it at this moment.
        let began = Instant::now();
        let next = Applied { admitted: false, ..self.applied.clone() };
        self.configure(ServerRole::Primary, next).await?;
        self.reload().await?;
        if let Ok(session) = self.executor.session().await {
            self.drain(&session, began).await;
        }
        self.stop(StopMode::Fast).await?;
        self.executor.guard.fence(generation.next(), GUARD_WITHIN).await?;
        Ok(Done { data: Some(self.executor.inspect().await), ..self.done() })
    }

    /// Sessions that routing carries leave by themselves between two transactions; others may finish
    /// what they do.
    async fn drain(&self, session: &Session, began: Instant) {
        let limit = Duration::from_millis(self.record.policy.drain_timeout_ms);
        let (mut quiet, mut left) = (began, None);
        while began.elapsed() < limit {
            // An answer that does not come is no reason to wait.
            let clients = session.client_count().await.unwrap_or(0);
            let busy = session.busy_clients().await.unwrap_or(0);
            let came_or_went = left.replace(clients).is_some_and(|before| before != clients);
            if busy > 0 || came_or_went {
                quiet = Instant::now();
            }
            // Those that stay although nothing is under way are not routing's to take away.
            let settled = match began.elapsed() < DRAIN_HEARD_WITHIN {
                true => clients == 0 || quiet.elapsed() >= DRAIN_QUIET_FOR,
                false => busy == 0,
            };
            let ms = began.elapsed().as_millis();
            if settled {
                tracing::info!(clients, ms, "clients are drained");
                return;
            }
            if began.elapsed() + POLL >= limit {
                tracing::warn!(clients, busy, ms, "clients that are not done are cut off");
            }
            sleep(POLL / 2).await;
        }
    }

    /// Stops the database, and waits until nothing of it is left.
    pub(crate) async fn stop(&self, mode: StopMode) -> Result<()> {
        let guard = &self.executor.guard;
        let mut status = guard.status();
        if status.borrow().nothing_runs() {
            return Ok(());
        }
        guard.stop(mode, GUARD_WITHIN).await?;
        for harder in [Some(StopMode::Immediate), Some(StopMode::Kill), None] {
            let gone = timeout(SHUTDOWN_WITHIN, status.wait_for(|s| s.nothing_runs()))
                .await
                .is_ok_and(|ended| ended.is_ok());
            if gone {
                return Ok(());
            }
            let Some(harder) = harder else { break };
            tracing::warn!(?harder, "the database does not stop");
            guard.stop(harder, GUARD_WITHIN).await?;
        }
        bail!("the database does not stop, not even when killed; is its disk stuck?")
    }

    async fn restart(&mut self) -> Result<Done> {
        let next = Applied { admitted: false, ..self.applied.clone() };
        self.executor.dir.set_applied(&next)?;
        self.applied = next;
        self.stop(StopMode::Fast).await?;
        let data = self.executor.inspect().await;
        let me = self.instance().me.clone();
        Ok(Done { data: Some(data), propose: vec![Change::RestartDone(me)], ..self.done() })
    }

    /// The data directory has become another one, and may hold a configuration that turns TLS on:
    /// looks, and tells the record if that changed.
    pub(crate) async fn certificate_change(&self) -> Option<Change> {
        self.executor.look_at_certificate().await;
        let own_certificate = self.executor.own_certificate();
        let me = self.record.member(&self.instance().me)?;
        (me.own_certificate != own_certificate).then(|| Change::PutMember {
            member: Box::new(sempre_model::Member { own_certificate, ..me.clone() }),
            token_hash: None,
        })
    }

    /// Damage is what a fresh copy is for; what is somebody else's is not thrown away for it.
    pub(crate) async fn refuse_foreign(&self) -> Result<()> {
        match self.executor.inspect().await {
            (DataDir::Unusable(why), ..)
                if Code::named_in(&why) != Some(codes::DATABASE_DOES_NOT_START) =>
            {
                bail!("{why}")
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn clone_data(&mut self, source: &MemberId, discard: bool) -> Result<Done> {
        self.refuse_foreign().await?;
        self.stop(StopMode::Fast).await?;
        let upstream = self.upstream(source)?;
        let events = self.events.clone();
        let from = source.clone();
        let options = CloneOptions::default();
        self.instance()
            .clone_from(&upstream, &options, move |progress| {
                let text = format!(
                    "cloning from {from}: {} of {} MB",
                    progress.done_bytes >> 20,
                    progress.total_bytes.unwrap_or(0) >> 20
                );
                let _ = events.try_send(Event::Busy(Some(text)));
            })
            .await?;
        self.instance().prepare_role(true)?;
        self.applied.checked_for = self.record.generation;
        self.applied.resting = false;
        self.executor.dir.set_applied(&self.applied)?;
        let data = self.executor.inspect().await;
        let me = self.instance().me.clone();
        let mut propose = if discard { vec![Change::ReinitDone(me)] } else { Vec::new() };
        propose.extend(self.certificate_change().await);
        Ok(Done { data: Some(data), checked: true, propose, ..self.done() })
    }

    /// The first data directory: made, or adopted as it is.
    async fn bootstrap(&mut self) -> Result<Done> {
        let cluster = self.record.cluster.clone().context("not initialised")?;
        let (data, _, _) = self.executor.inspect().await;
        match data {
            DataDir::Unusable(why) => bail!("{why}"),
            DataDir::Missing => self.instance().init_db(&cluster.secrets).await?,
            DataDir::Present { .. } => self.instance().adopt(&cluster.secrets).await?,
        }
        let data = self.executor.inspect().await;
        let system_identifier = data.1.context("the new data directory has no identifier")?;
        let control = self.instance().control_data()?;
        // An adopted server may have been promoted many times before.
        let timeline = control.timeline.max(control.min_recovery_timeline);
        let me = self.instance().me.clone();
        let major_version = self.instance().installation.major;
        Ok(Done {
            data: Some(data),
            propose: vec![
                Change::Identify { system_identifier, major_version },
                Change::Bootstrap { primary: me, timeline },
            ],
            ..self.done()
        })
    }
}
