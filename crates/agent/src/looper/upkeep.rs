//! What keeps a database in order besides its role: positions to be read, paths that are lost,
//! replication slots.

use super::{HOUSEKEEPING_MS, Looper, SYNC_SETTLE_MS};
use crate::{clock, executor::Job};
use sempre_decide::{Millis, member};
use sempre_model::{MemberId, backup::archiver_of, observation::Role, record::Phase};
use std::collections::BTreeMap;

impl Looper {
    /// What keeps a database in order, besides its role.
    pub(super) fn upkeep(&self, now: Millis) -> Option<Job> {
        let state = &self.state;
        let answers = state.process_answers();
        let generation = state.record.generation;
        if state.record.phase == Phase::Forming {
            let first = state.who.first && state.record.cluster.is_some();
            return (first && now >= state.retry_at).then_some(Job::Bootstrap);
        }
        if !answers {
            return None;
        }
        if state.applied.resting && state.report.database.role == Role::Standby {
            // A former primary that is read for a while is no standby that anybody may choose.
            return None;
        }
        match state.report.database.role {
            Role::Standby if matches!(state.record.phase, Phase::Fencing { .. }) => {
                let reported = state.fenced.as_ref().is_some_and(|f| f.generation == generation);
                (state.applied.upstream.is_none() && !reported).then_some(Job::ReadFence)
            }
            Role::Standby => self.lost_upstream_path(now),
            Role::Primary if state.applied.recovered.is_none() => Some(Job::SampleRecovered),
            Role::Primary if state.applied.sync_since.is_none() => {
                (now >= self.sync_written_at + SYNC_SETTLE_MS).then_some(Job::SampleSync)
            }
            Role::Primary => self.stale_walsender(now),
            Role::Unknown => None,
        }
        .or_else(|| self.housekeeping(now))
    }

    pub(super) fn housekeeping(&self, now: Millis) -> Option<Job> {
        if self.state.record.phase != Phase::Serving || now < self.kept_house_at + HOUSEKEEPING_MS {
            return None;
        }
        let lsn = |h: &sempre_decide::Heard| h.observation.database.as_ref().map(|d| d.lsn);
        let heard = self.state.heard.iter();
        let archived = heard.clone().flat_map(|(_, heard)| &heard.observation.archives);
        let archived =
            archived.filter_map(|(name, archive)| Some((archiver_of(name).ok()?, archive.flushed)));
        let positions = heard
            .filter_map(|(name, heard)| Some((name.clone(), lsn(heard)?)))
            .chain(archived)
            .collect();
        Some(Job::HouseKeeping { positions })
    }

    /// The address a standby streams from is on a lost network, and another works.
    pub(super) fn lost_upstream_path(&self, now: Millis) -> Option<Job> {
        let upstream = self.state.applied.upstream.clone()?;
        let host = self.executor.upstream_host()?;
        let member = self.state.record.member(&upstream)?;
        let path = member.paths.iter().position(|p| p.host == host)?;
        self.state
            .path_lost(&upstream, path, now)
            .then_some(Job::Step(member::Step::Follow { upstream: Some(upstream) }))
    }

    /// A walsender still serves a standby over a lost network, and holds its slot.
    pub(super) fn stale_walsender(&self, now: Millis) -> Option<Job> {
        self.state.report.database.downstreams.iter().find_map(|(name, downstream)| {
            let member = self.state.record.member(name)?;
            let address = downstream.client_addr.as_ref()?;
            let path = member.paths.iter().position(|p| p.host == *address)?;
            self.state
                .path_lost(name, path, now)
                .then(|| Job::CutWalsender { member: name.clone(), address: address.clone() })
        })
    }

    /// Each member's addresses, living paths first.
    pub(super) fn hosts(&self) -> BTreeMap<MemberId, Vec<String>> {
        let now = clock::now_ms();
        self.state
            .record
            .members
            .values()
            .map(|m| {
                let mut paths: Vec<(bool, usize, String)> = m
                    .paths
                    .iter()
                    .enumerate()
                    .map(|(i, p)| (self.state.path_lost(&m.name, i, now), i, p.host.clone()))
                    .collect();
                paths.sort();
                (m.name.clone(), paths.into_iter().map(|(_, _, host)| host).collect())
            })
            .collect()
    }

    /// Addresses that cannot be reached from here while their owner lives.
    pub(super) fn dead_hosts(&self, now: Millis) -> Vec<String> {
        let members = self.state.record.members.values();
        members
            .flat_map(|m| m.paths.iter().enumerate().map(move |(i, p)| (m, i, p)))
            .filter(|(m, i, _)| self.state.path_lost(&m.name, *i, now))
            .map(|(_, _, p)| p.host.clone())
            .collect()
    }
}
