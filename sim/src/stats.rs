//! Counts of a run, added up over runs.

use std::collections::BTreeMap;

/// Counts.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Commits acknowledged.
    pub commits: u64,
    /// Reads.
    pub reads: u64,
    /// Changes of primary that were completed.
    pub failovers: u64,
    /// Messages the network lost.
    pub lost: u64,
    /// Events handled.
    pub events: u64,
    /// Simulated time, ms.
    pub simulated_ms: u64,
    /// Faults and operations by name, and other things worth counting.
    pub counts: BTreeMap<&'static str, u64>,
    /// How often each rule of the leader's table fired.
    pub leader_rules: BTreeMap<&'static str, u64>,
    /// How often each rule of the member's table fired.
    pub member_rules: BTreeMap<&'static str, u64>,
}

impl Stats {
    /// One more of these.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_insert(0) += 1;
    }

    /// Adds another run.
    pub fn add(&mut self, other: &Stats) {
        self.commits += other.commits;
        self.reads += other.reads;
        self.failovers += other.failovers;
        self.lost += other.lost;
        self.events += other.events;
        self.simulated_ms += other.simulated_ms;
        let maps = [
            (&mut self.counts, &other.counts),
            (&mut self.leader_rules, &other.leader_rules),
            (&mut self.member_rules, &other.member_rules),
        ];
        for (mine, theirs) in maps {
            for (name, count) in theirs {
                *mine.entry(name).or_insert(0) += count;
            }
        }
    }
}
