//! Members of a test's own, made and run as an operator would.

use crate::common::{processes_below, psql, run, sempre, told, until};
use serde_json::Value;
use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};
use tempfile::TempDir;

/// What a command said.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// It failed as it should: exit code, error code, and words that the message holds.
    #[track_caller]
    pub fn refused(&self, exit: i32, code: &str, words: &[&str]) -> &Self {
        let Self { err, out, .. } = self;
        assert_eq!(self.code, exit, "{out}{err}");
        assert!(code.is_empty() || err.contains(&format!("({code})")), "not {code}: {err}");
        for word in words {
            assert!(err.contains(word), "no `{word}` in: {err}");
        }
        self.is_whole()
    }

    /// What happened, why, and what to do.
    #[track_caller]
    pub fn is_whole(&self) -> &Self {
        let err = &self.err;
        assert!(err.contains("error: "), "{err}");
        assert!(err.contains("\n  why: ") && err.contains("\n  do:  "), "not whole: {err}");
        assert!(!err.contains("panicked"), "{err}");
        self
    }

    #[track_caller]
    pub fn ok(&self) -> &Self {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }
}

impl From<(i32, String, String)> for Said {
    fn from((code, out, err): (i32, String, String)) -> Self {
        Self { code, out, err }
    }
}

/// `sempre` without a member.
pub fn said(arguments: &[&str]) -> Said {
    run(arguments).into()
}

/// A folder that the members' user may look into; short, as Unix sockets are below it.
pub fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("sb").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Who owns the members' files.
pub fn member_ids() -> (u32, u32) {
    if !is_root() {
        return (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    }
    let user = nix::unistd::User::from_name("postgres").unwrap().expect("the user `postgres`");
    (user.uid.as_raw(), user.gid.as_raw())
}

/// Runs one of PostgreSQL's programs as the members' user.
pub fn as_member(program: &str) -> Command {
    let bin = sempre_bin_dir();
    let mut command = Command::new(bin.join(program));
    if is_root() {
        let (uid, gid) = member_ids();
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").env("LC_ALL", "C");
    command
}

/// The newest PostgreSQL that sempre would find.
fn sempre_bin_dir() -> PathBuf {
    if let Some(named) = std::env::var_os("SEMPRE_PG_BIN") {
        return named.into();
    }
    (14..=18)
        .rev()
        .map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")))
        .find(|bin| bin.join("postgres").exists())
        .expect("PostgreSQL; or name its folder in SEMPRE_PG_BIN")
}

/// One member: its config file, and its agent while it runs. All of it ends when dropped.
pub struct Member {
    pub name: String,
    pub root: PathBuf,
    pub address: String,
    /// Of the database; the four behind it: read-write, read-only, REST, peer.
    pub port: u16,
    pub env: Vec<(OsString, OsString)>,
    agent: Option<Child>,
}

impl Member {
    /// With a config file, and nothing else. `more` goes to its end.
    pub fn new(folder: &Path, name: &str, more: &str) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let pid = std::process::id();
        let (address, port) = loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            // Of this process alone, and the ports below those that outgoing connections take.
            let address = format!("127.{}.{}.{}", 20 + number % 200, pid >> 8 & 255, pid & 255);
            let port = 10_000 + (u16::try_from(pid % 3_600).unwrap() + number * 7) % 3_600 * 6;
            let free = (port..port + 5).all(|port| {
                TcpListener::bind(("127.0.0.1", port)).is_ok()
                    && TcpListener::bind((address.as_str(), port)).is_ok()
            });
            if free {
                break (address, port);
            }
        };
        let root = folder.join(name);
        let member = Self { name: name.into(), root, address, port, env: vec![], agent: None };
        member.write_config(more);
        member
    }

    pub fn write_config(&self, more: &str) {
        let Self { name, root, address, port, .. } = self;
        let text = format!(
            "name = \"{name}\"\ndir = \"{}\"\naddresses = [\"{address}\"]\n\
             {}[ports]\ndatabase = {port}\nread_write = {}\nread_only = {}\nrest = {}\npeer = {}\n",
            root.display(),
            more,
            port + 1,
            port + 2,
            port + 3,
            port + 4
        );
        fs::write(self.config(), text).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.root.with_extension("toml")
    }

    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Read-write, read-only, REST and peer address.
    pub fn addresses(&self) -> [(&'static str, SocketAddr); 4] {
        let at = |offset| SocketAddr::new(self.address.parse().unwrap(), self.port + offset);
        [("read-write", at(1)), ("read-only", at(2)), ("REST", at(3)), ("peer", at(4))]
    }

    /// A command with its config file.
    pub fn sempre(&self, arguments: &[&str]) -> Said {
        let mut command = self.command();
        told(command.args(arguments).stdin(Stdio::null()).output().unwrap()).into()
    }

    fn command(&self) -> Command {
        let mut command = sempre();
        command.arg("--config").arg(self.config()).envs(self.env.iter().cloned());
        command
    }

    /// Makes a cluster of it, and waits until it serves.
    pub fn serving(mut self, set: &[&str]) -> Self {
        let set: Vec<_> = set.iter().flat_map(|pair| ["--set", pair]).collect();
        self.sempre(&[&["init"][..], &set].concat()).ok();
        self.start();
        self.until("it serves", |status| status["writable"] == true);
        self
    }

    /// Starts the agent. It ends, with its database, when its standard input does.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = self.command();
        command.args(["run", "--stop-with-input"]).stdin(Stdio::piped()).stderr(log);
        self.agent = Some(command.stdout(Stdio::null()).spawn().unwrap());
    }

    /// Runs the agent, which must end by itself.
    #[track_caller]
    pub fn run_to_its_end(&self) -> Said {
        let mut command = self.command();
        command.args(["run", "--stop-with-input"]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take();
        let ended = (0..600).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            child.try_wait().unwrap().is_some()
        });
        drop(input);
        let said = told(child.wait_with_output().unwrap()).into();
        assert!(ended, "it ran until it was stopped: {}", Said::err_of(&said));
        said
    }

    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().expect("a running agent").id()
    }

    pub fn agent_lives(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| agent.try_wait().unwrap().is_none())
    }

    /// Stops agent, guard and database.
    pub fn stop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            drop(agent.stdin.take());
            agent.wait().unwrap();
        }
    }

    pub fn log_file(&self) -> PathBuf {
        self.root.with_extension("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Waits until the agent's log holds these words.
    #[track_caller]
    pub fn until_logged(&self, words: &str) {
        until(&format!("the log holds `{words}`"), || self.log().contains(words).then_some(()));
    }

    pub fn status(&self) -> Option<Value> {
        let said = self.sempre(&["status", "--json"]);
        (said.code == 0).then(|| serde_json::from_str(&said.out).unwrap())
    }

    /// Waits until its status is as wished.
    #[track_caller]
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        until(&format!("{what}; the log says: {}", self.log_file().display()), || {
            self.status().filter(|status| status["answered_by"] == *self.name && holds(status))
        })
    }

    /// Waits until something odd is said with all these words.
    #[track_caller]
    pub fn until_odd(&self, words: &[&str]) -> String {
        let mut seen = String::new();
        let found = (0..400).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            seen = self.status().map(|status| status["oddities"].to_string()).unwrap_or_default();
            words.iter().all(|word| seen.contains(word))
        });
        assert!(found, "no {words:?} in {seen}\n{}", self.log());
        seen
    }

    /// Lets the test in as `postgres`, without a password.
    pub fn open(&self) {
        let lines = "local all all trust\nhost all all 127.0.0.0/8 trust\n";
        fs::write(self.data().join("pg_hba.conf"), lines).unwrap();
        self.sempre(&["reload"]).ok();
        until("the test is let in", || self.try_sql("select 1").ok());
    }

    pub fn try_sql(&self, statement: &str) -> Result<String, String> {
        let mut command = psql();
        command.arg("-h").arg(self.root.join("run")).args(["-p", &self.port.to_string()]);
        let (code, out, err) = told(
            command.args(["-U", "postgres", "-d", "postgres", "-c", statement]).output().unwrap(),
        );
        if code == 0 { Ok(out.trim().to_owned()) } else { Err(err) }
    }

    #[track_caller]
    pub fn sql(&self, statement: &str) -> String {
        self.try_sql(statement).unwrap()
    }
}

impl Said {
    fn err_of(said: &Said) -> &str {
        &said.err
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop();
        // What an agent that was killed left behind.
        let left = processes_below(&self.root);
        for line in left {
            if let Some(pid) = line.split(' ').next().and_then(|pid| pid.parse().ok()) {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        if std::thread::panicking() {
            eprintln!("---- log of {}\n{}", self.name, self.log());
        }
    }
}

/// A REST call by hand: status line and body.
pub fn http(address: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
