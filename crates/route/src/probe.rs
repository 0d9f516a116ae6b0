//! Which addresses are dead from here while their owner lives.
//!
//! A stand-alone router has no agent that would tell it. So it asks every known REST address for a
//! word, ten times a second, and calls an address dead when it is silent while another one of the
//! same member answers. A member that is silent everywhere is not judged: its sessions may live.

use crate::{VERIFY_PATH, http::Client};
use rustls::ClientConfig;
use sempre_model::MemberId;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};

/// Between two questions to one address.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// How long one answer may take. Longer than a loaded member needs, as it only has to be told
/// apart from silence.
const PROBE_WITHIN: Duration = Duration::from_millis(250);
/// Silent for this long: dead, if another address of its owner is not.
const DEAD_AFTER: Duration = Duration::from_millis(300);
/// An owner is alive when it answered on another address within this time.
const ALIVE_WITHIN: Duration = Duration::from_millis(250);

/// Host and REST port.
pub(crate) type Endpoint = (String, u16);

/// When each address last answered.
#[derive(Default)]
pub(crate) struct Pulse {
    last: BTreeMap<Endpoint, Instant>,
}

impl Pulse {
    /// An address answered.
    pub fn beat(&mut self, endpoint: Endpoint, now: Instant) {
        self.last.insert(endpoint, now);
    }

    /// The hosts that are dead from here while their owner lives.
    pub fn dead_hosts(
        &self,
        places: &BTreeMap<MemberId, BTreeSet<Endpoint>>,
        now: Instant,
    ) -> Vec<String> {
        let silent = |endpoint: &Endpoint| {
            self.last.get(endpoint).map(|at| now.saturating_duration_since(*at))
        };
        let mut dead = Vec::new();
        for endpoints in places.values() {
            let lives = endpoints.iter().any(|e| silent(e).is_some_and(|s| s < ALIVE_WITHIN));
            if lives {
                // One that never answered is not judged: it may not be reachable by design.
                let lost = endpoints.iter().filter(|e| silent(e).is_some_and(|s| s > DEAD_AFTER));
                dead.extend(lost.map(|(host, _)| host.clone()));
            }
        }
        dead.sort();
        dead
    }
}

/// Asks one address for ever, and reports each answer.
pub(crate) async fn probe(
    endpoint: Endpoint,
    tls: Option<Arc<ClientConfig>>,
    report: mpsc::Sender<Endpoint>,
) {
    let mut client = Client::new(endpoint.0.clone(), endpoint.1, tls);
    let path = format!("{VERIFY_PATH}?generation=0");
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

    #[test]
    fn only_an_address_whose_owner_lives_is_dead() {
        let member = MemberId::new("m1").unwrap();
        let (a, b) = (("10.0.0.1".to_owned(), 1), ("10.1.0.1".to_owned(), 1));
        let places = BTreeMap::from([(member, BTreeSet::from([a.clone(), b.clone()]))]);
        let start = Instant::now();
        let later = start + DEAD_AFTER + Duration::from_millis(1);
        let mut pulse = Pulse::default();
        assert!(pulse.dead_hosts(&places, start).is_empty());
        pulse.beat(a.clone(), start);
        assert!(pulse.dead_hosts(&places, start).is_empty(), "the other one never answered");
        pulse.beat(b.clone(), start);
        assert!(pulse.dead_hosts(&places, later).is_empty(), "its owner is silent, too");
        pulse.beat(b, later);
        assert_eq!(pulse.dead_hosts(&places, later), ["10.0.0.1"]);
        pulse.beat(a, later);
        assert!(pulse.dead_hosts(&places, later).is_empty());
    }
}
