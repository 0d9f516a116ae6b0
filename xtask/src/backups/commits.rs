//! `--commits`: what a commit costs that waits for a repository, beside one that waits for a standby in the
//! same place. One primary on this machine; in turns either its standby runs and commits wait for that, or it
//! does not, and they wait for the repository. The archiver, a witness's, runs all the time.

use super::tool;
use anyhow::{Context, Result, bail};
use sempre_lab::rig::{own, postgres_bin};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The first member's first port; the others' follow.
const PORT: u16 = 24_600;
/// Clients that write at a time.
const CLIENTS: [u32; 2] = [1, 8];
/// How long each measurement takes, s.
const SECONDS: u32 = 5;
const MEMBERS: [&str; 3] = ["m1", "m2", "w1"];
const STANDBY: &str = "m2";
const ARCHIVER: &str = "archive-main";

pub fn main(binary: &Path, folder: &Path, runs: usize) -> Result<bool> {
    let mut cluster = Trio::start(binary, folder)?;
    let mut figures: BTreeMap<(u32, &str), Vec<f64>> = BTreeMap::new();
    for run in 0..runs {
        let mut order = [STANDBY, ARCHIVER];
        order.rotate_left(run % 2);
        for waits_for in order {
            cluster.wait_for(waits_for)?;
            for clients in CLIENTS {
                let ms = cluster.latency_ms(clients)?;
                eprintln!("{clients} clients, commits wait for {waits_for}: {ms:.3} ms");
                figures.entry((clients, waits_for)).or_default().push(ms);
            }
        }
    }
    println!("latency of a commit, ms, medians of {runs}");
    for clients in CLIENTS {
        let median = |name| {
            let mut all = figures.get(&(clients, name)).cloned().unwrap_or_default();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let (standby, archive) = (median(STANDBY), median(ARCHIVER));
        println!(
            "{clients:>3} clients  standby {standby:.3}  repository {archive:.3}  ratio {:.2}",
            archive / standby
        );
    }
    Ok(true)
}

/// A primary, a standby and a witness. All of it ends when this is dropped.
struct Trio<'a> {
    binary: &'a Path,
    agents: BTreeMap<&'static str, Child>,
    folder: tempfile::TempDir,
}

impl<'a> Trio<'a> {
    fn start(binary: &'a Path, folder: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("sempre-bk").tempdir_in(folder)?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let mut cluster = Self { binary, agents: BTreeMap::new(), folder };
        for (index, name) in MEMBERS.iter().enumerate() {
            cluster.folder_of(name)?;
            let config = cluster.folder.path().join(format!("{name}.toml"));
            fs::write(config, cluster.config(index, name))?;
        }
        let repository = cluster.folder_of("repository")?;
        tool::done(&mut cluster.at("m1", &["init", "--cluster", "commits"]))?;
        cluster.run("m1")?;
        cluster.until("the first member serves", |c| {
            c.status()?["writable"].as_bool()?.then_some(())
        })?;
        fs::write(cluster.folder.path().join("m1/data/pg_hba.conf"), "local all all trust\n")?;
        for name in &MEMBERS[1..] {
            let token = tool::done(&mut cluster.at("m1", &["token"]))?;
            tool::done(&mut cluster.at(name, &["join", token.trim()]))?;
            cluster.run(name)?;
        }
        tool::done(&mut cluster.at("m1", &["reload"]))?;
        let words = ["backup", "init", "main", "--folder", &repository];
        tool::done(&mut cluster.at("m1", &words))?;
        tool::done(&mut cluster.at("m1", &["config", "set", "archive_in_sync_set=true"]))?;
        tool::done(&mut cluster.at("m1", &["backup", "run"]))?;
        cluster.until("clients are let in", |c| c.client("psql", &["-c", "select 1"]).ok())?;
        cluster.client("pgbench", &["-i", "-q", "-s", "5"])?;
        Ok(cluster)
    }

    /// A folder that the servers' user may write to.
    fn folder_of(&self, name: &str) -> Result<String> {
        let path = self.folder.path().join(name);
        fs::create_dir(&path)?;
        if tool::is_root() {
            own(&path, tool::USER)?;
        }
        Ok(path.to_string_lossy().into_owned())
    }

    fn config(&self, index: usize, name: &str) -> String {
        let dir = self.folder.path().join(name);
        let kind = if name.starts_with('w') { "kind = \"witness\"\n" } else { "" };
        let first = PORT + 10 * index as u16;
        let ports = ["database", "read_write", "read_only", "rest", "peer"];
        let ports = ports.iter().zip(first..).map(|(name, port)| format!("{name} = {port}\n"));
        format!(
            "name = \"{name}\"\ndir = \"{}\"\naddresses = [\"127.77.1.{}\"]\n{kind}[ports]\n{}",
            dir.display(),
            index + 1,
            ports.collect::<String>()
        )
    }

    fn at(&self, name: &str, words: &[&str]) -> Command {
        let mut command = Command::new(self.binary);
        command.arg("--config").arg(self.folder.path().join(format!("{name}.toml"))).args(words);
        command
    }

    fn run(&mut self, name: &'static str) -> Result<()> {
        let log = self.folder.path().join(format!("{name}.log"));
        let log = fs::File::options().create(true).append(true).open(log)?;
        let mut run = self.at(name, &["run", "--stop-with-input"]);
        let run = run.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        self.agents.insert(name, run.spawn()?);
        Ok(())
    }

    fn stop(&mut self, name: &str) {
        let Some(mut agent) = self.agents.remove(name) else { return };
        // It stops, with its database, once its input ends.
        drop(agent.stdin.take());
        let ends = Instant::now() + DEADLINE;
        while matches!(agent.try_wait(), Ok(None)) {
            if Instant::now() > ends {
                let _ = agent.kill();
            }
            sleep(LOOK_EVERY);
        }
    }

    /// Sees to it that commits wait for this one, and nobody else.
    fn wait_for(&mut self, name: &str) -> Result<()> {
        match name {
            STANDBY if !self.agents.contains_key(STANDBY) => self.run(STANDBY)?,
            STANDBY => {}
            _ => self.stop(STANDBY),
        }
        let wanted = json!({"members": [name], "k": 1});
        self.until(&format!("commits wait for {name}"), |cluster| {
            let status = cluster.status()?;
            let sync = &status["sync"];
            (sync["record"] == wanted && sync["database"] == wanted).then_some(())
        })
    }

    /// The average of one small transaction, as pgbench says it.
    fn latency_ms(&self, clients: u32) -> Result<f64> {
        self.client("psql", &["-c", "checkpoint"])?;
        let script = self.folder.path().join("commit.sql");
        fs::write(&script, "insert into pgbench_history (tid) values (1);\n")?;
        let (clients, seconds) = (clients.to_string(), SECONDS.to_string());
        let script = script.to_string_lossy();
        let words = ["-n", "-M", "prepared", "-f", &script, "-c", &clients, "-T", &seconds];
        let said = self.client("pgbench", &words)?;
        let line = said.lines().find_map(|line| line.strip_prefix("latency average = "));
        let ms = line.and_then(|rest| rest.split(' ').next()?.parse().ok());
        ms.with_context(|| format!("pgbench says no latency: {said}"))
    }

    fn client(&self, program: &str, words: &[&str]) -> Result<String> {
        let mut command = tool::as_user(&postgres_bin()?.join(program));
        command.env("PGHOST", self.folder.path().join("m1/run")).env("PGPORT", PORT.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").args(words);
        tool::done(&mut command)
    }

    fn status(&self) -> Option<Value> {
        let status = tool::done(&mut self.at("m1", &["status", "--json"])).ok()?;
        serde_json::from_str(&status).ok()
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let ends = Instant::now() + DEADLINE;
        loop {
            if let Some(seen) = look(self) {
                return Ok(seen);
            }
            if Instant::now() > ends {
                let log = fs::read_to_string(self.folder.path().join("m1.log")).unwrap_or_default();
                bail!("waited too long until {what}; the first member's log:\n{log}");
            }
            sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Trio<'_> {
    fn drop(&mut self) {
        for name in MEMBERS.iter().rev() {
            self.stop(name);
        }
    }
}
