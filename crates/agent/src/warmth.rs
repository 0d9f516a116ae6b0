//! The warm-up before a switchover, as far as this member knows of it: for which standby, and
//! whether anybody who leads clients is still at it. It never lasts longer than
//! `switchover_warm_up_ms`; no router's word is needed for that.

use crate::{clock, state::State};
use sempre_decide::{Millis, leader};
use sempre_model::{
    MemberId,
    record::{Cause, Phase},
};
use sempre_route::Router;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::watch;

/// Routers beside applications, and other members, get at least this long to say that they are at
/// it, ms: the table and a heartbeat reach them within it.
const SPEAK_WITHIN_MS: u64 = 300;

/// When a router beside an application last said that it is at it.
#[derive(Clone, Default)]
pub struct Followers(Arc<AtomicU64>);

impl Followers {
    /// One says so now.
    pub fn warming(&self) {
        self.0.store(clock::now_ms().max(1), Relaxed);
    }

    fn are_warming(&self, now: Millis) -> bool {
        let said = self.0.load(Relaxed);
        said > 0 && now.saturating_sub(said) < SPEAK_WITHIN_MS
    }
}

/// See the module.
#[derive(Default)]
pub struct Warmth {
    /// For whom this member's own routers are done.
    routers: Vec<watch::Receiver<Option<MemberId>>>,
    followers: Followers,
    /// Since when the standby of the present wish is known.
    since: Option<Millis>,
}

/// What is to be told to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warming {
    /// The standby that takes over.
    pub target: Option<MemberId>,
    /// Somebody is still at it.
    pub at_it: bool,
}

impl Warmth {
    /// Of these routers, and of those that ask this member.
    pub fn new(routers: &[Arc<Router>], followers: Followers) -> Self {
        let routers = routers.iter().filter_map(|router| router.warmed()).collect();
        Self { routers, followers, since: None }
    }

    /// Looks again.
    pub fn look(&mut self, state: &State, voters: &BTreeSet<MemberId>, now: Millis) -> Warming {
        let limit = state.record.policy.switchover_warm_up_ms;
        let target = target(state, voters, now).filter(|_| limit > 0);
        if state.record.phase != Phase::Serving || state.record.switchover.is_none() {
            self.since = None;
            return Warming { target, at_it: false };
        }
        let Some(target) = target else { return Warming::default() };
        let passed = now.saturating_sub(*self.since.get_or_insert(now));
        let done =
            |router: &watch::Receiver<Option<MemberId>>| router.borrow().as_ref() == Some(&target);
        let at_it = passed < limit
            && (passed < SPEAK_WITHIN_MS
                || !self.routers.iter().all(done)
                || self.followers.are_warming(now));
        Warming { target: Some(target), at_it }
    }
}

/// The standby that a switchover goes to, or is on its way to.
fn target(state: &State, voters: &BTreeSet<MemberId>, now: Millis) -> Option<MemberId> {
    let record = &state.record;
    match &record.phase {
        Phase::Serving => {
            let wish = record.switchover.as_ref()?;
            let due = wish.at_unix_ms.is_none_or(|at| at <= clock::now_unix_ms());
            let primary = record.primary.as_ref().filter(|_| due)?;
            leader::target(&state.view(now, voters), primary, wish).ok()
        }
        Phase::HandingOver { to, .. } => Some(to.clone()),
        Phase::Fencing { cause: Cause::Switchover, target, .. } => target.clone(),
        Phase::Promoting { cause: Cause::Switchover, .. } => record.primary.clone(),
        Phase::Forming | Phase::Fencing { .. } | Phase::Promoting { .. } => None,
    }
}
