//! `sempre demo --json`, as scripts use it, on a real PostgreSQL.

mod common;

use common::{base_port, processes_below, psql, sempre, told, until};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

/// A demo; killed when dropped.
struct Demo {
    child: Child,
    ready: Value,
    // Dropped last.
    folder: tempfile::TempDir,
}

impl Demo {
    fn start(members: u8, below: &str) -> Self {
        // A short path: Unix sockets are below it.
        let folder = tempfile::Builder::new().prefix("sd").tempdir_in("/tmp").unwrap();
        let dir = folder.path().join(below);
        let mut child = sempre()
            .args(["demo", "--json", "--base-port", &base_port().to_string()])
            .args(["--members", &members.to_string(), "--dir"])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_default();
        let demo = Self { child, ready, folder };
        assert!(demo.ready.is_object(), "it did not start; it says why above");
        demo
    }

    fn text(&self, key: &str) -> &str {
        self.ready[key].as_str().unwrap()
    }

    fn member(&self, number: usize) -> &Value {
        &self.ready["members"][number]
    }

    /// A command against it.
    fn sempre(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = sempre();
        command.args(["--config", self.text("config")]).args(arguments);
        told(command.stdin(Stdio::null()).output().unwrap())
    }

    fn status(&self) -> Option<Value> {
        let (code, out, _) = self.sempre(&["status", "--json"]);
        (code == 0).then(|| serde_json::from_str(&out).unwrap())
    }

    fn sql(&self, dsn: &str, statement: &str) -> String {
        let mut command = psql();
        let (code, out, err) =
            told(command.args([self.text(dsn), "-c", statement]).output().unwrap());
        assert_eq!(code, 0, "{statement}: {err}");
        out.trim().to_owned()
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            return;
        }
        let dir = self.folder.path().to_owned();
        until("all is gone", || processes_below(&dir).is_empty().then_some(()));
    }
}

/// How nice a process is.
fn nice(pid: &str) -> i64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the program's name in brackets: the 19th field is the 17th.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(16).unwrap().parse().unwrap()
}

/// May we come before others (CAP_SYS_NICE)?
fn may_hurry() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    u64::from_str_radix(held, 16).unwrap() >> 23 & 1 == 1
}

#[test]
fn three_members_serve_hand_over_and_stop() {
    let mut demo = Demo::start(3, "");
    assert_eq!(demo.ready["members"].as_array().unwrap().len(), 3);
    let first = demo.member(0).clone();
    assert!(PathBuf::from(first["data_dir"].as_str().unwrap()).join("PG_VERSION").exists());
    // Heartbeats and leases come before the database's work, where we may say so.
    let (agent, guard) =
        (nice(&first["agent_pid"].to_string()), nice(&first["guard_pid"].to_string()));
    if nice("self") >= 0 && may_hurry() {
        assert_eq!((agent, guard), (-10, -10));
    }
    let pid_file =
        fs::read_to_string(format!("{}/postmaster.pid", first["data_dir"].as_str().unwrap()));
    assert!(nice(pid_file.unwrap().lines().next().unwrap()) >= 0);
    for pid in ["agent_pid", "guard_pid"] {
        let pid = first[pid].as_u64().unwrap();
        assert!(PathBuf::from(format!("/proc/{pid}")).exists());
    }

    // Clients: what is written through one port is read through the other.
    demo.sql("read_write", "create table t (i int); insert into t values (1)");
    assert_eq!(demo.sql("read_write", "select pg_is_in_recovery()"), "f");
    assert_eq!(demo.sql("read_only", "select pg_is_in_recovery()"), "t");
    until("the row is read from a standby", || {
        let mut command = psql();
        let output = command.args([demo.text("read_only"), "-c", "select i from t"]).output();
        output.ok().filter(|output| output.stdout == b"1\n")
    });

    // Operators.
    let status = demo.status().unwrap();
    assert_eq!(status["primary"], "m1");
    assert_eq!(status["writable"], true);
    assert_eq!(status["sync"]["record"]["members"].as_array().unwrap().len(), 2);
    let (code, out, err) = demo.sempre(&["--json", "switchover", "--to", "m2", "--yes"]);
    assert_eq!(code, 0, "{err}");
    let done: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(done["primary"], "m2");
    assert!(done["stall_ms"].is_u64(), "{out}");
    demo.sql("read_write", "insert into t values (2)");
    let (code, out, _) = demo.sempre(&["history"]);
    assert!(code == 0 && out.contains("m1 → m2") && out.contains("switchover"), "{out}");
    let (code, _, err) = demo.sempre(&["switchover", "--to", "m9", "--yes"]);
    assert!(code == 3 && err.contains("SEMPRE-0020"), "{err}");
    let (code, _, err) = demo.sempre(&["config", "set", "postgresql.work_mem=7MB"]);
    assert_eq!(code, 0, "{err}");
    until("the parameter is in force", || {
        (demo.sql("read_write", "show work_mem") == "7MB").then_some(())
    });

    // An agent that is killed comes back, and the guard is still the same.
    let agent = first["agent_pid"].as_i64().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let status = until("the agent is back", || {
        demo.status()
            .filter(|s| s["answered_by"] == "m1" && s["agent"]["pid"].as_i64() != Some(agent))
    });
    assert_eq!(status["agent"]["guard_pid"], first["guard_pid"]);
    assert_eq!(demo.sql("read_write", "select count(*) from t"), "2");

    // The end.
    demo.signal(nix::sys::signal::Signal::SIGINT);
    assert!(demo.child.wait().unwrap().success());
    assert_eq!(processes_below(demo.folder.path()), Vec::<String>::new());
    assert!(demo.folder.path().join("m1/data/PG_VERSION").exists(), "a named folder stays");
}

#[test]
fn a_demo_that_is_killed_leaves_nothing_running() {
    // As root, a folder that the members' user cannot reach.
    let mut demo = Demo::start(1, "private/demo");
    let config = demo.text("config").to_owned();
    let home = Path::new(&config).parent().unwrap();
    assert_eq!(demo.sql("read_only", "select 1"), "1");
    assert!(!processes_below(home).is_empty());
    demo.child.kill().unwrap();
    demo.child.wait().unwrap();
    until("all is gone", || processes_below(home).is_empty().then_some(()));
    if home.parent() == Some(Path::new("/tmp")) {
        assert_eq!(fs::read_link(demo.folder.path().join("private/demo/cluster")).unwrap(), home);
        fs::remove_dir_all(home).unwrap();
    }
}
