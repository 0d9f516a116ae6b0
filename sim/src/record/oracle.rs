//! What the record promises, checked with the knowledge of everything at one moment.
//!
//! Every command sets a parameter of its own (but for the few that change the policy), so that a
//! record says by itself which commands it holds: as many parameters as its version counts, or one
//! was applied twice.
//!
//! | check | promise |
//! |---|---|
//! | `one-history` | records of one version are the same everywhere and always; a newer one holds all of an older one |
//! | `applied-once` | a command is applied once at most, however often it was given |
//! | `acknowledged` | an acknowledged command is in the record that was returned, and that is newer than all known at the call |
//! | `read-barrier` | a read is at least as new as anything acknowledged or seen anywhere before it began |
//! | `not-taken` | "nothing changed" is true |
//! | `member-goes-on` | what a member shows never goes back, restarts included |
//! | `promise-kept` | nor does its promise |
//! | `opens-again` | no crash makes the store unreadable |

use sempre_model::{Generation, NodeId, Record};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// What a member was seen to hold.
#[derive(Debug, Default)]
struct Seen {
    version: u64,
    promised: Generation,
}

/// The memory.
#[derive(Debug, Default)]
pub struct Oracle {
    /// The first violation.
    pub violation: Option<Violation>,
    hashes: BTreeMap<u64, u64>,
    newest: Arc<Record>,
    floor: u64,
    policies_given: u64,
    not_taken: BTreeSet<String>,
    members: BTreeMap<NodeId, Seen>,
}

fn hash(record: &Record) -> u64 {
    let bytes = serde_json::to_vec(record).unwrap_or_default();
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3)
    })
}

impl Oracle {
    /// Something is not as promised.
    pub fn violated(&mut self, invariant: &'static str, what: String) {
        self.violation.get_or_insert(Violation { invariant, what });
    }

    /// The newest version that anybody has seen. Whoever asks from now on must see it.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// A record was seen somewhere.
    pub fn seen(&mut self, record: &Arc<Record>) {
        let version = record.version;
        self.floor = self.floor.max(version);
        let hash = hash(record);
        match self.hashes.insert(version, hash) {
            Some(known) if known == hash => return,
            Some(_) => {
                self.violated("one-history", format!("there are two records of version {version}"))
            }
            None => {}
        }
        let others = version.checked_sub(record.parameters.len() as u64);
        if others.is_none_or(|others| others > self.policies_given) {
            let what = format!("version {version} holds {} commands", record.parameters.len());
            self.violated("applied-once", what);
        }
        let newest = self.newest.clone();
        let (older, newer) =
            if newest.version <= version { (&newest, record) } else { (record, &newest) };
        if let Some(lost) = older.parameters.keys().find(|k| !newer.parameters.contains_key(*k)) {
            let what = format!(
                "{lost} is in version {}, and not in version {}",
                older.version, newer.version
            );
            self.violated("one-history", what);
        }
        if newest.version <= version {
            self.newest = record.clone();
        }
    }

    /// A member shows this record.
    pub fn shows(&mut self, node: NodeId, record: &Arc<Record>) {
        self.seen(record);
        let seen = self.members.entry(node).or_default();
        if record.version < seen.version {
            let what =
                format!("node {node} shows version {} after {}", record.version, seen.version);
            self.violated("member-goes-on", what);
        } else {
            seen.version = record.version;
        }
    }

    /// A member has promised (`made`: just now, or it says so).
    pub fn promised(&mut self, node: NodeId, generation: Generation) {
        let seen = self.members.entry(node).or_default();
        if generation < seen.promised {
            let what = format!("node {node} promised {}, now {generation}", seen.promised);
            self.violated("promise-kept", what);
        } else {
            seen.promised = generation;
        }
    }

    /// A command is acknowledged.
    pub fn acknowledged(&mut self, key: &str, asked_at: u64, record: &Arc<Record>) {
        if !record.parameters.contains_key(key) || record.version <= asked_at {
            let what = format!(
                "{key} is acknowledged with version {}; {asked_at} was known before",
                record.version
            );
            self.violated("acknowledged", what);
        }
        self.seen(record);
    }

    /// A command is given that sets no parameter.
    pub fn gives_policy(&mut self) {
        self.policies_given += 1;
    }

    /// A command was given, and nothing changed.
    pub fn not_taken(&mut self, key: String) {
        self.not_taken.insert(key);
    }

    /// A read through the barrier.
    pub fn read(&mut self, asked_at: u64, record: &Arc<Record>) {
        if record.version < asked_at {
            let what = format!("version {} was read; {asked_at} was known", record.version);
            self.violated("read-barrier", what);
        }
        self.seen(record);
    }

    /// At the end.
    pub fn finish(&mut self) {
        let newest = self.newest.clone();
        if let Some(key) = self.not_taken.iter().find(|k| newest.parameters.contains_key(*k)) {
            let what = format!("{key} was said not to be taken, and is in the record");
            self.violated("not-taken", what);
        }
    }
}
