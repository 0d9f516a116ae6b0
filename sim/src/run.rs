//! Running one seed, or many.

use crate::{
    clock::MS,
    oracle::Violation,
    scenario::{Bug, Scenario},
    stats::Stats,
    world::World,
};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

/// After all faults ended, everything must be back within this, ms of simulated time: the grace
/// for a last primary that is waited for, a fresh copy, retries with growing pauses.
const HEAL_WITHIN_MS: u64 = 90_000;
/// Events in one run; more is an endless loop.
const EVENTS_MAX: u64 = 20_000_000;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What does not hold.
    pub violation: Option<Violation>,
    /// The hash of its trace.
    pub hash: u64,
    /// Counts.
    pub stats: Stats,
    /// The newest lines of the trace.
    pub newest: Vec<String>,
}

/// Runs one seed. `print`: the trace goes to standard output.
pub fn run(seed: u64, bug: Option<Bug>, print: bool) -> Outcome {
    let mut world = World::new(Scenario::new(seed, bug), print);
    let mut next_look = 0;
    loop {
        world.stats.events += 1;
        if !world.step() || world.oracle.violation.is_some() {
            break;
        }
        if world.storm || world.now < next_look {
            continue;
        }
        next_look = world.now + 200 * MS;
        let Err(missing) = world.recovered() else { break };
        let healing_ms = (world.now - world.healing_since()) / MS;
        if healing_ms > HEAL_WITHIN_MS || world.stats.events > EVENTS_MAX {
            let why = world.why_not();
            world.violated(
                "heals",
                format!("{healing_ms} ms after all faults ended: {missing}; {why}"),
            );
        }
    }
    world.stats.simulated_ms = world.now_ms();
    Outcome {
        seed,
        violation: world.oracle.violation.clone(),
        hash: world.trace.hash(),
        newest: world.trace.newest(),
        stats: world.stats,
    }
}

/// Runs `count` seeds from `from` on `threads` threads, `done` being called after each in no
/// particular order; stops handing out more when it says false.
pub fn run_many(
    from: u64,
    count: u64,
    threads: usize,
    bug: Option<Bug>,
    mut done: impl FnMut(Outcome) -> bool,
) {
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let (sender, receiver) = mpsc::sync_channel(threads * 2);
    let sender = Mutex::new(sender);
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let sender = sender.lock().map(|s| s.clone()).expect("no thread panics with it");
            let (next, stop) = (&next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count || sender.send(run(seed, bug, false)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for outcome in receiver {
            if !done(outcome) {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
}
