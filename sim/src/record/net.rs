//! The network between members: calls and answers, each lost, late or doubled by itself.

use super::cluster::Cluster;
use crate::rng::Rng;
use async_trait::async_trait;
use sempre_consensus::{CallKind, Consensus, Transport, TransportError};
use sempre_model::NodeId;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};

/// What the network does at present.
#[derive(Debug, Default)]
pub struct Net {
    /// Cut directions, counted.
    cut: BTreeMap<(NodeId, NodeId), u32>,
    /// Calls or answers lost, per mille.
    pub loss: u64,
    /// Calls that arrive twice, per mille.
    pub twice: u64,
    /// Calls or answers that are late, per mille.
    pub late: u64,
    /// By this much at most, ms.
    pub late_ms: u64,
}

impl Net {
    /// Cuts one direction.
    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        *self.cut.entry((from, to)).or_default() += 1;
    }

    /// Takes one cut back.
    pub fn mend(&mut self, from: NodeId, to: NodeId) {
        if let Some(count) = self.cut.get_mut(&(from, to)) {
            *count = count.saturating_sub(1);
        }
    }

    fn passes(&self, from: NodeId, to: NodeId, rng: &mut Rng) -> bool {
        self.cut.get(&(from, to)).is_none_or(|count| *count == 0) && !rng.chance(self.loss)
    }

    fn delay(&self, rng: &mut Rng) -> Duration {
        let late = if self.late > 0 && rng.chance(self.late) { self.late_ms * 1_000 } else { 0 };
        Duration::from_micros(rng.range(100, 2_000) + rng.range(0, late))
    }
}

/// One member's end of the network, for one boot of it.
pub struct End {
    /// The cluster.
    pub cluster: Cluster,
    /// Whose.
    pub from: NodeId,
}

#[async_trait]
impl Transport for End {
    async fn call(
        &self,
        to: NodeId,
        kind: CallKind,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        let (from, cluster) = (self.from, &self.cluster);
        let until = Instant::now() + within;
        let lost = TransportError::TimedOut { to, waited_ms: within.as_millis() as u64 };
        let there = cluster.hop(from, to);
        cluster
            .log(|| format!("{from} -> {to} {kind}{}", if there.is_none() { " lost" } else { "" }));
        let Some((delay, twice)) = there else {
            // Whether a connection came about is not known to the caller alike.
            if cluster.chance(300) {
                sleep(within / 4).await;
                return Err(TransportError::Unreachable { to, why: "no connection".into() });
            }
            sleep_until(until).await;
            return Err(lost);
        };
        sleep(delay).await;
        let Some((boot, member)) = cluster.running(to) else {
            return Err(TransportError::Unreachable { to, why: "it is down".into() });
        };
        if twice {
            let (member, body, again) = (member.clone(), body.clone(), delay * 5);
            boot.spawn(async move {
                sleep(again).await;
                let _ = member.serve(kind, &body).await;
            });
        }
        // The callee goes on when the caller gives up.
        let serving = boot.spawn(async move { member.serve(kind, &body).await });
        let answer = tokio::select! {
            biased;
            answer = serving => answer,
            () = sleep_until(until) => return Err(lost),
        };
        if boot.is_dead() {
            return Err(TransportError::Failed { to, why: "it died".into() });
        }
        let back = cluster.hop(to, from);
        let Some((delay, _)) = back else {
            cluster.log(|| format!("{from} <- {to} {kind} lost"));
            sleep_until(until).await;
            return Err(lost);
        };
        tokio::select! {
            biased;
            () = sleep(delay) => {}
            () = sleep_until(until) => return Err(lost),
        }
        cluster.log(|| format!("{from} <- {to} {kind}"));
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(TransportError::Failed { to, why: error.to_string() }),
            Err(error) => Err(TransportError::Failed { to, why: error.to_string() }),
        }
    }
}

/// Decides over one way: how long it takes and whether it arrives twice, or not at all.
pub fn hop(net: &Net, rng: &mut Rng, from: NodeId, to: NodeId) -> Option<(Duration, bool)> {
    net.passes(from, to, rng).then(|| (net.delay(rng), net.twice > 0 && rng.chance(net.twice)))
}
