//! A cluster of real members with configs of their own, made as an operator makes one: `init`,
//! `token`, `join`, `run`. Every address is the process's own below 127.0.0.0/8.

use super::{base_port, processes_below, psql, sempre, told, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs::{self, OpenOptions, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

/// What all clients may do here: come from this machine.
const HBA: &str = r#""local all all trust", "host all all 127.0.0.0/8 trust""#;
/// Lines of each member's log that a failed test shows.
const LOG_LINES: usize = 40;

/// What one member's config says.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    pub name: String,
    pub witness: bool,
    pub zone: Option<String>,
    /// Lines of `[tags]`.
    pub tags: String,
    /// Lines of `[postgres]`.
    pub postgres: String,
    /// Lines of `[route]`.
    pub route: String,
    /// Lines behind all others.
    pub more: String,
}

/// A data member without tags.
pub fn data(name: &str) -> Spec {
    Spec { name: name.into(), ..Spec::default() }
}

/// A member that only votes.
pub fn witness(name: &str) -> Spec {
    Spec { witness: true, ..data(name) }
}

impl Spec {
    pub fn zone(self, zone: &str) -> Self {
        Self { zone: Some(zone.into()), ..self }
    }

    pub fn tags(self, tags: &str) -> Self {
        Self { tags: tags.into(), ..self }
    }

    pub fn postgres(self, lines: &str) -> Self {
        Self { postgres: lines.into(), ..self }
    }

    pub fn route(self, lines: &str) -> Self {
        Self { route: lines.into(), ..self }
    }
}

/// One member.
pub struct Member {
    pub spec: Spec,
    /// Its config file.
    pub config: PathBuf,
    /// Its folder.
    pub dir: PathBuf,
    /// Its log.
    pub log: PathBuf,
    pub address: String,
    /// Of its database; the other ports follow.
    pub port: u16,
    agent: Option<Child>,
}

impl Member {
    fn write_config(&self) {
        let mut text = format!(
            "name = \"{}\"\ndir = \"{}\"\naddresses = [\"{}\"]\n",
            self.spec.name,
            self.dir.display(),
            self.address
        );
        if self.spec.witness {
            text += "kind = \"witness\"\n";
        }
        if let Some(zone) = &self.spec.zone {
            let _ = writeln!(text, "zone = \"{zone}\"");
        }
        let port = self.port;
        let _ = writeln!(
            text,
            "[ports]\ndatabase = {port}\nread_write = {}\nread_only = {}\nrest = {}\npeer = {}",
            port + 1,
            port + 2,
            port + 3,
            port + 4
        );
        let Spec { tags, postgres, route, more, .. } = &self.spec;
        let _ = writeln!(text, "[tags]\n{tags}\n[postgres]\n{postgres}\n[route]\n{route}\n{more}");
        fs::write(&self.config, text).unwrap();
    }

    /// What its agents logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The process of its agent, if it runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Where its REST is.
    pub fn rest(&self) -> String {
        format!("{}:{}", self.address, self.port + 3)
    }

    /// Clients of its database itself.
    pub fn direct(&self) -> String {
        dsn(&self.address, self.port)
    }

    /// Clients that it leads to the primary.
    pub fn read_write(&self) -> String {
        dsn(&self.address, self.port + 1)
    }

    /// Clients that it leads to standbys.
    pub fn read_only(&self) -> String {
        dsn(&self.address, self.port + 2)
    }
}

pub fn dsn(host: &str, port: u16) -> String {
    format!("postgresql://postgres@{host}:{port}/postgres?connect_timeout=40")
}

/// The whole cluster. Everything ends with it.
pub struct Cluster {
    pub members: Vec<Member>,
    subnet: String,
    next_host: u8,
    next_port: u16,
    // Dropped last.
    pub folder: tempfile::TempDir,
}

impl Cluster {
    /// Places for members, none of them made.
    pub fn places(specs: Vec<Spec>) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        // A short path: Unix sockets are below it.
        let folder = tempfile::Builder::new().prefix("sw").tempdir_in("/tmp").unwrap();
        // As root, members run as another user, who has to get there.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let pid = std::process::id();
        let mut cluster = Self {
            members: Vec::new(),
            subnet: format!("127.{}.{}", 20 + pid / 200 % 200, 1 + pid % 200),
            next_host: 1 + 20 * (NEXT.fetch_add(1, Ordering::Relaxed) % 12),
            next_port: base_port(),
            folder,
        };
        for spec in specs {
            cluster.place(spec);
        }
        cluster
    }

    /// A place for one member more.
    pub fn place(&mut self, spec: Spec) {
        let (address, port) = self.fresh_address();
        let below = |name: String| self.folder.path().join(name);
        let member = Member {
            config: below(format!("{}.toml", spec.name)),
            dir: below(spec.name.clone()),
            log: below(format!("{}.log", spec.name)),
            address,
            port,
            agent: None,
            spec,
        };
        member.write_config();
        self.members.push(member);
    }

    /// A member gets another address, and keeps its ports, once its agent starts again.
    pub fn readdress(&mut self, name: &str) {
        let (address, _) = self.fresh_address();
        self.member_mut(name).address = address;
        self.rewrite_config(name);
    }

    /// Writes the config of a member whose `spec` was changed; it counts from its next start.
    pub fn rewrite_config(&self, name: &str) {
        self.member(name).write_config();
    }

    fn fresh_address(&mut self) -> (String, u16) {
        let found = (format!("{}.{}", self.subnet, self.next_host), self.next_port);
        self.next_host += 1;
        self.next_port += 5;
        found
    }

    /// A member comes to live somewhere else, once its agent starts again.
    pub fn move_house(&mut self, name: &str) {
        let (address, port) = self.fresh_address();
        let member = self.member_mut(name);
        (member.address, member.port) = (address, port);
        member.write_config();
    }

    /// The cluster with all of them, whole. Further `init` arguments: policy.
    pub fn start(specs: Vec<Spec>, policy: &[&str]) -> Self {
        let mut cluster = Self::places(specs);
        cluster.form(policy);
        let others: Vec<_> = cluster.members[1..].iter().map(|m| m.spec.name.clone()).collect();
        for name in &others {
            cluster.join(name);
        }
        cluster.whole();
        cluster
    }

    /// Puts lines, quoted and separated by commas, in front of the record's pg_hba lines.
    pub fn add_hba(&self, lines: &str) {
        let edit = sempre()
            .args(["--config".as_ref(), self.members[0].config.as_os_str()])
            .args(["config", "edit"])
            .env("EDITOR", format!(r"sed -i 's|^hba = \[|hba = [{lines},|'"))
            .env_remove("VISUAL")
            .output();
        assert_eq!(told(edit.unwrap()).0, 0);
    }

    /// The first member, serving; with a table for [`super::writer::Writer`].
    pub fn form(&mut self, policy: &[&str]) {
        let first = self.members[0].spec.name.clone();
        let mut arguments = vec!["init", "--cluster", "test"];
        arguments.extend(policy.iter().flat_map(|set| ["--set", set]));
        self.ok_at(&first, &arguments);
        self.run(&first);
        self.until("the first member serves", |c| c.status()?["writable"].as_bool()?.then_some(()));
        self.add_hba(HBA);
        let direct = self.members[0].direct();
        self.until("clients may come in", |_| {
            query(&direct, "create table if not exists w (id bigint primary key)").ok()
        });
    }

    /// Lets a member join, and runs it.
    pub fn join(&mut self, name: &str) {
        // One that was started just now does not answer yet.
        let first = self.running();
        let token = self.until("a token is made", |cluster| {
            let (code, token, _) = cluster.at(&first, &["token"]);
            (code == 0).then_some(token)
        });
        self.ok_at(name, &["join", token.trim()]);
        self.run(name);
    }

    /// Starts the agent of a member.
    pub fn run(&mut self, name: &str) {
        let member = self.member_mut(name);
        let log = OpenOptions::new().create(true).append(true).open(&member.log).unwrap();
        let child = sempre()
            .args(["--config".as_ref(), member.config.as_os_str()])
            .args(["run", "--stop-with-input"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        member.agent = Some(child.unwrap());
    }

    pub fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|m| m.spec.name == name).unwrap()
    }

    pub fn member_mut(&mut self, name: &str) -> &mut Member {
        self.members.iter_mut().find(|m| m.spec.name == name).unwrap()
    }

    /// A command as typed on that member.
    pub fn at(&self, name: &str, arguments: &[&str]) -> (i32, String, String) {
        let mut command = sempre();
        command.args(["--config".as_ref(), self.member(name).config.as_os_str()]);
        told(command.args(arguments).stdin(Stdio::null()).output().unwrap())
    }

    /// The same; it must succeed. What it printed.
    pub fn ok_at(&self, name: &str, arguments: &[&str]) -> String {
        let (code, out, err) = self.at(name, arguments);
        assert_eq!(code, 0, "{arguments:?} at {name}: {err}");
        out
    }

    /// A command that must succeed, typed on a member whose agent runs.
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.ok_at(&self.running(), arguments)
    }

    /// A switchover with these further arguments, once the standbys have said how far they are.
    pub fn switchover(&self, arguments: &[&str]) -> String {
        let all = [&["switchover", "--yes"], arguments].concat();
        self.until("the switchover is done", |cluster| {
            let (code, out, err) = cluster.at(&cluster.running(), &all);
            assert!(code == 0 || err.contains("has just connected"), "{all:?}: {err}");
            (code == 0).then_some(out)
        })
    }

    /// A command that must be refused with this code. What it says.
    pub fn refused(&self, arguments: &[&str], code: &str) -> String {
        let (exit, _, err) = self.at(&self.running(), arguments);
        assert!(exit == 3 && err.contains(code), "{arguments:?}: exit {exit}, {err}");
        err
    }

    /// A member whose agent runs.
    fn running(&self) -> String {
        self.members.iter().find(|m| m.agent.is_some()).unwrap().spec.name.clone()
    }

    pub fn status(&self) -> Option<Value> {
        self.status_at(&self.running())
    }

    /// The status as that member says it.
    pub fn status_at(&self, name: &str) -> Option<Value> {
        let (code, out, _) = self.at(name, &["status", "--json"]);
        (code == 0).then(|| serde_json::from_str(&out).unwrap())
    }

    pub fn events(&self) -> Vec<Value> {
        let text = self.ok(&["--json", "events"]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The last change of primary.
    pub fn last_change(&self) -> Value {
        // One that has just come back has an older record for a moment.
        let running = self.members.iter().filter(|member| member.agent.is_some());
        let last = running.filter_map(|member| {
            let (_, out, _) = self.at(&member.spec.name, &["--json", "history"]);
            let history: Value = serde_json::from_str(&out).ok()?;
            history["history"].as_array()?.last().cloned()
        });
        last.max_by_key(|change| change["generation"].as_u64()).unwrap()
    }

    /// Waits until it holds.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        until(what, || look(self))
    }

    /// Waits until nothing is odd, everybody votes, and all standbys stream.
    pub fn whole(&self) -> Value {
        self.until("nothing is odd", |cluster| {
            let status = cluster.status()?;
            let calm = status["oddities"].as_array()?.is_empty() && status["writable"] == true;
            let members = status["members"].as_array()?;
            let at_work = |member: &Value| {
                member["state"] == "streaming"
                    || member["role"] == "witness"
                    || member["name"] == status["primary"]
            };
            let all = members.iter().all(at_work)
                && status["raft"]["voters"].as_u64()? == members.len() as u64;
            (calm && all).then_some(status)
        })
    }

    /// Waits until this member is the serving primary.
    pub fn primary_is(&self, name: &str) -> Value {
        self.until(&format!("{name} is primary"), |cluster| {
            cluster.status().filter(|s| s["primary"] == name && s["writable"] == true)
        })
    }

    /// The process of a member's database, if it runs.
    pub fn postmaster(&self, name: &str) -> Option<i32> {
        let file = self.data_dir(name).join("postmaster.pid");
        let pid = fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()?;
        alive(pid).then_some(pid)
    }

    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.member(name).dir.join("data")
    }

    /// `kill -9` of the database process.
    pub fn kill_database(&self, name: &str) {
        kill(Pid::from_raw(self.postmaster(name).unwrap()), Signal::SIGKILL).unwrap();
    }

    /// The process of a member's agent.
    pub fn agent(&self, name: &str) -> Pid {
        let agent = self.member(name).agent.as_ref().unwrap();
        Pid::from_raw(i32::try_from(agent.id()).unwrap())
    }

    /// `kill -9` of the agent alone.
    pub fn kill_agent(&mut self, name: &str) {
        let mut agent = self.member_mut(name).agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Everything of these members at once, as when their machines lose power.
    pub fn kill_members(&mut self, names: &[&str]) {
        for name in names {
            if let Some(agent) = &mut self.member_mut(name).agent {
                agent.kill().unwrap();
            }
        }
        for name in names {
            if let Some(mut agent) = self.member_mut(name).agent.take() {
                agent.wait().unwrap();
            }
            kill_below(&self.member(name).dir);
        }
    }

    /// The agent stops in good order, with its database.
    pub fn stop(&mut self, name: &str) {
        let agent = self.member_mut(name).agent.take();
        let mut agent = agent.unwrap();
        drop(agent.stdin.take());
        assert!(agent.wait().unwrap().success());
        let dir = &self.member(name).dir;
        until("the member has stopped", || processes_below(dir).is_empty().then_some(()));
    }

    /// The process of this kind, such as `walreceiver`, of a member's database.
    pub fn backend(&self, name: &str, kind: &str) -> Option<Pid> {
        let postmaster = self.postmaster(name)?;
        let children = format!("/proc/{postmaster}/task/{postmaster}/children");
        let children = fs::read_to_string(children).ok()?;
        let found = children.split_whitespace().find(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).contains(kind)
        })?;
        Some(Pid::from_raw(found.parse().ok()?))
    }

    /// Writes so much WAL that only the primary's own disk is waited for.
    pub fn write_local(&self, primary: &str, kilobytes: u64) {
        let sql = format!(
            "set synchronous_commit = local; create table if not exists filler (t text); \
             insert into filler select repeat(md5(i::text), 32) from generate_series(1, {kilobytes}) i"
        );
        query(&self.member(primary).direct(), &sql).unwrap();
    }

    /// Rows that were acknowledged are there, by the present primary.
    pub fn has_rows(&self, rows: &[i64]) {
        let primary = self.last_change()["primary"].as_str().unwrap().to_owned();
        let there = query(&self.member(&primary).direct(), "select id from w").unwrap();
        let there: std::collections::BTreeSet<i64> =
            there.lines().map(|line| line.parse().unwrap()).collect();
        let lost: Vec<_> = rows.iter().filter(|row| !there.contains(row)).collect();
        assert!(lost.is_empty(), "acknowledged rows are lost: {lost:?}");
        assert!(!rows.is_empty(), "nothing was acknowledged");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in &self.members {
                let text = member.log();
                // Raft says of each member that is away, several times a second, that it is.
                let lines: Vec<_> =
                    text.lines().filter(|line| !line.contains(" openraft::")).collect();
                let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
                eprintln!("---- {}\n{}", member.spec.name, last.join("\n"));
            }
            if let Some(member) = self.members.iter().find(|m| m.agent.is_some()) {
                eprintln!("{}", self.at(&member.spec.name.clone(), &["status"]).1);
            }
        }
        for agent in self.members.iter_mut().filter_map(|m| m.agent.as_mut()) {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        kill_below(self.folder.path());
    }
}

fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}/stat")).exists()
}

/// Kills what runs below a folder, until nothing is left of it. Never panics: it runs while a
/// test ends.
fn kill_below(dir: &Path) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let left = processes_below(dir);
        if left.is_empty() || Instant::now() > until {
            return;
        }
        for pid in left.iter().filter_map(|line| line.split(' ').next()?.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a statement prints, or what is wrong.
pub fn query(dsn: &str, statement: &str) -> Result<String, String> {
    let (code, out, err) = told(psql().args([dsn, "-c", statement]).output().unwrap());
    if code == 0 { Ok(out.trim().to_owned()) } else { Err(err) }
}

/// Stops a process, or lets it go on.
pub fn signal(pid: Pid, signal: Signal) {
    kill(pid, signal).unwrap();
}
