//! Which addresses are dead from here while their owner lives.
//!
//! A stand-alone router has no agent that would tell it. So it asks every known REST address for a
//! word, ten times a second, and calls an address dead when it is silent while another one of the
//! same member answers. A member that is silent everywhere is not judged: its sessions may live.
//!
//! One lost packet is no silence: TCP sends it again only after 200 ms, and all that follows on that
//! connection waits for it. So the questions take turns on several connections, and on a network
//! that goes on to lose packets [`Patience`] grows.

use crate::{VERIFY_PATH, http::Client};
use rustls::ClientConfig;
use sempre_model::{MemberId, Patience};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};

/// Connections to one address that take turns.
pub(crate) const LANES: u32 = 3;
/// Between two questions on one of them. They begin one after the other, so that an address is
/// asked so many times as often.
const PROBE_EVERY: Duration = Duration::from_millis(300);
/// How long one answer may take: TCP may have to send the question again, after 200 ms. Later than
/// that a new connection is the quicker way to find out that the path works again.
const PROBE_WITHIN: Duration = Duration::from_millis(500);
/// Silent for this long, on a path that never was before: dead, if another address of its owner is
/// not.
const DEAD_AFTER: Duration = Duration::from_millis(300);
/// Host and REST port.
pub(crate) type Endpoint = (String, u16);

/// When each address answered.
pub(crate) struct Pulse {
    began: Instant,
    answers: BTreeMap<Endpoint, Patience>,
}

impl Pulse {
    pub fn new(now: Instant) -> Self {
        Self { began: now, answers: BTreeMap::new() }
    }

    fn at_ms(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.began))
    }

    fn steady(&self, endpoint: &Endpoint, now_ms: u64) -> bool {
        self.answers.get(endpoint).is_some_and(|p| p.steady(millis(DEAD_AFTER), now_ms))
    }

    /// An address answered.
    pub fn beat(
        &mut self,
        endpoint: Endpoint,
        places: &BTreeMap<MemberId, BTreeSet<Endpoint>>,
        now: Instant,
    ) {
        let now_ms = self.at_ms(now);
        let mut owner = places.values().filter(|endpoints| endpoints.contains(&endpoint)).flatten();
        let others = owner.any(|other| *other != endpoint && self.steady(other, now_ms));
        let patience = self.answers.entry(endpoint).or_default();
        patience.speaks(others, millis(DEAD_AFTER), now_ms);
    }

    /// The hosts that are dead from here while their owner lives.
    pub fn dead_hosts(
        &self,
        places: &BTreeMap<MemberId, BTreeSet<Endpoint>>,
        now: Instant,
    ) -> Vec<String> {
        let now_ms = self.at_ms(now);
        // One that never answered is not judged: it may not be reachable by design.
        let silent = |endpoint: &&Endpoint| {
            self.answers.get(*endpoint).is_some_and(|p| p.over(millis(DEAD_AFTER), now_ms))
        };
        let mut dead = Vec::new();
        for endpoints in places.values() {
            if endpoints.iter().any(|endpoint| self.steady(endpoint, now_ms)) {
                dead.extend(endpoints.iter().filter(silent).map(|(host, _)| host.clone()));
            }
        }
        dead.sort();
        dead
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Asks one address for ever, and reports each answer. `lane` is below [`LANES`].
pub(crate) async fn probe(
    endpoint: Endpoint,
    lane: u32,
    tls: Option<Arc<ClientConfig>>,
    report: mpsc::Sender<Endpoint>,
) {
    let mut client = Client::new(endpoint.0.clone(), endpoint.1, tls);
    let path = format!("{VERIFY_PATH}?generation=0");
    time::sleep(PROBE_EVERY / LANES * lane).await;
    loop {
        let began = Instant::now();
        if client.get(&path, PROBE_WITHIN).await.is_ok()
            && report.send(endpoint.clone()).await.is_err()
        {
            return;
        }
        time::sleep_until(began + PROBE_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Endpoint, Endpoint, BTreeMap<MemberId, BTreeSet<Endpoint>>) {
        let member = MemberId::new("m1").unwrap();
        let (a, b) = (("10.0.0.1".to_owned(), 1), ("10.1.0.1".to_owned(), 1));
        let places = BTreeMap::from([(member, BTreeSet::from([a.clone(), b.clone()]))]);
        (a, b, places)
    }

    #[test]
    fn only_an_address_whose_owner_lives_is_dead() {
        let (a, b, places) = two();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pulse = Pulse::new(start);
        assert!(pulse.dead_hosts(&places, start).is_empty());
        pulse.beat(a.clone(), &places, start);
        assert!(pulse.dead_hosts(&places, start).is_empty(), "the other one never answered");
        pulse.beat(b.clone(), &places, start);
        assert!(pulse.dead_hosts(&places, at(301)).is_empty(), "its owner is silent, too");
        [100, 200, 300].iter().for_each(|ms| pulse.beat(b.clone(), &places, at(*ms)));
        assert_eq!(pulse.dead_hosts(&places, at(301)), ["10.0.0.1"]);
        pulse.beat(a, &places, at(301));
        assert!(pulse.dead_hosts(&places, at(301)).is_empty());
    }

    #[test]
    fn an_address_that_was_silent_and_spoke_again_is_given_longer() {
        let (a, b, places) = two();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pulse = Pulse::new(start);
        pulse.beat(a.clone(), &places, start);
        let mut dead = Vec::new();
        for ms in (0..=1_500).step_by(100) {
            if ms == 500 {
                pulse.beat(a.clone(), &places, at(ms));
            }
            pulse.beat(b.clone(), &places, at(ms));
            if !pulse.dead_hosts(&places, at(ms)).is_empty() {
                dead.push(ms);
            }
        }
        assert_eq!(dead, [300, 400, 1_500], "1000 ms are needed when 500 meant nothing");
    }
}
