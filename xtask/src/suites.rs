//! `cargo xtask test`: all suites one after the other, whatever becomes of the earlier ones.

use crate::{
    project::{self, cargo},
    sim,
    tally::{self, Dialect, Tally},
};
use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use std::{
    env,
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// For so many simulated clusters one record is simulated: it takes several times as long.
const RECORD_SHARE: u64 = 8;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only suites whose name contains this; several times if wished
    #[arg(long)]
    only: Vec<String>,
    /// How many simulated clusters
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// How many times each fault of the lab
    #[arg(long, default_value_t = 1)]
    runs: usize,
}

/// How the tests of a suite are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// Its closing lines say so.
    Lines(Dialect),
    /// It is one test: that its command succeeds.
    Whole,
}

struct Suite {
    name: &'static str,
    /// Run one after the other, all of them.
    commands: Vec<Command>,
    count: Count,
    /// Why it cannot be run here, if so: it counts as one skipped test.
    missing: Option<&'static str>,
}

impl Suite {
    fn new(name: &'static str, count: Count, commands: impl IntoIterator<Item = Command>) -> Self {
        Self { name, commands: commands.into_iter().collect(), count, missing: None }
    }
}

fn command(words: &str) -> Command {
    let mut command = cargo();
    command.args(words.split_whitespace());
    command
}

/// `words` for the simulation's own workspace.
fn in_sim(words: &str) -> Command {
    let mut command = project::sim_cargo();
    command.args(words.split_whitespace());
    command
}

fn works(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn suites(arguments: &Arguments) -> Vec<Suite> {
    let nextest = works(&mut command("nextest --version"));
    let (unit, dialect) = if nextest {
        ("nextest run --workspace --no-fail-fast", Dialect::Nextest)
    } else {
        ("test --workspace --lib --bins --tests --no-fail-fast", Dialect::Libtest)
    };
    let mut unit = command(unit);
    // What is marked as ignored needs root, and says so: a plain user has it counted as skipped.
    match (is_root(), nextest) {
        (true, true) => unit.args(["--run-ignored", "all"]),
        (true, false) => unit.args(["--", "--include-ignored"]),
        (false, _) => &mut unit,
    };
    let mut docs = [command("doc --workspace --no-deps"), in_sim("doc --no-deps")];
    for doc in &mut docs {
        doc.env("RUSTDOCFLAGS", "-D warnings");
    }
    let lint = |mut command: Command| {
        command.args(["--all-targets", "--", "-D", "warnings"]);
        command
    };
    let mut deny = Suite::new(
        "dependencies",
        Count::Whole,
        [command("deny --offline check bans licenses sources")],
    );
    if !works(&mut command("deny --version")) {
        deny.missing = Some("cargo-deny is not installed");
    }
    vec![
        Suite::new("format", Count::Whole, [command("fmt --all --check"), in_sim("fmt --check")]),
        Suite::new(
            "lints",
            Count::Whole,
            [lint(command("clippy --workspace")), lint(in_sim("clippy"))],
        ),
        deny,
        Suite::new("documentation", Count::Whole, docs),
        Suite::new("unit and integration", Count::Lines(dialect), [unit]),
        Suite::new(
            "documentation examples",
            Count::Lines(Dialect::Libtest),
            [command("test --workspace --doc --no-fail-fast")],
        ),
        Suite::new(
            "simulation's own",
            Count::Lines(Dialect::Libtest),
            [in_sim("test --release --no-fail-fast")],
        ),
        Suite::new(
            "simulated clusters",
            Count::Lines(Dialect::Seeds),
            [sim::command(arguments.seeds, None, false, &[])],
        ),
        Suite::new(
            "simulated records",
            Count::Lines(Dialect::Seeds),
            [sim::command(arguments.seeds / RECORD_SHARE, None, true, &[])],
        ),
        lab(arguments.runs),
    ]
}

fn is_root() -> bool {
    works(Command::new("sh").args(["-c", "[ $(id -u) -eq 0 ]"]))
}

/// The faults, as root: by ourselves or through sudo.
fn lab(runs: usize) -> Suite {
    let ourselves = env::current_exe().unwrap_or_else(|_| "cargo-xtask".into());
    let binary = sempre_lab::sempre::default_binary(&project::target_dir());
    let is_root = is_root();
    let mut run = if is_root { Command::new(&ourselves) } else { Command::new("sudo") };
    if !is_root {
        run.args(["--non-interactive", "--preserve-env=SEMPRE_PG_BIN"]).arg(&ourselves);
    }
    run.args(["lab", "--fault", "all", "--runs", &runs.to_string()]);
    run.arg("--binary").arg(binary);
    let build = command("build --release --package sempre");
    let mut suite = Suite::new("faults", Count::Lines(Dialect::Plain), [build, run]);
    if !is_root && !works(Command::new("sudo").args(["--non-interactive", "true"])) {
        suite.missing = Some("network namespaces need root");
    }
    suite
}

struct Outcome {
    name: &'static str,
    tally: Tally,
    took: Duration,
    note: String,
}

pub fn main(arguments: &Arguments) -> Result<bool> {
    let wanted = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|part| name.contains(part.as_str()))
    };
    let mut outcomes = Vec::new();
    for suite in suites(arguments).into_iter().filter(|suite| wanted(suite.name)) {
        println!("==== {}", suite.name);
        outcomes.push(run(suite)?);
    }
    let mut total = Tally::default();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["suite", "passed", "failed", "skipped", "took s", ""]);
    for Outcome { name, tally, took, note } in outcomes {
        total += tally;
        let Tally { passed, failed, skipped } = tally;
        let numbers = [passed, failed, skipped].map(|n| n.to_string());
        let [passed, failed, skipped] = numbers;
        let took = format!("{:.1}", took.as_secs_f64());
        table.add_row([name.into(), passed, failed, skipped, took, note]);
    }
    println!("{table}");
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(total.failed == 0)
}

fn run(suite: Suite) -> Result<Outcome> {
    let began = Instant::now();
    let mut tally = Tally::default();
    let mut note = String::new();
    if let Some(missing) = suite.missing {
        println!("not run: {missing}");
        tally.skipped = 1;
        note = missing.into();
    } else {
        let mut succeeded = true;
        for mut command in suite.commands {
            let (success, counted) = watch(&mut command, suite.count)?;
            succeeded &= success;
            tally += counted;
        }
        match (suite.count, succeeded) {
            (Count::Whole, true) => tally = Tally { passed: 1, ..Tally::default() },
            (Count::Whole, false) => tally = Tally { failed: 1, ..Tally::default() },
            (Count::Lines(_), true) => {}
            (Count::Lines(_), false) => {
                if tally.failed == 0 {
                    // It did not get as far as counting: it did not build, or it died.
                    tally.failed = 1;
                    note = "broke off".into();
                }
            }
        }
    }
    Ok(Outcome { name: suite.name, tally, took: began.elapsed(), note })
}

/// Runs a command, passes on what it says, and counts its closing lines.
pub(crate) fn watch(command: &mut Command, how: Count) -> Result<(bool, Tally)> {
    println!("$ {command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start {command:?}"))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    // nextest closes on its standard error, others on their standard output.
    let other = thread::spawn(move || count(stderr, how, |line| eprintln!("{line}")));
    let mut tally = count(stdout, how, |line| println!("{line}"));
    tally += other.join().unwrap_or_default();
    Ok((child.wait()?.success(), tally))
}

fn count(stream: impl Read, how: Count, say: impl Fn(&str)) -> Tally {
    let mut tally = Tally::default();
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        say(&line);
        if let Count::Lines(dialect) = how
            && let Some(counted) = tally::closing_line(dialect, &tally::plain(&line))
        {
            tally += counted;
        }
    }
    tally
}
