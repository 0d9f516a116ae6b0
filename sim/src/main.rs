//! Runs seeds of the simulation. `--seed N --trace` replays one.

use clap::Parser;
use sempre_decide::{leader, member};
use sempre_sim::{Bug, Outcome, Scenario, record, run, run_many, stats::Stats};
use std::{process::ExitCode, time::Instant};

/// Simulates whole clusters and checks the four rules all the while.
#[derive(Parser)]
struct Args {
    /// Run only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens in it.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Run this many seeds.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// On this many threads; default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Put a bug in, to see that it is found.
    #[arg(long, conflicts_with = "raft")]
    bug: Option<Bug>,
    /// Simulate the record by itself: the real consensus crate, its Raft and its store.
    #[arg(long)]
    raft: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(seed) = args.seed {
        let seen = match args.raft {
            true => Seen::from(record::run(seed, None, args.trace)),
            false => Seen::from(run(seed, args.bug, args.trace)),
        };
        println!("seed {seed}: trace {:016x}", seen.hash);
        if seen.violation.is_some() {
            show_failure(&args, &seen, !args.trace);
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    many(&args)
}

/// What became of a seed, of either kind.
struct Seen {
    seed: u64,
    hash: u64,
    violation: Option<(&'static str, String)>,
    newest: Vec<String>,
    stats: Stats,
}

impl From<Outcome> for Seen {
    fn from(outcome: Outcome) -> Self {
        let Outcome { seed, hash, violation, newest, stats } = outcome;
        Self { seed, hash, violation: violation.map(|v| (v.invariant, v.what)), newest, stats }
    }
}

impl From<record::Outcome> for Seen {
    fn from(outcome: record::Outcome) -> Self {
        let record::Outcome { seed, hash, violation, newest, stats } = outcome;
        Self { seed, hash, violation: violation.map(|v| (v.invariant, v.what)), newest, stats }
    }
}

fn many(args: &Args) -> ExitCode {
    let threads =
        args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let began = Instant::now();
    let (mut ran, mut failed) = (0u64, Vec::new());
    let mut stats = Stats::default();
    let mut done = |seen: Seen| {
        ran += 1;
        stats.add(&seen.stats);
        if seen.violation.is_some() {
            if args.keep_going {
                show_short(&seen);
            } else {
                show_failure(args, &seen, true);
            }
            failed.push(seen.seed);
        }
        if ran % 200 == 0 {
            println!("{ran} of {} seeds, {:.0} s", args.seeds, began.elapsed().as_secs_f64());
        }
        args.keep_going || failed.is_empty()
    };
    match args.raft {
        true => record::run_many(args.from, args.seeds, threads, None, |o| done(o.into())),
        false => run_many(args.from, args.seeds, threads, args.bug, |o| done(o.into())),
    }
    summary(&stats, ran, began.elapsed().as_secs_f64());
    let unreached = if args.raft { Vec::new() } else { unreached(&stats) };
    if args.seeds >= 500 && !unreached.is_empty() && failed.is_empty() {
        println!("rules never reached: {}", unreached.join(", "));
        return ExitCode::FAILURE;
    }
    if failed.is_empty() {
        println!("{ran} seeds passed");
        ExitCode::SUCCESS
    } else {
        failed.sort_unstable();
        println!("{} of {ran} seeds FAILED: {failed:?}", failed.len());
        ExitCode::FAILURE
    }
}

fn show_short(seen: &Seen) {
    if let Some((invariant, what)) = &seen.violation {
        println!("seed {} FAILED {invariant}: {what}", seen.seed);
    }
}

fn show_failure(args: &Args, seen: &Seen, lines: bool) {
    let seed = seen.seed;
    match args.raft {
        true => println!("{:?}", record::Shape::new(seed, None)),
        false => println!("{:?}", Scenario::new(seed, args.bug)),
    }
    if lines {
        seen.newest.iter().for_each(|line| println!("  {line}"));
    }
    show_short(seen);
    let raft = if args.raft { " --raft" } else { "" };
    println!("replay: cd sim && cargo run --release --{raft} --seed {seed} --trace");
}

fn unreached(stats: &Stats) -> Vec<String> {
    let leader = leader::RULES.iter().map(|(r, _)| (*r, stats.leader_rules.contains_key(r)));
    let member = member::RULES.iter().map(|(r, _)| (*r, stats.member_rules.contains_key(r)));
    leader.chain(member).filter(|(_, reached)| !reached).map(|(r, _)| r.to_owned()).collect()
}

fn summary(stats: &Stats, ran: u64, seconds: f64) {
    println!("\n{ran} seeds in {seconds:.1} s");
    println!("  {:>12}  simulated seconds", stats.simulated_ms / 1_000);
    println!("  {:>12}  events", stats.events);
    println!("  {:>12}  changes of primary completed", stats.failovers);
    println!("  {:>12}  commits acknowledged", stats.commits);
    println!("  {:>12}  reads", stats.reads);
    println!("  {:>12}  messages lost", stats.lost);
    for (title, counts) in [
        ("what happened", &stats.counts),
        ("rules of the leader", &stats.leader_rules),
        ("rules of the member", &stats.member_rules),
    ] {
        println!("{title}");
        counts.iter().for_each(|(name, count)| println!("  {count:>12}  {name}"));
    }
}
