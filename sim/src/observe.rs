//! What an agent sees of its member, and says: filled in as `model::observation` documents it.

use crate::{clock::MS, database::Running, event::Process, world::World};
use sempre_decide::{
    LeaderView, Millis,
    member::{Local, Step},
};
use sempre_model::{
    Generation, Lsn, MemberId, Observation, Phase, Timeline,
    observation::{Database, Downstream, LeaseView, PathView, ProcessState, Role},
    record::Fenced,
};
use std::collections::BTreeSet;

/// After this many failed starts a member says that it cannot.
const START_FAILURES_MAX: u32 = 2;
/// A disk that is not healthy is noticed after this long, µs.
const PROBE_US: u64 = 500 * MS;

impl World {
    /// What the leader's decision is made from.
    pub fn view<'a>(&'a self, m: usize, voters: &'a BTreeSet<MemberId>) -> LeaderView<'a> {
        let agent = &self.members[m].agent;
        LeaderView {
            record: &agent.record,
            me: &self.names[m],
            now: self.clock(m),
            now_unix_ms: self.unix_ms(),
            started: agent.started,
            since: agent.since,
            since_before_start: agent.since_before_start,
            voters,
            heard: &agent.heard,
        }
    }

    /// What the member's own decision is made from.
    pub fn local<'a>(
        &'a self,
        m: usize,
        voters: &'a BTreeSet<MemberId>,
        database: &'a Database,
    ) -> Local<'a> {
        let machine = &self.members[m];
        let agent = &machine.agent;
        Local {
            view: self.view(m, voters),
            promised: machine.promised,
            lease_until: self.lease_until(m),
            running: machine.db.running != Running::Down,
            armed: machine.guard.armed.map(|(g, _)| g),
            fenced_below: machine.guard.fenced_below,
            crashed_at: machine.guard.crashed_at,
            data: machine.data.dir(),
            database,
            upstream: machine.data.upstream.map(|u| self.names[u].clone()),
            sync: machine.data.sync.clone(),
            admitted: machine.data.admitted,
            not_streaming_since: agent.not_streaming_since,
            checked_for: machine.data.checked_for,
            retry_at: agent.retry_at,
            settings_differ: machine.data.parameters != agent.record.parameters,
            resting: machine.data.resting,
        }
    }

    /// Since when it should stream and does not.
    pub fn watch_streaming(&mut self, m: usize) {
        let now = self.clock(m);
        let machine = &mut self.members[m];
        let should = machine.db.running == Running::Up
            && machine.db.role == Role::Standby
            && machine.data.upstream.is_some();
        let streams = machine.db.receiver.as_ref().is_some_and(|r| r.streaming);
        if !should || streams {
            machine.agent.not_streaming_since = None;
        } else if machine.agent.not_streaming_since.is_none() {
            machine.agent.not_streaming_since = Some(now);
        }
    }

    fn process(&self, m: usize) -> ProcessState {
        let machine = &self.members[m];
        let hang = machine.agent.record.policy.hang_ms * MS;
        match machine.db.running {
            Running::Up if machine.db.hung_since.is_some_and(|s| self.now - s >= hang) => {
                ProcessState::Hung
            }
            Running::Up => ProcessState::Running,
            Running::Starting => ProcessState::Starting,
            Running::Down if machine.agent.failures > START_FAILURES_MAX => {
                ProcessState::Failing("it does not start".into())
            }
            Running::Down if machine.guard.crashed_at.is_some() => ProcessState::Crashed,
            Running::Down => ProcessState::Stopped,
        }
    }

    /// What the agent knows of its database.
    pub fn report(&self, m: usize) -> Database {
        let (now, machine) = (self.now, &self.members[m]);
        let (data, db) = (&machine.data, &machine.db);
        let answers = db.running == Running::Up && db.hung_since.is_none();
        let mut report = Database {
            process: self.process(m),
            has_data: data.present,
            system_identifier: data.present.then_some(1),
            timeline: Timeline(data.timeline()),
            lsn: Lsn(data.flushed_lsn()),
            replay_lsn: Lsn(data.flushed_lsn()),
            redo_bytes: data.end_lsn() % 60_000_000,
            generation: machine.guard.armed.map(|(g, _)| g).unwrap_or_default(),
            clean_end_lsn: data.clean_end.map(Lsn),
            ..Database::default()
        };
        if !answers {
            return report;
        }
        report.role = db.role;
        if let Some(receiver) = db.receiver.as_ref().filter(|r| r.streaming) {
            report.streaming_from = Some(self.names[receiver.upstream].clone());
            report.receiver_age_ms = Some((now - receiver.heard_at) / MS);
        }
        for (standby, sender) in &db.senders {
            let flushed = Lsn(sender.flushed.unwrap_or(0));
            let downstream = Downstream {
                state: if sender.flushed.is_some() { "streaming" } else { "catchup" }.into(),
                flush_lsn: flushed,
                replay_lsn: flushed,
                sync_state: "quorum".into(),
                reply_age_ms: (now - sender.replied_at) / MS,
                client_addr: None,
            };
            report.downstreams.insert(self.sender_name(*standby).clone(), downstream);
        }
        if db.role == Role::Primary {
            report.sync = Some(data.sync.clone());
            // From the moment a change is handed out, what is enforced is not known.
            let doing = self.members[m].agent.doing.as_ref();
            let changing = doing.is_some_and(|d| matches!(d.step, Step::SetSync { .. }));
            let since = db.sync_since.filter(|_| !changing);
            report.sync_since_lsn = Lsn(since.unwrap_or(u64::MAX));
            report.recovered_lsn = Lsn(db.recovered);
            report.admitted = data.admitted && self.lease_until(m).is_some();
        }
        report
    }

    /// Its word that it is fenced, if it is.
    pub fn fenced(&self, m: usize) -> Option<Fenced> {
        let machine = &self.members[m];
        let (data, db, record) = (&machine.data, &machine.db, &machine.agent.record);
        let stopped = db.upstream.is_none() && data.upstream.is_none() && db.receiver.is_none();
        let fenced = matches!(record.phase, Phase::Fencing { .. })
            && db.running == Running::Up
            && db.hung_since.is_none()
            && db.role == Role::Standby
            && stopped
            && machine.guard.armed.is_none()
            // A former primary that is read for a while is no standby that anybody may choose.
            && !data.resting
            && machine.promised >= record.generation;
        fenced.then(|| Fenced {
            member: self.names[m].clone(),
            generation: record.generation,
            timeline: Timeline(data.timeline()),
            lsn: Lsn(data.flushed_lsn()),
            ancestors: data.ancestors(),
        })
    }

    /// What the member says.
    pub fn observe(&mut self, m: usize) -> Observation {
        let now = self.clock(m);
        self.members[m].agent.seq += 1;
        let database = self.members[m].has_database.then(|| self.report(m));
        let fenced = self.fenced(m);
        let lease = self.lease_until(m);
        let machine = &self.members[m];
        let (agent, guard) = (&machine.agent, &machine.guard);
        let generation = agent.record.generation;
        let voter = agent.voter.as_ref().expect("a running agent votes");
        let view = |at: &Option<Millis>| PathView {
            age_ms: at.map(|at| now.saturating_sub(at)),
            rtt_us: None,
        };
        let heard = self
            .names
            .iter()
            .enumerate()
            .filter(|(p, name)| *p != m && agent.record.members.contains_key(*name))
            .map(|(p, name)| (name.clone(), agent.paths[p].iter().map(view).collect()))
            .collect();
        let answers = guard.up && !machine.is_paused(Process::Guard);
        let busy = agent.doing.as_ref().is_some_and(|d| {
            matches!(d.step, Step::Rejoin { .. } | Step::Clone { .. } | Step::Recover { .. })
        });
        let noticed = self.now.saturating_sub(machine.disk.since) >= PROBE_US;
        Observation {
            incarnation: agent.life,
            seq: agent.seq,
            record_version: agent.record.version,
            generation,
            raft_leader: machine.raft.leader,
            database,
            disk: if noticed { machine.disk.state.clone() } else { Default::default() },
            fenced,
            attests_below: if answers { guard.fenced_below } else { Generation(0) },
            voters: machine.raft.voters().1,
            promised: voter.promised(),
            old_grant_ms: voter.old_grant_ms(now),
            grant_ms: voter.grant_ms(generation, now),
            hand_over_ready: agent.hand_over_ready,
            warming: false,
            lease: lease
                .map(|until| LeaseView { generation, remaining_ms: until.saturating_sub(now) }),
            heard,
            busy: busy.then(|| "copying".to_owned()),
            archives: self.archive_views(m),
            fenced_archives: self.archive_fences(m),
            ..Observation::empty(self.names[m].clone(), machine.node)
        }
    }
}
