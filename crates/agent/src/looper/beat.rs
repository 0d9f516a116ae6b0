//! Heartbeats, and the lease that is renewed with them.

use super::{BEAT_DEADLINE, BEATS_UNDER_WAY_MAX, Event, Looper, RENEW_WITHIN};
use crate::{
    clock,
    hello::{HELLO, Hello},
};
use bytes::Bytes;
use sempre_decide::Millis;
use sempre_guard::Lease;
use sempre_model::{Generation, MemberId};
use std::time::Duration;

impl Looper {
    pub(super) fn extend_lease(&mut self, until: Millis) {
        let generation = self.state.record.generation;
        let armed = self.state.guard.postmaster.as_ref().and_then(|p| p.generation);
        if armed != Some(generation) {
            return;
        }
        let lease = self.lease(generation, until);
        let executor = self.executor.clone();
        tokio::spawn(async move {
            let renewed = executor.guard.renew(lease, RENEW_WITHIN).await;
            if let Err(error) = executor.replace_silent_guard(renewed).await {
                tracing::warn!(%error, "the guard did not take the renewed lease");
            }
        });
    }

    /// The lease as the guard holds it: it begins to kill a margin before the end.
    pub(super) fn lease(&self, generation: Generation, until: Millis) -> Lease {
        let margin = self.state.record.policy.lease_margin_ms;
        Lease { generation, deadline: clock::boot_time(until.saturating_sub(margin)) }
    }

    /// A heartbeat on every path to everyone, with a renewal if this member is primary.
    pub(super) fn beat(&mut self) {
        let now = clock::now_ms();
        self.last_beat = now;
        let news = std::mem::take(&mut self.news);
        let renewal = self.state.begin_renewal(now);
        if let Some((_, Some(until))) = renewal {
            self.extend_lease(until);
        }
        let observation = self.state.observe(now, self.consensus.promised());
        self.state.heard.insert(
            self.state.me.clone(),
            sempre_decide::Heard { at: now, observation: observation.clone() },
        );
        let interval = Duration::from_millis(self.state.record.policy.heartbeat_ms);
        let others: Vec<(MemberId, usize)> = self
            .state
            .record
            .members
            .values()
            .filter(|m| m.name != self.state.me)
            .map(|m| (m.name.clone(), m.paths.len()))
            .collect();
        let renewal = renewal.map(|(r, _)| r);
        let paths = others.iter().map(|(_, n)| *n).max().unwrap_or(0);
        let body = |path: usize, whole: bool| {
            let observation = whole.then(|| Box::new(observation.clone()));
            let hello = Hello { path, observation, news, renewal };
            serde_json::to_vec(&hello).ok().map(Bytes::from)
        };
        let whole: Vec<Bytes> = (0..paths).filter_map(|path| body(path, true)).collect();
        let light: Vec<Bytes> = (0..paths).filter_map(|path| body(path, false)).collect();
        for (to, count) in others {
            let best = (0..count).find(|path| !self.state.path_lost(&to, *path, now)).unwrap_or(0);
            // While a path is in doubt, nothing is spared: the word goes on all of them.
            let doubt = (0..count).any(|path| self.state.path_doubtful(&to, path, now));
            for path in 0..count.min(whole.len()).min(light.len()) {
                let body = if path == best || news || doubt { &whole[path] } else { &light[path] };
                let under_way = self.under_way.entry((to.clone(), path)).or_default();
                if *under_way >= BEATS_UNDER_WAY_MAX {
                    continue;
                }
                *under_way += 1;
                self.state.unanswered_since.entry((to.clone(), path)).or_insert(now);
                let (peers, events) = (self.peers.clone(), self.events.clone());
                let (to, body) = (to.clone(), body.clone());
                tokio::spawn(async move {
                    let sent = std::time::Instant::now();
                    let answer = peers
                        .call_on(&to, path, HELLO, body, interval * BEAT_DEADLINE)
                        .await
                        .ok()
                        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
                    let rtt_us = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
                    let _ = events.send(Event::Answered { from: to, path, rtt_us, answer }).await;
                });
            }
        }
    }
}
