//! The warm-up for one standby: who is called, when, and when it is over.

use super::{
    AT_ONCE, FAILURES_MAX, LOCATE_WITHIN, NOTE_WITHIN, PACE, ROUNDS_MAX, STATEMENTS_BYTES_MAX,
    UNUSED_FOR, WARM_MAX,
};
use crate::{Mode, Role, Table, choose::Candidate, proxy::Proxy};
use sempre_model::{Lsn, MemberId};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
};
use tokio::{
    sync::{Mutex as Turn, Semaphore, watch},
    time::{self, Instant},
};

/// See the module above.
pub(crate) struct Campaign {
    pub candidate: Candidate,
    /// Sessions may still note what they have for this round.
    round: Mutex<Round>,
    /// Of which round the primary's position is known.
    located: watch::Sender<Option<(u32, Lsn)>>,
    /// A session between two transactions is wanted.
    wanted: AtomicBool,
    /// The round for which the standby has replayed that.
    pub caught_up: AtomicU64,
    /// Who looks whether it has.
    pub scout: Turn<()>,
    pub places: Semaphore,
    pace: Turn<Option<Instant>>,
    /// Sessions that were called and are not done, by round.
    at_work: watch::Sender<[usize; ROUNDS]>,
    /// What their statements take, bytes.
    bytes: AtomicUsize,
    failures: AtomicUsize,
    over: watch::Sender<bool>,
}

/// Rounds that sessions may be of: none is called in the first and the last.
const ROUNDS: usize = ROUNDS_MAX as usize + 2;

#[derive(Clone, Copy)]
struct Round {
    number: u32,
    noting: bool,
}

/// A session that makes a warm connection, or does not any more when dropped.
pub(crate) struct AtWork {
    pub campaign: Arc<Campaign>,
    pub round: u32,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.campaign.at_work.send_modify(|counts| counts[self.round as usize] -= 1);
    }
}

/// What a warm connection's statements take.
pub(crate) struct Bytes(Arc<Campaign>, usize);

impl Drop for Bytes {
    fn drop(&mut self) {
        self.0.bytes.fetch_sub(self.1, Relaxed);
    }
}

impl Campaign {
    fn new(candidate: Candidate) -> Self {
        Self {
            candidate,
            round: Mutex::new(Round { number: 0, noting: false }),
            located: watch::Sender::new(None),
            wanted: AtomicBool::new(false),
            caught_up: AtomicU64::new(0),
            scout: Turn::new(()),
            places: Semaphore::new(AT_ONCE),
            pace: Turn::new(None),
            at_work: watch::Sender::new([0; ROUNDS]),
            bytes: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            over: watch::Sender::new(false),
        }
    }

    fn round(&self) -> std::sync::MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins. What it has is to be noted *before* this.
    pub fn begin(self: &Arc<Self>) -> AtWork {
        let round = self.round();
        // Who comes too late for this round's position waits for the next one.
        let number = if round.noting { round.number } else { round.number + 1 };
        self.at_work.send_modify(|counts| counts[number as usize] += 1);
        AtWork { campaign: self.clone(), round: number }
    }

    /// Room for statements. None: there is too little.
    pub fn bytes(self: &Arc<Self>, bytes: usize) -> Option<Bytes> {
        let held = Bytes(self.clone(), bytes);
        let before = self.bytes.fetch_add(bytes, Relaxed);
        (before + bytes <= STATEMENTS_BYTES_MAX).then_some(held)
    }

    /// Is a session wanted to ask the primary for its position?
    pub fn wants_position(&self) -> bool {
        self.wanted.load(Relaxed)
    }

    /// One will ask. False: another one does already.
    pub fn take_position(&self) -> bool {
        self.wanted.swap(false, Relaxed)
    }

    /// It was told, or not.
    pub fn tell_position(&self, position: Option<Lsn>) {
        let number = self.round().number;
        match position {
            Some(lsn) => self.located.send_modify(|located| *located = Some((number, lsn))),
            None => {
                self.failed();
                self.wanted.store(!*self.over.borrow(), Relaxed);
            }
        }
    }

    /// The primary's position after what was noted for a round.
    pub async fn position(&self, round: u32) -> Option<Lsn> {
        let mut located = self.located.subscribe();
        let known = located.wait_for(|known| known.is_some_and(|(number, _)| number >= round));
        known.await.ok().and_then(|known| known.map(|(_, lsn)| lsn))
    }

    /// Waits for the next log-in's turn.
    pub async fn pace(&self) {
        let mut next = self.pace.lock().await;
        if let Some(next) = *next {
            time::sleep_until(next).await;
        }
        *next = Some(Instant::now() + PACE);
    }

    /// A session could not log in.
    pub fn failed(&self) {
        if self.failures.fetch_add(1, Relaxed) + 1 >= FAILURES_MAX {
            self.end();
        }
    }

    /// Nobody begins any more.
    pub fn end(&self) {
        self.over.send_replace(true);
    }

    /// Ends when nobody is to begin any more.
    pub async fn ended(&self) {
        // The sender is part of `self`.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// Calls everybody who has a connection to the primary, in rounds.
    async fn run(&self, proxy: &Proxy) {
        let sessions = &proxy.shared.sessions;
        sessions.forget_calls();
        for number in 1..=ROUNDS_MAX {
            *self.round() = Round { number, noting: true };
            let room = WARM_MAX.saturating_sub(sessions.warm());
            if sessions.call(room) == 0 {
                break;
            }
            let until = Instant::now() + NOTE_WITHIN;
            while sessions.called() > 0 && Instant::now() < until {
                time::sleep(PACE).await;
            }
            *self.round() = Round { number, noting: false };
            let done = |counts: &[usize; ROUNDS]| counts[number as usize] == 0;
            if done(&self.at_work.borrow()) {
                continue;
            }
            self.wanted.store(true, Relaxed);
            sessions.nudge();
            if time::timeout(LOCATE_WITHIN, self.position(number)).await.is_err() {
                tracing::info!("no session could ask the primary for its position");
                break;
            }
            let mut at_work = self.at_work.subscribe();
            let _ = at_work.wait_for(done).await;
        }
        self.wanted.store(false, Relaxed);
        self.end();
        let (member, warm) = (&self.candidate.target.member, sessions.warm());
        tracing::info!(%member, warm, "sessions are warmed up");
    }
}

/// The campaign of a router, if there is one.
pub(crate) struct Campaigns {
    now: Mutex<Option<Arc<Campaign>>>,
    /// For whom everything is warmed up that will be.
    done: watch::Sender<Option<MemberId>>,
}

impl Default for Campaigns {
    fn default() -> Self {
        Self { now: Mutex::new(None), done: watch::Sender::new(None) }
    }
}

/// Whom to warm up for by a table.
fn wanted(table: &Table) -> Option<Candidate> {
    let target = table.warm.clone()?;
    let serves = table.primary.as_ref().is_some_and(|p| p.member != target.member);
    let fits = serves && !table.draining && !table.primary_stopped;
    fits.then_some(Candidate { target, role: Role::Warm, generation: table.generation })
}

impl Campaigns {
    pub fn now(&self) -> Option<Arc<Campaign>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn done(&self) -> watch::Receiver<Option<MemberId>> {
        self.done.subscribe()
    }

    fn set(&self, campaign: Option<Arc<Campaign>>) {
        let old = {
            let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *now, campaign)
        };
        if let Some(old) = old {
            old.end();
        }
    }

    /// Begins and ends campaigns as tables say.
    pub async fn keep(proxy: Arc<Proxy>) {
        if proxy.shared.mode == Mode::ReadOnly {
            return;
        }
        // The source of tables is gone: what there is stays as it is.
        while proxy.campaigns.hold_one(&proxy).await.is_ok() {}
    }

    async fn hold_one(&self, proxy: &Proxy) -> Result<(), watch::error::RecvError> {
        let mut table = proxy.shared.table.clone();
        let table_wants = table.wait_for(|table| wanted(table).is_some()).await?.clone();
        let Some(candidate) = wanted(&table_wants) else { return Ok(()) };
        let member = candidate.target.member.clone();
        let generation = candidate.generation;
        let same = |table: &Table| {
            wanted(table)
                .is_some_and(|now| now.target.member == member && now.generation == generation)
        };
        let campaign = Arc::new(Campaign::new(candidate));
        self.set(Some(campaign.clone()));
        let work = async {
            campaign.run(proxy).await;
            self.done.send_replace(Some(member.clone()));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = work => {}
            over = table.wait_for(|table| !same(table)) => drop(over?),
        }
        campaign.end();
        // Somebody is the primary in the end, or somebody else is to be.
        let leads = |table: &Table| table.primary.as_ref().is_some_and(|p| p.member == member);
        let decided = |table: &Arc<Table>| table.primary.is_some() || wanted(table).is_some();
        if leads(&table.wait_for(decided).await?.clone()) {
            let elsewhere = table.wait_for(|table| {
                wanted(table).is_some() || table.primary.is_some() && !leads(table)
            });
            if let Ok(gone) = time::timeout(UNUSED_FOR, elsewhere).await {
                drop(gone?);
            }
        }
        self.set(None);
        self.done.send_replace(None);
        proxy.shared.sessions.cut_warm();
        Ok(())
    }
}
