//! Rule 2: no two primaries take writes.
//!
//! The lease is granted by the voters directly, a majority for each renewal, not through the
//! Raft log: a Raft election therefore costs no lease, and a new Raft leader need not guess when
//! the last one was granted, because it is told by the voters themselves.
//!
//! * The holder counts from the moment the renewal was *sent* ([`Holder`]).
//! * A voter counts from the moment it answered, a little longer for drifting clocks, and once it
//!   promised a newer generation it grants no older one ([`Voter`]).
//! * So when a majority has promised generation g+1, no lease of g can be renewed any more, and
//!   all have ended when the longest grant outstanding at that majority has.
//!
//! The idea of leases from quorum grants without log writes is PaxosLease (Trencseni, Gazso,
//! Reinhardt: "PaxosLease: Diskless Paxos for Leases", 2012).

use crate::Millis;
use sempre_model::{Generation, MemberId, Policy};
use std::collections::{BTreeSet, VecDeque};

/// Renewals in flight that are remembered. One is sent each heartbeat and none is of use after
/// a lease term, so this only bounds memory.
const ROUNDS_MAX: usize = 64;

/// The side that serves.
#[derive(Clone, Debug, Default)]
pub struct Holder {
    rounds: VecDeque<Round>,
    next_id: u64,
    until: Option<(Generation, Millis)>,
}

#[derive(Clone, Debug)]
struct Round {
    id: u64,
    generation: Generation,
    sent: Millis,
    ttl_ms: u64,
    granted: BTreeSet<MemberId>,
}

impl Holder {
    /// A renewal is about to be sent. `id` goes with it, and comes back with each grant.
    pub fn begin(&mut self, generation: Generation, ttl_ms: u64, now: Millis) -> u64 {
        self.next_id += 1;
        if self.rounds.len() == ROUNDS_MAX {
            self.rounds.pop_front();
        }
        self.rounds.push_back(Round {
            id: self.next_id,
            generation,
            sent: now,
            ttl_ms,
            granted: BTreeSet::new(),
        });
        self.next_id
    }

    /// `voter` granted renewal `id`. When a majority of `voters` has, the lease is extended and
    /// its new end returned.
    pub fn granted(
        &mut self,
        id: u64,
        voter: &MemberId,
        voters: &BTreeSet<MemberId>,
    ) -> Option<(Generation, Millis)> {
        let round = self.rounds.iter_mut().find(|r| r.id == id)?;
        round.granted.insert(voter.clone());
        let yes = round.granted.intersection(voters).count();
        if yes < voters.len() / 2 + 1 {
            return None;
        }
        let end = (round.generation, round.sent + round.ttl_ms);
        self.rounds.retain(|r| r.id > id);
        if self.until.is_some_and(|(g, until)| g == end.0 && until >= end.1) {
            return None;
        }
        self.until = Some(end);
        self.until
    }

    /// The end of the lease of `generation`, if it is held at `now`.
    pub fn until(&self, generation: Generation, now: Millis) -> Option<Millis> {
        self.until.filter(|(g, until)| *g == generation && *until > now).map(|(_, until)| until)
    }

    /// Gives the lease back: nothing asked for before counts any more.
    pub fn release(&mut self) {
        self.rounds.clear();
        self.until = None;
    }
}

/// The side that grants.
///
/// What it granted before a restart it does not know. So no grant is ever longer than a number on
/// its disk ([`Voter::longest_to_write`]), and after a start a grant of that length is taken to be
/// outstanding: the policy may have been changed to a shorter lease meanwhile.
#[derive(Clone, Debug)]
pub struct Voter {
    promised: Generation,
    grant: Option<(Generation, Millis)>,
    old_until: Millis,
    /// No grant is longer, ms as a voter counts them. On disk, or on its way to being lower there.
    longest_ms: u64,
    /// The length that the policy asks for.
    usual_ms: u64,
    /// Until then a grant longer than `usual_ms` may be outstanding.
    long_until: Millis,
}

/// The length of a grant by the policy, ms as a voter counts it.
fn usual_ms(policy: &Policy) -> u64 {
    policy.lease_as_voter_ms(policy.lease_ttl_ms)
}

impl Voter {
    /// A voter without a memory, which takes the policy's lease as granted. Right only where the
    /// policy's lease does not change between two starts: models and tests.
    pub fn new(promised: Generation, policy: &Policy, now: Millis) -> Self {
        Self { longest_ms: u64::MAX, ..Self::restored(promised, 0, policy, now) }
    }

    /// A voter that just started takes a whole lease as granted, the longest it may have granted
    /// before. `promised` and `longest_ms` come from its disk (0: nothing is there).
    pub fn restored(promised: Generation, longest_ms: u64, policy: &Policy, now: Millis) -> Self {
        let usual_ms = usual_ms(policy);
        let old_until = now + usual_ms.max(longest_ms);
        Self { promised, grant: None, old_until, longest_ms, usual_ms, long_until: old_until }
    }

    /// It started (at `started`) without a record and now knows the policy: leases may have been
    /// longer than it thought.
    pub fn learn(&mut self, policy: &Policy, started: Millis) {
        self.old_until = self.old_until.max(started + usual_ms(policy));
        self.long_until = self.long_until.max(self.old_until);
    }

    /// What the disk is to hold as the longest grant, if something else. Once it does, call
    /// [`Voter::written`]; one write at a time.
    pub fn longest_to_write(&mut self, policy: &Policy, now: Millis) -> Option<u64> {
        self.follow(policy);
        if self.longest_ms < self.usual_ms {
            // Longer grants only once it is on disk.
            return Some(self.usual_ms);
        }
        if self.longest_ms == self.usual_ms || self.longest_ms == u64::MAX || now < self.long_until
        {
            return None;
        }
        // No longer ones from now on, though the disk may yet say so for a moment.
        self.longest_ms = self.usual_ms;
        Some(self.usual_ms)
    }

    /// The disk holds this as the longest grant.
    pub fn written(&mut self, longest_ms: u64) {
        self.longest_ms = longest_ms;
    }

    /// Grants by a policy before this one may be longer than the usual ones now.
    fn follow(&mut self, policy: &Policy) {
        let usual_ms = usual_ms(policy);
        if usual_ms < self.usual_ms {
            let granted = self.grant.map_or(0, |(_, until)| until);
            self.long_until = self.long_until.max(self.old_until).max(granted);
        }
        self.usual_ms = usual_ms;
    }

    /// A member asks for the lease of `generation`. True: granted.
    pub fn renew(
        &mut self,
        generation: Generation,
        ttl_ms: u64,
        policy: &Policy,
        now: Millis,
    ) -> bool {
        self.follow(policy);
        let length_ms = policy.lease_as_voter_ms(ttl_ms);
        if generation < self.promised || length_ms > self.longest_ms {
            return false;
        }
        let until = now + length_ms;
        self.grant = match self.grant {
            Some((g, _)) if g > generation => return false,
            Some((g, old)) if g == generation => Some((g, old.max(until))),
            Some((_, old)) => {
                self.old_until = self.old_until.max(old);
                Some((generation, until))
            }
            None => Some((generation, until)),
        };
        if length_ms > self.usual_ms {
            self.long_until = self.long_until.max(until);
        }
        true
    }

    /// From now on grants nothing older than `generation`. The caller has written it to disk.
    pub fn promise(&mut self, generation: Generation) {
        if generation <= self.promised {
            return;
        }
        self.promised = generation;
        if let Some((g, until)) = self.grant
            && g < generation
        {
            self.old_until = self.old_until.max(until);
            self.grant = None;
        }
    }

    /// What it has promised.
    pub fn promised(&self) -> Generation {
        self.promised
    }

    /// How long a lease of a generation before the promised one may still last, ms.
    pub fn old_grant_ms(&self, now: Millis) -> u64 {
        self.old_until.saturating_sub(now)
    }

    /// How long the lease granted to `generation` lasts, ms. One that just started assumes one.
    pub fn grant_ms(&self, generation: Generation, now: Millis) -> u64 {
        match self.grant {
            Some((g, until)) if g == generation => until.saturating_sub(now),
            _ => self.old_grant_ms(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<MemberId> {
        list.iter().map(|n| MemberId::new(*n).unwrap()).collect()
    }

    #[test]
    fn a_lease_counts_from_sending_and_needs_a_majority() {
        let voters = names(&["a", "b", "c"]);
        let (a, b) = (MemberId::new("a").unwrap(), MemberId::new("b").unwrap());
        let g = Generation(1);
        let mut holder = Holder::default();
        let id = holder.begin(g, 2_000, 100);
        assert_eq!(holder.granted(id, &a, &voters), None);
        assert_eq!(holder.granted(id, &a, &voters), None, "the same voter twice is one vote");
        assert_eq!(holder.granted(id, &b, &voters), Some((g, 2_100)));
        assert_eq!(holder.until(g, 2_099), Some(2_100));
        assert_eq!(holder.until(g, 2_100), None);
        assert_eq!(holder.until(Generation(2), 200), None);
    }

    #[test]
    fn strangers_do_not_count() {
        let voters = names(&["a", "b", "c"]);
        let mut holder = Holder::default();
        let id = holder.begin(Generation(1), 2_000, 0);
        for stranger in ["x", "y", "z"] {
            assert_eq!(holder.granted(id, &MemberId::new(stranger).unwrap(), &voters), None);
        }
    }

    #[test]
    fn a_promise_ends_grants_and_says_how_long_the_old_one_lasts() {
        let policy = Policy::default();
        let mut voter = Voter::new(Generation(1), &policy, 0);
        let start = 10_000;
        assert!(voter.renew(Generation(1), 2_000, &policy, start));
        voter.promise(Generation(2));
        assert!(!voter.renew(Generation(1), 2_000, &policy, start + 1));
        assert!(voter.old_grant_ms(start) >= 2_000);
        assert_eq!(voter.old_grant_ms(start + 3_000), 0);
        assert!(voter.renew(Generation(2), 2_000, &policy, start + 1));
        assert_eq!(voter.grant_ms(Generation(2), start + 1), 2_003);
    }

    #[test]
    fn a_lease_that_was_shortened_while_voters_restart_is_waited_out() {
        let g = Generation(1);
        let long = Policy { lease_ttl_ms: 60_000, ..Policy::default() };
        let short = Policy::default();
        // The first start: nothing is granted before the disk knows how long.
        let mut voter = Voter::restored(g, 0, &long, 0);
        assert!(!voter.renew(g, 60_000, &long, 1_000));
        let on_disk = voter.longest_to_write(&long, 1_000).unwrap();
        voter.written(on_disk);
        assert!(voter.renew(g, 60_000, &long, 1_000));
        assert_eq!(voter.longest_to_write(&long, 1_000), None);

        // The policy is changed and the voter restarts: it still answers for the long lease.
        let mut voter = Voter::restored(g, on_disk, &short, 2_000);
        voter.promise(Generation(2));
        assert!(voter.old_grant_ms(2_000) >= 59_000, "{}", voter.old_grant_ms(2_000));
        // Shorter ones are granted meanwhile, and the disk says so once the long ones are over.
        assert!(voter.renew(Generation(2), 2_000, &short, 3_000));
        assert_eq!(voter.longest_to_write(&short, 61_000), None);
        let lower = voter.longest_to_write(&short, 63_000).unwrap();
        assert!((2_000..3_000).contains(&lower));
        assert!(!voter.renew(Generation(2), 60_000, &short, 63_000), "not longer than on disk");
    }

    #[test]
    fn the_longest_grant_is_lowered_only_when_no_long_one_is_outstanding() {
        let g = Generation(1);
        let long = Policy { lease_ttl_ms: 60_000, ..Policy::default() };
        let short = Policy::default();
        let mut voter = Voter::restored(g, 0, &long, 0);
        let on_disk = voter.longest_to_write(&long, 0).unwrap();
        voter.written(on_disk);
        // Granted long after the start, just before the policy changed.
        assert!(voter.renew(g, 60_000, &long, 100_000));
        assert!(voter.renew(g, 2_000, &short, 100_100));
        assert_eq!(voter.longest_to_write(&short, 159_000), None);
        assert!(voter.longest_to_write(&short, 161_000).is_some());
        // A holder that has not heard of the change yet counts as well.
        let mut voter = Voter::restored(g, on_disk, &short, 0);
        assert!(voter.renew(g, 60_000, &short, 50_000));
        assert_eq!(voter.longest_to_write(&short, 100_000), None);
        assert!(voter.longest_to_write(&short, 111_000).is_some());
    }

    #[test]
    fn a_restarted_voter_takes_a_whole_lease_as_granted() {
        let policy = Policy::default();
        let voter = Voter::new(Generation(5), &policy, 1_000);
        assert!(voter.old_grant_ms(1_000) >= policy.lease_ttl_ms);
    }
}
