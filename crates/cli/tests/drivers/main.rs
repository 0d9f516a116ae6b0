//! Clients of other makes through the routed port: each is put through what it can do, then all of
//! them keep their sessions across a switchover.
//!
//! `scripts/drivers.sh` installs them; `scripts/setup.sh --test` calls it.

#[path = "../common/mod.rs"]
mod common;

use common::{base_port, psql, sempre, told, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A demo; ended when dropped.
struct Demo {
    child: Child,
    ready: Value,
    // Dropped last.
    _folder: tempfile::TempDir,
}

impl Demo {
    fn start() -> Self {
        // A short path: Unix sockets are below it.
        let folder = tempfile::Builder::new().prefix("sv").tempdir_in("/tmp").unwrap();
        let mut child = sempre()
            .args(["demo", "--json", "--base-port", &base_port().to_string(), "--dir"])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_default();
        let demo = Self { child, ready, _folder: folder };
        assert!(demo.ready.is_object(), "it did not start; it says why above");
        demo
    }

    fn dsn(&self) -> &str {
        self.ready["read_write"].as_str().unwrap()
    }

    fn sempre(&self, arguments: &[&str]) -> String {
        let mut command = sempre();
        command.args(["--config", self.ready["config"].as_str().unwrap()]).args(arguments);
        let (code, out, err) = told(command.stdin(Stdio::null()).output().unwrap());
        assert_eq!(code, 0, "{arguments:?}: {err}");
        out
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A client of another make, at work; killed when dropped.
struct Driver {
    name: &'static str,
    child: Child,
    says: BufReader<std::process::ChildStdout>,
}

impl Driver {
    fn start(name: &'static str, interpreter: &Path, dsn: &str) -> Self {
        let drivers = drivers();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("drivers").join(name);
        let mut child = Command::new(interpreter)
            .arg(script)
            .arg(dsn)
            .env("NODE_PATH", drivers.join("node_modules"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{name}: {}: {error}; run scripts/drivers.sh", interpreter.display())
            });
        let says = BufReader::new(child.stdout.take().unwrap());
        Self { name, child, says }
    }

    /// It gets as far as saying this word.
    fn says(&mut self, word: &str) {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word, "{} failed; it says why above", self.name);
    }

    fn go_on(&mut self) {
        self.child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where scripts/drivers.sh installs them.
fn drivers() -> PathBuf {
    env::var_os("SEMPRE_DRIVERS").map_or_else(|| "/var/tmp/sempre-drivers".into(), PathBuf::from)
}

/// A program of PostgreSQL.
fn program(name: &str) -> Command {
    let named = env::var_os("SEMPRE_PG_BIN").map(|bin| PathBuf::from(bin).join(name));
    let debian =
        (14..=18).rev().map(|v| PathBuf::from(format!("/usr/lib/postgresql/{v}/bin/{name}")));
    let found = named.into_iter().chain(debian).find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| name.into()))
}

fn succeeds(command: &mut Command) -> String {
    let (code, out, err) = told(command.stdin(Stdio::null()).output().unwrap());
    assert_eq!(code, 0, "{command:?}: {err}");
    out
}

fn ask(dsn: &str, statement: &str) -> String {
    succeeds(psql().args([dsn, "-c", statement])).trim().to_owned()
}

#[test]
fn drivers_work_and_keep_their_sessions_across_a_switchover() {
    let demo = Demo::start();
    let python = drivers().join("bin").join("python");
    let mut all = [
        Driver::start("psycopg3.py", &python, demo.dsn()),
        Driver::start("asyncpg_driver.py", &python, demo.dsn()),
        Driver::start("node_postgres.js", Path::new("node"), demo.dsn()),
    ];
    for driver in &mut all {
        driver.says("ready");
    }
    demo.sempre(&["switchover", "--to", "m2", "--yes"]);
    for driver in &mut all {
        driver.go_on();
    }
    for driver in &mut all {
        driver.says("done");
    }
}

#[test]
fn postgresql_s_own_programs_work() {
    let demo = Demo::start();
    let dsn = demo.dsn();
    succeeds(program("pgbench").args(["-i", "-q", "-s", "1", dsn]));
    let folder = tempfile::tempdir().unwrap();
    let pipeline = folder.path().join("pipeline.sql");
    let lines = "select 1;\n".repeat(30);
    std::fs::write(&pipeline, format!("\\startpipeline\n{lines}\\endpipeline\n")).unwrap();
    for mode in ["simple", "extended", "prepared"] {
        let bench = || {
            let mut command = program("pgbench");
            command.args(["-n", "-M", mode, "-t", "50", "-c", "4"]);
            command
        };
        let out = succeeds(bench().arg(dsn));
        assert!(out.contains("number of transactions actually processed: 200/200"), "{out}");
        if mode != "simple" {
            succeeds(bench().arg("-f").arg(&pipeline).arg(dsn));
        }
    }
    // A dump, restored through the same port by several connections.
    let file = folder.path().join("dump");
    succeeds(program("pg_dump").args(["-Fc", "-d", dsn, "-f"]).arg(&file));
    let before = ask(dsn, "select count(*), sum(abalance) from pgbench_accounts");
    ask(dsn, "drop table pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers");
    succeeds(program("pg_restore").args(["-j", "3", "-d", dsn]).arg(&file));
    assert_eq!(ask(dsn, "select count(*), sum(abalance) from pgbench_accounts"), before);
    // psql: what it does by itself.
    let file = folder.path().join("script.sql");
    std::fs::write(&file, "\\copy pgbench_tellers to '/dev/null'\n\\d pgbench_tellers\n").unwrap();
    succeeds(psql().arg(dsn).arg("-f").arg(&file));
    until("the standby has it all", || {
        let dsn = demo.ready["read_only"].as_str().unwrap();
        (ask(dsn, "select count(*) from pgbench_accounts") == "100000").then_some(())
    });
}
