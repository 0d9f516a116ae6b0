//! A small, honest Raft: terms, votes, append, commit, single-server membership changes, learners.
//! No compaction, no PreVote, no leader stickiness, so that its leader changes more often than a
//! real one's. It stands in for `openraft`, which is tested for itself in `crates/consensus`.
//!
//! Pure: messages and the time come in, messages go out.

use crate::{
    clock::{MS, Micros},
    rng::Rng,
};
use sempre_model::{Command, NodeId};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// How often a leader calls, even without news.
const HEARTBEAT: Micros = 100 * MS;
/// Entries in one message: a long log goes in parts, so that catching up takes several rounds.
const BATCH: usize = 64;

/// What an entry holds.
#[derive(Debug)]
pub enum Payload {
    /// The first entry of each leader.
    Noop,
    /// The voters from here on.
    Voters(BTreeSet<NodeId>),
    /// A change of the record.
    Command(Command),
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The term it was proposed in.
    pub term: u64,
    /// What it holds. The same entry is the same allocation everywhere.
    pub payload: Rc<Payload>,
}

/// What nodes say to each other.
#[derive(Clone, Debug)]
pub enum RaftMsg {
    /// Vote for me.
    Vote {
        /** Candidate's. */
        term: u64,
        /** Its log's. */
        last: (u64, u64),
    },
    /// My vote.
    VoteReply {
        /** Voter's. */
        term: u64,
        /** Yes. */
        granted: bool,
    },
    /// Entries after `prev`.
    Append {
        /// Leader's.
        term: u64,
        /// Term and index before the entries.
        prev: (u64, u64),
        /// Entries.
        entries: Vec<Entry>,
        /// Leader's commit index.
        commit: u64,
    },
    /// What I have.
    AppendReply {
        /** Follower's. */
        term: u64,
        /** Matched. */
        ok: bool,
        /** Matched up to, or a hint. */
        index: u64,
    },
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows, or learns.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// One node. `term`, `voted`, `log` and `applied` are on disk; the rest is lost at a restart.
#[derive(Debug)]
pub struct Raft {
    /// Its id.
    pub id: NodeId,
    /// Its term.
    pub term: u64,
    voted: Option<NodeId>,
    /// Its log; the entry with index i is at i - 1.
    pub log: Vec<Entry>,
    /// Applied to the record (on disk).
    pub applied: u64,
    /// Known to be committed.
    pub commit: u64,
    /// What it is.
    pub role: Role,
    /// Whom it follows.
    pub leader: Option<NodeId>,
    /// Nodes that get entries without a vote.
    pub learners: BTreeSet<NodeId>,
    votes: BTreeSet<NodeId>,
    next: BTreeMap<NodeId, u64>,
    matched: BTreeMap<NodeId, u64>,
    deadline: Micros,
    election: (Micros, Micros),
}

/// Messages to send.
pub type Out = Vec<(NodeId, RaftMsg)>;

impl Raft {
    /// A node with a log (empty: one that is to be added later).
    pub fn new(id: NodeId, log: Vec<Entry>, election_ms: (u64, u64)) -> Self {
        let applied = log.len() as u64;
        Self {
            id,
            term: u64::from(!log.is_empty()),
            voted: None,
            applied,
            commit: applied,
            log,
            role: Role::Follower,
            leader: None,
            learners: BTreeSet::new(),
            votes: BTreeSet::new(),
            next: BTreeMap::new(),
            matched: BTreeMap::new(),
            deadline: 0,
            election: (election_ms.0 * MS, election_ms.1 * MS),
        }
    }

    /// What is left after a restart.
    pub fn restart(&mut self, now: Micros, rng: &mut Rng) {
        self.role = Role::Follower;
        self.leader = None;
        self.commit = self.applied;
        self.votes.clear();
        self.learners.clear();
        self.put_off(now, rng);
    }

    fn put_off(&mut self, now: Micros, rng: &mut Rng) {
        self.deadline = now + rng.range(self.election.0, self.election.1);
    }

    /// The newest entry's index.
    pub fn last_index(&self) -> u64 {
        self.log.len() as u64
    }

    fn term_at(&self, index: u64) -> u64 {
        if index == 0 { 0 } else { self.log.get(index as usize - 1).map_or(0, |e| e.term) }
    }

    /// The newest voters in the log, committed or not, and at which index.
    pub fn voters(&self) -> (u64, BTreeSet<NodeId>) {
        for (at, entry) in self.log.iter().enumerate().rev() {
            if let Payload::Voters(voters) = &*entry.payload {
                return (at as u64 + 1, voters.clone());
            }
        }
        (0, BTreeSet::new())
    }

    /// Leads, and everything in its log is applied, its own first entry among it: it may decide.
    pub fn may_decide(&self) -> bool {
        self.role == Role::Leader
            && self.applied == self.last_index()
            && self.term_at(self.applied) == self.term
    }

    /// `node` has everything that is committed.
    pub fn caught_up(&self, node: NodeId) -> bool {
        self.matched.get(&node).is_some_and(|m| *m >= self.commit)
    }

    /// As leader, appends an entry and sends it. False: not leader.
    pub fn propose(&mut self, payload: Payload, out: &mut Out) -> bool {
        if self.role != Role::Leader {
            return false;
        }
        self.log.push(Entry { term: self.term, payload: Rc::new(payload) });
        self.advance_commit();
        self.broadcast(out);
        true
    }

    /// Something is due.
    pub fn tick(&mut self, now: Micros, rng: &mut Rng, out: &mut Out) {
        if now < self.deadline {
            return;
        }
        if self.role == Role::Leader {
            self.deadline = now + HEARTBEAT;
            self.broadcast(out);
            return;
        }
        let (_, voters) = self.voters();
        self.put_off(now, rng);
        if !voters.contains(&self.id) {
            return;
        }
        self.term += 1;
        self.role = Role::Candidate;
        self.voted = Some(self.id);
        self.leader = None;
        self.votes = BTreeSet::from([self.id]);
        let last = (self.term_at(self.last_index()), self.last_index());
        for voter in voters.iter().filter(|v| **v != self.id) {
            out.push((*voter, RaftMsg::Vote { term: self.term, last }));
        }
        self.count_votes(now, out);
    }

    /// When [`Raft::tick`] has something to do next.
    pub fn due(&self) -> Micros {
        self.deadline
    }

    fn count_votes(&mut self, now: Micros, out: &mut Out) {
        let (_, voters) = self.voters();
        if self.votes.intersection(&voters).count() < voters.len() / 2 + 1 {
            return;
        }
        self.role = Role::Leader;
        self.leader = Some(self.id);
        self.deadline = now + HEARTBEAT;
        self.next.clear();
        self.matched.clear();
        self.propose(Payload::Noop, out);
    }

    fn broadcast(&mut self, out: &mut Out) {
        let (_, voters) = self.voters();
        for node in voters.union(&self.learners).filter(|n| **n != self.id) {
            self.send(*node, out);
        }
    }

    fn send(&self, to: NodeId, out: &mut Out) {
        let next = self.next.get(&to).copied().unwrap_or(self.last_index().max(1));
        let from = (next - 1) as usize;
        let entries = self.log[from..].iter().take(BATCH).cloned().collect();
        let prev = (self.term_at(next - 1), next - 1);
        out.push((to, RaftMsg::Append { term: self.term, prev, entries, commit: self.commit }));
    }

    fn advance_commit(&mut self) {
        let (_, voters) = self.voters();
        for index in (self.commit + 1..=self.last_index()).rev() {
            if self.term_at(index) != self.term {
                return;
            }
            let have = voters
                .iter()
                .filter(|v| **v == self.id || self.matched.get(v).is_some_and(|m| *m >= index))
                .count();
            if have > voters.len() / 2 {
                self.commit = index;
                return;
            }
        }
    }

    fn step_down(&mut self, term: u64, now: Micros, rng: &mut Rng) {
        if term > self.term {
            self.term = term;
            self.voted = None;
            self.leader = None;
        }
        if self.role != Role::Follower {
            self.role = Role::Follower;
            self.put_off(now, rng);
        }
    }

    /// A message came.
    pub fn handle(
        &mut self,
        from: NodeId,
        msg: RaftMsg,
        now: Micros,
        rng: &mut Rng,
        out: &mut Out,
    ) {
        match msg {
            RaftMsg::Vote { term, last } => {
                if term > self.term {
                    self.step_down(term, now, rng);
                }
                let mine = (self.term_at(self.last_index()), self.last_index());
                let granted = term == self.term
                    && self.voted.is_none_or(|v| v == from)
                    && last >= mine
                    && self.role == Role::Follower;
                if granted {
                    self.voted = Some(from);
                    self.put_off(now, rng);
                }
                out.push((from, RaftMsg::VoteReply { term: self.term, granted }));
            }
            RaftMsg::VoteReply { term, granted } => {
                if term > self.term {
                    self.step_down(term, now, rng);
                } else if term == self.term && self.role == Role::Candidate && granted {
                    self.votes.insert(from);
                    self.count_votes(now, out);
                }
            }
            RaftMsg::Append { term, prev, entries, commit } => {
                if term < self.term {
                    let msg = RaftMsg::AppendReply { term: self.term, ok: false, index: 0 };
                    out.push((from, msg));
                    return;
                }
                self.step_down(term, now, rng);
                self.leader = Some(from);
                self.put_off(now, rng);
                let (ok, index) = self.append(prev, entries, commit);
                out.push((from, RaftMsg::AppendReply { term: self.term, ok, index }));
            }
            RaftMsg::AppendReply { term, ok, index } => {
                if term > self.term {
                    self.step_down(term, now, rng);
                } else if term == self.term && self.role == Role::Leader {
                    self.replied(from, ok, index, out);
                }
            }
        }
    }

    fn append(&mut self, prev: (u64, u64), entries: Vec<Entry>, commit: u64) -> (bool, u64) {
        if prev.1 > self.last_index() || self.term_at(prev.1) != prev.0 {
            return (false, prev.1.saturating_sub(1).min(self.last_index()));
        }
        let mut index = prev.1;
        for entry in entries {
            index += 1;
            if self.term_at(index) == entry.term {
                continue;
            }
            assert!(index > self.commit, "a committed entry is to be overwritten");
            self.log.truncate(index as usize - 1);
            self.log.push(entry);
        }
        self.commit = self.commit.max(commit.min(index));
        (true, index)
    }

    fn replied(&mut self, from: NodeId, ok: bool, index: u64, out: &mut Out) {
        if !ok {
            let old = self.next.get(&from).copied().unwrap_or(self.last_index().max(1));
            self.next.insert(from, (index + 1).min(old).max(1));
            self.send(from, out);
            return;
        }
        let matched = self.matched.entry(from).or_insert(0);
        *matched = (*matched).max(index);
        let next = *matched + 1;
        self.next.insert(from, next);
        let before = self.commit;
        self.advance_commit();
        if self.commit > before {
            self.broadcast(out);
        } else if next <= self.last_index() {
            self.send(from, out);
        }
    }
}
