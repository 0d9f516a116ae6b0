//! What a seed stands for: how many members, which policy, which faults, and (in tests) which bug
//! is put in on purpose.

use crate::rng::Rng;
use sempre_model::{Policy, policy::Durability, policy::OnCrash};

/// How long faults go on, ms.
const STORM_MS: u64 = 25_000;

/// What kind of run it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every fault.
    Storm,
    /// Only coordination is troubled: agents restart, Raft leaders change, a minority without the
    /// primary and its sync set is lost. Rule 4 is checked in full.
    Calm,
}

/// A bug put in on purpose, in the simulated shell only, to prove that the invariants see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// The lease counts from the arrival of the deciding grant, not from sending the renewal.
    LeaseFromArrival,
    /// The leader promotes the first standby that is running, without waiting for fences.
    PromoteWithoutFencing,
    /// The primary enforces the smaller sync set before the record no longer relies on the old.
    ShrinkDatabaseFirst,
    /// A voter's promise is not on disk.
    ForgetPromise,
    /// An agent attests as soon as it asks for the fence, not when the guard has done it.
    AttestWithoutKilling,
    /// A promotion takes the next timeline that the member itself knows of, as PostgreSQL does when
    /// left alone, so that two members can choose the same one. Without it, the simulated engine
    /// numbers the timeline of a promotion by its generation.
    OwnTimelines,
    /// A member grants leases before its own log and record say that it votes, and before it has
    /// written how long they may be: either of the two keeps a replaced one from it.
    GrantBeforeVoting,
    /// An archiver looks for the fence before it stores WAL, not after.
    ArchiveFenceSeenEarly,
}

/// A seed, spelled out.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// Its kind.
    pub kind: Kind,
    /// Members in all.
    pub members: usize,
    /// The last one is a witness.
    pub witness: bool,
    /// Zones (0: unknown).
    pub zones: usize,
    /// The first policy.
    pub policy: Policy,
    /// Faults go on for this long, ms.
    pub storm_ms: u64,
    /// Mean time between faults, ms.
    pub fault_every_ms: u64,
    /// Clients, of which `stubborn` go to any database that takes them.
    pub clients: usize,
    /// See `clients`.
    pub stubborn: usize,
    /// The guard may be paused apart from the database.
    pub pause_guard_alone: bool,
    /// There is a repository, which may be in the sync set.
    pub archive: bool,
    /// The member that has no copy of the data until it is needed.
    pub spare: Option<usize>,
    /// The bug put in.
    pub bug: Option<Bug>,
}

impl Scenario {
    /// What `seed` stands for.
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(31) ^ 0xA11CE);
        let kind = if rng.chance(120) && bug.is_none() { Kind::Calm } else { Kind::Storm };
        let members = [3, 3, 3, 4, 5, 5, 6, 7][rng.index(8)];
        let witness = rng.chance(if members == 3 { 150 } else { 250 });
        let durability = match rng.range(0, 100) {
            0..80 => Durability::Quorum,
            80..92 => Durability::Sync,
            _ if kind == Kind::Calm => Durability::Quorum,
            _ => Durability::Async,
        };
        let mut policy = Policy { durability, ..Policy::default() };
        policy.fast_promotion = durability == Durability::Quorum && rng.chance(200);
        policy.sync_count = if members >= 5 && rng.chance(400) { 2 } else { 1 };
        policy.sync_spares = rng.index(3);
        policy.strict = rng.chance(100);
        policy.clock_drift_ppm = [1_000, 1_000, 20_000][rng.index(3)];
        policy.on_crash = [OnCrash::Auto, OnCrash::Restart, OnCrash::Failover][rng.index(3)];
        if rng.chance(300) {
            policy.heartbeat_ms = 100;
            policy.detect_ms = 400;
            policy.path_detect_ms = 300;
            policy.election_min_ms = 300;
            policy.election_max_ms = 700;
        }
        // Drawn apart, so that seeds without a repository stay what they were.
        let mut apart = Rng::new(seed.wrapping_mul(17) ^ 0xA2C_417E);
        let archive = kind == Kind::Storm && apart.chance(350);
        let mut spare = None;
        if archive {
            policy.archive_in_sync_set = durability != Durability::Async;
            policy.recover_from_backup = apart.chance(500);
            policy.recover_from_backup_after_ms = [500, 2_000, 5_000][apart.index(3)];
            policy.strict = false;
            if apart.chance(500) {
                // More than there are standbys, at times.
                policy.sync_count = members - 1 - usize::from(witness);
            }
            let last = members - 1 - usize::from(witness);
            spare = (policy.recover_from_backup && last > 0 && apart.chance(600)).then_some(last);
        }
        Self {
            seed,
            kind,
            members,
            witness,
            zones: [0, 0, 2, 3][rng.index(4)],
            policy,
            storm_ms: STORM_MS,
            fault_every_ms: [500, 1_000, 2_000, 4_000][rng.index(4)],
            clients: 4,
            stubborn: 2,
            pause_guard_alone: durability != Durability::Async,
            archive,
            spare,
            bug,
        }
    }

    /// Acknowledged commits must survive every failover.
    pub fn keeps_commits(&self) -> bool {
        self.policy.durability != Durability::Async
    }
}
