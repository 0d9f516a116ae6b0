//! `cargo xtask backups --files`: folders of files, side by side with `restic`: the same folder, in turns, with
//! the same niceness. Half of its bytes do not pack, as pictures, the other half is text in small files.
//!
//! Each round begins with empty repositories. restic has its cache; ours has none.

use super::{Arguments, server::Server, tool, watch};
use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use watch::Cost;

const RESTIC: &str = "/usr/bin/restic";
/// Bytes of a picture, and of a text, at the most.
const PICTURE: u64 = 3_000_000;
const TEXT: u64 = 40_000;
/// Each so many files one is changed.
const CHANGED: usize = 100;
/// Ours makes backups at this niceness.
const NICE: &str = "renice -n 10 -p $$ >/dev/null; exec \"$@\"";

const PHASES: [&str; 4] = ["first backup", "nothing changed", "1 % of files changed", "restore"];
const TOOLS: [&str; 2] = ["sempre", "restic"];

pub fn main(arguments: &Arguments, binary: &Path) -> Result<bool> {
    let server = Server::start(binary, &arguments.folder, false)?;
    let bench = Bench { server: &server, source: server.root().join("uploads") };
    eprintln!("making {} MB of files", arguments.size_mb);
    bench.make(arguments.size_mb)?;
    let path = bench.source.to_string_lossy().into_owned();
    let add = ["backup", "files", "add", "uploads", "--member", "m1", "--path", &path];
    tool::done(&mut server.sempre(&add))?;
    let mut costs: BTreeMap<(usize, usize), Vec<Cost>> = BTreeMap::new();
    let mut sizes = Vec::new();
    for run in 0..arguments.runs {
        // Nobody is always the first, who finds the disk quiet.
        let order = if run % 2 == 0 { [0, 1] } else { [1, 0] };
        bench.begin()?;
        for (phase, name) in PHASES.iter().enumerate() {
            if phase == 2 {
                bench.change(run)?;
            }
            for tool in order {
                let target = server.root().join("restored").join(TOOLS[tool]);
                let cost = match phase {
                    3 => {
                        server.warm(&[&bench.repository(tool)])?;
                        bench.restore(tool, &target)?
                    }
                    _ => {
                        server.warm(&[&bench.source])?;
                        bench.back_up(tool)?
                    }
                };
                eprintln!("{} {name}: {cost:.2?}", TOOLS[tool]);
                costs.entry((phase, tool)).or_default().push(cost);
            }
        }
        for (tool, name) in TOOLS.iter().enumerate() {
            let target = server.root().join("restored").join(name);
            let (source, below) = (&bench.source, target.join(path.trim_start_matches('/')));
            tool::done(Command::new("diff").arg("-r").arg(source).arg(&below))?;
            fs::remove_dir_all(target)?;
            let size = tool::output("du", &["-sm", &bench.repository(tool).to_string_lossy()])?;
            sizes.push(format!("{name}: {} MB", size.split_whitespace().next().unwrap_or("")));
        }
    }
    println!("{}\nrepositories, round by round: {}", table(&costs), sizes.join(", "));
    Ok(true)
}

struct Bench<'a> {
    server: &'a Server,
    source: PathBuf,
}

/// Bytes that do not pack, or words.
fn contents(seed: u64, bytes: u64, is_text: bool) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut made = Vec::with_capacity(bytes as usize + 16);
    while (made.len() as u64) < bytes {
        match is_text {
            true => made.extend(format!("word{} ", next() % 5_000).bytes()),
            false => made.extend(next().to_le_bytes()),
        }
    }
    made.truncate(bytes as usize);
    made
}

impl Bench<'_> {
    fn make(&self, size_mb: u64) -> Result<()> {
        let mut number = 0;
        for is_text in [false, true] {
            let (mut left, most) = (size_mb * 500_000, if is_text { TEXT } else { PICTURE });
            while left > 0 {
                let bytes = (most / 4 + number * 7_919 % most).min(left);
                let folder = self.source.join(format!("{:03}", number / 200));
                fs::create_dir_all(&folder)?;
                fs::write(folder.join(number.to_string()), contents(number, bytes, is_text))?;
                left -= bytes;
                number += 1;
            }
        }
        eprintln!("{number} files");
        Ok(())
    }

    fn change(&self, run: usize) -> Result<()> {
        let mut all = Vec::new();
        for folder in fs::read_dir(&self.source)? {
            all.extend(fs::read_dir(folder?.path())?.map(|file| file.map(|file| file.path())));
        }
        let mut all = all.into_iter().collect::<std::io::Result<Vec<_>>>()?;
        all.sort();
        for (index, file) in all.iter().enumerate().skip(run).step_by(CHANGED) {
            let bytes = file.metadata()?.len();
            fs::write(
                file,
                contents((1_000_000 * (run + 1) + index) as u64, bytes, bytes <= TEXT * 2),
            )?;
        }
        Ok(())
    }

    fn repository(&self, tool: usize) -> PathBuf {
        let root = self.server.root();
        root.join(if tool == 0 { "sempre/files" } else { "restic" })
    }

    /// Empty repositories.
    fn begin(&self) -> Result<()> {
        for tool in [0, 1] {
            let repository = self.repository(tool);
            if repository.exists() {
                fs::remove_dir_all(&repository)?;
            }
        }
        let (repository, cache) = (self.repository(1), self.server.root().join("restic-cache"));
        if cache.exists() {
            fs::remove_dir_all(&cache)?;
        }
        for folder in [&repository, &cache] {
            fs::create_dir(folder)?;
            if tool::is_root() {
                sempre_lab::rig::own(folder, tool::USER)?;
            }
        }
        tool::done(&mut self.restic(true, &["init"])).map(drop)
    }

    fn restic(&self, as_user: bool, words: &[&str]) -> Command {
        let mut command = match as_user {
            true => {
                let mut command = tool::as_user(Path::new("/bin/sh"));
                command.args(["-c", NICE, "sh", RESTIC]);
                command
            }
            false => Command::new(RESTIC),
        };
        command.env("RESTIC_PASSWORD", "benchmark").env("RESTIC_REPOSITORY", self.repository(1));
        command.env("RESTIC_CACHE_DIR", self.server.root().join("restic-cache")).args(words);
        command
    }

    fn back_up(&self, tool: usize) -> Result<Cost> {
        let source = self.source.to_string_lossy();
        Ok(match tool {
            0 => {
                let mut command =
                    self.server.sempre(&["--json", "backup", "run", "--files", "uploads"]);
                watch::run(&mut command, Some(self.server.agent()), "sempre")?.1
            }
            _ => watch::run(&mut self.restic(true, &["backup", &source]), None, "restic")?.1,
        })
    }

    /// As root, if this is: owners come back by both.
    fn restore(&self, tool: usize, target: &Path) -> Result<Cost> {
        let target = target.to_str().context("a path that is no UTF-8")?;
        Ok(match tool {
            0 => {
                let words = ["--json", "restore", "--files", "uploads", "--target", target];
                watch::run(&mut self.server.sempre(&words), None, "sempre")?.1
            }
            _ => {
                let words = ["restore", "latest", "--target", target];
                watch::run(&mut self.restic(false, &words), None, "restic")?.1
            }
        })
    }
}

fn table(costs: &BTreeMap<(usize, usize), Vec<Cost>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["phase", "tool", "runs", "s", "least s", "CPU s", "peak MB", "x restic"]);
    for ((phase, tool), taken) in costs {
        let of = |value: fn(&Cost) -> f64| taken.iter().map(value).collect::<Vec<_>>();
        let seconds = super::figures::median(of(|cost| cost.seconds));
        let theirs = costs.get(&(*phase, 1)).map(Vec::as_slice).unwrap_or_default();
        let theirs = super::figures::median(theirs.iter().map(|cost| cost.seconds).collect());
        table.add_row([
            PHASES[*phase].to_owned(),
            TOOLS[*tool].to_owned(),
            taken.len().to_string(),
            format!("{seconds:.2}"),
            format!("{:.2}", of(|cost| cost.seconds).into_iter().fold(f64::MAX, f64::min)),
            format!("{:.2}", super::figures::median(of(|cost| cost.cpu_seconds))),
            format!("{:.0}", of(|cost| cost.peak_mb).into_iter().fold(0.0, f64::max)),
            if *tool == 0 { format!("{:.2}", theirs / seconds) } else { String::new() },
        ]);
    }
    table
}

/// What must be there before it begins.
pub fn ready() -> Result<()> {
    ensure!(
        Path::new(RESTIC).exists(),
        "restic is not installed: `scripts/setup.sh --test` gets it (package restic)"
    );
    Ok(())
}
