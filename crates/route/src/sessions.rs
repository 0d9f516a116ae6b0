//! The sessions of a router: how many each member has, and which of them a new table cuts.

use crate::{CutReason, Mode, Role, Table, choose, choose::Candidate};
use futures_util::task::AtomicWaker;
use sempre_model::{Generation, MemberId};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::Context,
    time::{Duration, Instant},
};

/// How long a member comes last that a client could not use. Its state is known by then, or another
/// client finds out.
const LAST_FOR: Duration = Duration::from_secs(1);

/// All sessions that were led to a member or are on their way.
pub(crate) struct Sessions {
    inner: Mutex<Inner>,
}

struct Inner {
    /// The newest table; sessions that enter are measured against it, so that none slips in
    /// between a table and its cut.
    table: Arc<Table>,
    closed: bool,
    next: u64,
    turn: usize,
    entries: HashMap<u64, Entry>,
    /// Sessions at work, not the idle connections of pools.
    per_member: HashMap<MemberId, usize>,
    /// When members last could not be used by a client that was led to them.
    failed: HashMap<MemberId, Instant>,
}

impl Inner {
    fn begins(&mut self, member: &MemberId) {
        *self.per_member.entry(member.clone()).or_default() += 1;
    }

    fn ends(&mut self, member: &MemberId) {
        if let Some(count) = self.per_member.get_mut(member) {
            *count -= 1;
            if *count == 0 {
                self.per_member.remove(member);
            }
        }
    }

    fn has_failed(&self, member: &MemberId) -> bool {
        self.failed.get(member).is_some_and(|at| at.elapsed() < LAST_FOR)
    }

    fn candidates(&self, table: &Table, mode: Mode, turn: usize) -> Vec<Candidate> {
        let load = |member: &MemberId| {
            (self.has_failed(member), self.per_member.get(member).copied().unwrap_or(0))
        };
        choose::candidates(table, mode, load, turn)
    }
}

struct Entry {
    member: MemberId,
    role: Role,
    generation: Generation,
    /// The address it is connected by, once it is.
    host: Option<String>,
    /// It is idle in a pool.
    rests: bool,
    cut: Arc<Cut>,
}

impl Entry {
    fn cut_by(&self, table: &Table) -> Option<CutReason> {
        table.cuts(&self.member, self.role, self.generation).or_else(|| {
            let host = self.host.as_ref()?;
            table.dead_hosts.contains(host).then_some(CutReason::PathLost)
        })
    }
}

/// Tells one session that it ends, and why.
#[derive(Default)]
pub(crate) struct Cut {
    reason: OnceLock<CutReason>,
    draining: AtomicBool,
    leaving: AtomicBool,
    /// Somebody uses its connection.
    held: AtomicBool,
    call: AtomicU8,
    waker: AtomicWaker,
}

/// Nobody was asked to warm up another connection.
const NOT_CALLED: u8 = 0;
/// Whoever has the connection is asked to.
const CALLED: u8 = 1;
/// Somebody who had it did.
const ANSWERED: u8 = 2;

impl Cut {
    fn now(&self, reason: CutReason) {
        if self.reason.set(reason).is_ok() {
            self.waker.wake();
        }
    }

    fn drain(&self, draining: bool) {
        if self.draining.swap(draining, Relaxed) != draining && draining {
            self.waker.wake();
        }
    }

    /// Is the primary about to hand over? Transactions that are open may end; none is begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Its connection is wanted back as soon as nothing is under way on it.
    pub fn leave(&self) {
        self.leaving.store(true, Relaxed);
        self.waker.wake();
    }

    /// It is wanted back. Asked once for each time that somebody has it.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// Somebody may have it again.
    pub fn stay(&self) {
        self.leaving.store(false, Relaxed);
        self.held.store(false, Relaxed);
    }

    /// Somebody has its connection.
    pub fn hold(&self) {
        self.held.store(true, Relaxed);
    }

    /// Is whoever has it asked to warm up another one?
    pub fn is_called(&self) -> bool {
        self.call.load(Relaxed) == CALLED
    }

    /// It was heard.
    pub fn answer_call(&self) {
        self.call.store(ANSWERED, Relaxed);
    }

    /// The reason, if it was cut; otherwise the task of `context` is woken when it is.
    pub fn poll(&self, context: &mut Context<'_>) -> Option<CutReason> {
        self.waker.register(context.waker());
        self.reason.get().cloned()
    }

    pub fn reason(&self) -> Option<CutReason> {
        self.reason.get().cloned()
    }
}

/// A session's place among the others; given back when dropped.
pub(crate) struct Ticket {
    sessions: Arc<Sessions>,
    id: u64,
    pub cut: Arc<Cut>,
}

impl Sessions {
    pub fn new(table: Arc<Table>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                table,
                closed: false,
                next: 0,
                turn: 0,
                entries: HashMap::new(),
                per_member: HashMap::new(),
                failed: HashMap::new(),
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way, so a poisoned lock still guards consistent data.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom the next client may be led to, best first.
    pub fn candidates(&self, table: &Table, mode: Mode) -> Vec<Candidate> {
        let mut inner = self.inner();
        inner.turn = inner.turn.wrapping_add(1);
        inner.candidates(table, mode, inner.turn)
    }

    /// The same, while it is still open whether the next client is led: its turn is not used up.
    pub fn next_candidates(&self, table: &Table, mode: Mode) -> Vec<Candidate> {
        let inner = self.inner();
        inner.candidates(table, mode, inner.turn.wrapping_add(1))
    }

    /// The next client got what it needs without being led.
    pub fn use_turn(&self) {
        let mut inner = self.inner();
        inner.turn = inner.turn.wrapping_add(1);
    }

    /// A client that was led there could not use this member: for a moment it comes last.
    pub fn failed(&self, member: &MemberId) {
        self.inner().failed.insert(member.clone(), Instant::now());
    }

    /// Could it not be used a moment ago?
    pub fn has_failed(&self, member: &MemberId) -> bool {
        self.inner().has_failed(member)
    }

    /// A place for a session led to `candidate`; none when it would be cut already.
    pub fn enter(self: &Arc<Self>, candidate: &Candidate) -> Option<Ticket> {
        let mut inner = self.inner();
        let member = &candidate.target.member;
        let (role, generation) = (candidate.role, candidate.generation);
        if inner.closed || inner.table.cuts(member, role, generation).is_some() {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        let cut = Arc::new(Cut::default());
        cut.drain(role == Role::Primary && inner.table.draining);
        inner.begins(member);
        let entry = Entry {
            member: member.clone(),
            role,
            generation,
            host: None,
            rests: false,
            cut: cut.clone(),
        };
        inner.entries.insert(id, entry);
        drop(inner);
        Some(Ticket { sessions: self.clone(), id, cut })
    }

    /// Obeys a new table: cuts what it says is over.
    pub fn obey(&self, table: Arc<Table>) {
        let mut inner = self.inner();
        // A source that fell behind must not bring an older generation back.
        if table.generation < inner.table.generation {
            return;
        }
        for entry in inner.entries.values() {
            if let Some(reason) = entry.cut_by(&table) {
                entry.cut.now(reason);
            }
            if entry.role == Role::Primary {
                entry.cut.drain(table.draining);
            }
        }
        inner.table = table;
    }

    /// Asks those who have a connection to the primary to warm up another one, each once since
    /// [`Sessions::forget_calls`]. How many there are that have not answered.
    pub fn call(&self, most: usize) -> usize {
        let inner = self.inner();
        let mut waiting = 0;
        for entry in inner.entries.values().filter(|entry| entry.role == Role::Primary) {
            let cut = &entry.cut;
            let fits = cut.held.load(Relaxed) && cut.call.load(Relaxed) != ANSWERED;
            if fits && cut.reason().is_none() && waiting < most {
                cut.call.store(CALLED, Relaxed);
                cut.waker.wake();
                waiting += 1;
            }
        }
        waiting
    }

    /// How many of those that were asked have not answered.
    pub fn called(&self) -> usize {
        self.inner().entries.values().filter(|entry| entry.cut.is_called()).count()
    }

    /// How many connections are warm.
    pub fn warm(&self) -> usize {
        self.inner().entries.values().filter(|entry| entry.role == Role::Warm).count()
    }

    /// Nobody is asked any more, and everybody may be again.
    pub fn forget_calls(&self) {
        self.inner().entries.values().for_each(|entry| entry.cut.call.store(NOT_CALLED, Relaxed));
    }

    /// Has everybody look again what is to be done, who was asked.
    pub fn nudge(&self) {
        let inner = self.inner();
        let called = inner.entries.values().filter(|e| e.cut.call.load(Relaxed) != NOT_CALLED);
        called.for_each(|entry| entry.cut.waker.wake());
    }

    /// Ends what was warmed up and is not used.
    pub fn cut_warm(&self) {
        let inner = self.inner();
        let warm = inner.entries.values().filter(|entry| entry.role == Role::Warm);
        warm.for_each(|entry| entry.cut.now(CutReason::Elsewhere));
    }

    /// Cuts everyone and lets nobody in any more.
    pub fn close(&self) {
        let mut inner = self.inner();
        inner.closed = true;
        for entry in inner.entries.values() {
            entry.cut.now(CutReason::Shutdown);
        }
    }
}

impl Ticket {
    /// It is connected by this address.
    pub fn over(&self, host: &str) {
        let mut inner = self.sessions.inner();
        let table = inner.table.clone();
        let Some(entry) = inner.entries.get_mut(&self.id) else { return };
        entry.host = Some(host.to_owned());
        if let Some(reason) = entry.cut_by(&table) {
            entry.cut.now(reason);
        }
    }

    /// The member of a connection that was warmed up is the primary, and has confirmed it. False:
    /// that is over already.
    pub fn leads(&self, candidate: &Candidate) -> bool {
        let mut inner = self.sessions.inner();
        let table = inner.table.clone();
        let (closed, generation) = (inner.closed, candidate.generation);
        let Some(entry) = inner.entries.get_mut(&self.id) else { return false };
        let cut = table.cuts(&entry.member, Role::Primary, generation);
        if closed || cut.is_some() || entry.member != candidate.target.member {
            return false;
        }
        (entry.role, entry.generation) = (Role::Primary, generation);
        entry.cut.drain(table.draining);
        entry.cut.reason().is_none()
    }

    /// Its connection is idle in a pool, or not any more.
    pub fn rests(&self, rests: bool) {
        let mut inner = self.sessions.inner();
        let Some(entry) = inner.entries.get_mut(&self.id) else { return };
        if std::mem::replace(&mut entry.rests, rests) == rests {
            return;
        }
        let member = entry.member.clone();
        match rests {
            true => inner.ends(&member),
            false => inner.begins(&member),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.sessions.inner();
        let Some(entry) = inner.entries.remove(&self.id) else { return };
        if !entry.rests {
            inner.ends(&entry.member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Standby, Target};

    fn candidate(name: &str, role: Role, generation: u64) -> Candidate {
        Candidate {
            target: Target {
                member: MemberId::new(name).unwrap(),
                hosts: vec![],
                port: 1,
                rest_port: None,
            },
            role,
            generation: Generation(generation),
        }
    }

    fn table(generation: u64) -> Table {
        Table {
            generation: Generation(generation),
            cut_below: Generation(generation),
            ..Table::default()
        }
    }

    #[test]
    fn a_newer_generation_cuts_the_primary_sessions_of_older_ones_only() {
        let sessions = Arc::new(Sessions::new(Arc::new(table(4))));
        assert!(sessions.enter(&candidate("a", Role::Primary, 3)).is_none());
        let old = sessions.enter(&candidate("a", Role::Primary, 4)).unwrap();
        let reader = sessions.enter(&candidate("b", Role::Standby, 4)).unwrap();
        // The primary is not named for a moment: no reason to cut.
        sessions.obey(Arc::new(table(4)));
        assert_eq!(old.cut.reason(), None);
        sessions.obey(Arc::new(table(5)));
        assert_eq!(old.cut.reason(), Some(CutReason::Failover { generation: Generation(5) }));
        assert_eq!(reader.cut.reason(), None);
        // Older news changes nothing.
        sessions.obey(Arc::new(Table { primary_stopped: true, ..table(4) }));
        assert!(sessions.enter(&candidate("c", Role::Primary, 5)).is_some());
        let promoted = Table { primary: Some(candidate("b", Role::Primary, 5).target), ..table(5) };
        sessions.obey(Arc::new(promoted));
        assert_eq!(reader.cut.reason(), Some(CutReason::Promoted));
    }

    #[test]
    fn idle_connections_do_not_count_and_a_member_that_failed_comes_last() {
        let standby = |name| Standby {
            target: candidate(name, Role::Standby, 4).target,
            lag_bytes: 0,
            follows: true,
        };
        let table = Table { standbys: vec![standby("b"), standby("c")], ..table(4) };
        let sessions = Arc::new(Sessions::new(Arc::new(table.clone())));
        let first = |candidates: Vec<Candidate>| candidates[0].target.member.to_string();
        let next = || first(sessions.next_candidates(&table, Mode::ReadOnly));
        // Asking uses up no turn; being led does.
        assert_eq!((next(), next()), ("c".into(), "c".into()));
        assert_eq!(first(sessions.candidates(&table, Mode::ReadOnly)), "c");
        assert_eq!(next(), "b");
        let ticket = sessions.enter(&candidate("b", Role::Standby, 4)).unwrap();
        assert_eq!(next(), "c");
        ticket.rests(true);
        assert_eq!(next(), "b");
        sessions.failed(&MemberId::new("b").unwrap());
        assert_eq!(next(), "c");
        drop(ticket);
        assert!(sessions.inner().per_member.is_empty());
    }

    #[test]
    fn a_stopped_primary_a_lost_standby_and_a_dead_path_are_cut() {
        let sessions = Arc::new(Sessions::new(Arc::new(table(4))));
        let writer = sessions.enter(&candidate("a", Role::Primary, 4)).unwrap();
        let reader = sessions.enter(&candidate("b", Role::Standby, 4)).unwrap();
        let lost = vec![MemberId::new("b").unwrap()];
        sessions.obey(Arc::new(Table { primary_stopped: true, lost, ..table(4) }));
        assert_eq!(writer.cut.reason(), Some(CutReason::Stopped));
        assert_eq!(reader.cut.reason(), Some(CutReason::Lost));
        let other = sessions.enter(&candidate("c", Role::Standby, 4)).unwrap();
        other.over("10.0.0.1");
        let dead_hosts = vec!["10.0.0.1".to_owned()];
        sessions.obey(Arc::new(Table { dead_hosts, ..table(4) }));
        assert_eq!(other.cut.reason(), Some(CutReason::PathLost));
        drop((writer, reader, other));
        assert!(sessions.inner().entries.is_empty() && sessions.inner().per_member.is_empty());
        sessions.close();
        assert!(sessions.enter(&candidate("a", Role::Primary, 9)).is_none());
    }
}
