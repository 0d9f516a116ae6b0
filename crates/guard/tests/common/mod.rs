//! A guard's home for a test: a directory, the guard's own user, and a clean end.
#![allow(dead_code, reason = "each test file uses its part")]

use sempre_guard::{GuardClient, GuardStatus, SpawnBinary, StartRequest};
use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// Generous: a loaded machine is no failure.
pub const WITHIN: Duration = Duration::from_secs(20);
pub const BINARIES: &str = "/usr/lib/postgresql/15/bin";

pub struct Home {
    pub dir: TempDir,
    pub user: Option<nix::unistd::User>,
}

impl Home {
    pub fn new() -> Home {
        let dir = tempfile::Builder::new().prefix("guard").tempdir_in("/tmp").unwrap();
        let user = nix::unistd::geteuid()
            .is_root()
            .then(|| nix::unistd::User::from_name("postgres").unwrap().unwrap());
        if let Some(user) = &user {
            nix::unistd::chown(dir.path(), Some(user.uid), Some(user.gid)).unwrap();
        }
        Home { dir, user }
    }

    /// With an initialised data directory.
    pub fn with_postgres() -> Home {
        let home = Home::new();
        let done = home
            .command(&format!("{BINARIES}/initdb"))
            .args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"])
            .arg(home.data())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        home
    }

    /// A command of the guard's user.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").stdin(Stdio::null());
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub fn binary(&self) -> SpawnBinary {
        SpawnBinary {
            program: env!("CARGO_BIN_EXE_sempre-guard").into(),
            args: vec![self.path().into()],
            user: self.user.as_ref().map(|u| u.name.clone()),
        }
    }

    pub async fn client(&self) -> GuardClient {
        GuardClient::connect_or_spawn(self.path(), self.binary()).await.unwrap()
    }

    pub fn postgres(&self) -> StartRequest {
        let socket = self.path().display();
        StartRequest {
            program: format!("{BINARIES}/postgres").into(),
            args: [
                "-D".to_owned(),
                self.data().display().to_string(),
                "-clisten_addresses=".to_owned(),
                format!("-cunix_socket_directories={socket}"),
                "-cfsync=off".to_owned(),
                "-cshared_buffers=16MB".to_owned(),
            ]
            .into(),
            log_file: self.path().join("postgres.log"),
            data_dir: self.data(),
            ..StartRequest::default()
        }
    }

    /// A shell script in the database's place.
    pub fn shell(&self, script: &str) -> StartRequest {
        StartRequest {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            log_file: self.path().join("shell.log"),
            data_dir: self.data(),
            ..StartRequest::default()
        }
    }

    /// A connection to the database, once it takes one.
    pub async fn connect(&self) -> tokio_postgres::Client {
        let config = format!("host={} user=postgres dbname=postgres", self.path().display());
        let trying = async {
            loop {
                match tokio_postgres::connect(&config, tokio_postgres::NoTls).await {
                    Ok((client, connection)) => {
                        tokio::spawn(connection);
                        return client;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        match tokio::time::timeout(WITHIN, trying).await {
            Ok(client) => client,
            Err(_) => panic!(
                "no connection: {}\n{}",
                std::fs::read_to_string(self.path().join("postgres.log")).unwrap_or_default(),
                self.log()
            ),
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("guard.log")).unwrap_or_default()
    }
}

impl Drop for Home {
    /// Ends the guard (its pid is known by its place in the process list: the argument is this
    /// directory alone) and everything it started.
    fn drop(&mut self) {
        for guard in guards_of(self.path()) {
            let tree = descendants(guard);
            signal(guard, "KILL");
            for pid in tree {
                signal(pid, "KILL");
            }
        }
        let _ = sempre_guard::kill_strays(&self.data(), WITHIN);
    }
}

/// Guards whose argument is `dir`.
pub fn guards_of(dir: &Path) -> Vec<i32> {
    pids()
        .into_iter()
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|b| *b == 0);
            words.next().is_some_and(|w| w.ends_with(b"sempre-guard"))
                && words.next() == Some(dir.as_os_str().as_encoded_bytes())
        })
        .collect()
}

fn pids() -> Vec<i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// Process id, parent and state of a process.
pub fn stat(pid: i32) -> Option<(i32, char)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((words.next()?.parse().ok()?, state))
}

pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(_, state)| state != 'Z')
}

pub fn descendants(pid: i32) -> Vec<i32> {
    let all: Vec<(i32, i32)> =
        pids().into_iter().filter_map(|p| stat(p).map(|(parent, _)| (p, parent))).collect();
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(all.iter().filter(|(_, p)| *p == parent).map(|(p, _)| *p));
        at += 1;
    }
    found.split_off(1)
}

pub fn signal(pid: i32, name: &str) {
    use nix::sys::signal::{Signal, kill};
    let signal: Signal = format!("SIG{name}").parse().unwrap();
    let _ = kill(nix::unistd::Pid::from_raw(pid), signal);
}

/// Waits for a status.
pub async fn wait(client: &GuardClient, what: impl Fn(&GuardStatus) -> bool) -> GuardStatus {
    let mut status = client.status();
    let found = tokio::time::timeout(WITHIN, status.wait_for(|s| what(s))).await;
    match found {
        Ok(status) => status.unwrap().clone(),
        Err(_) => panic!("not within {WITHIN:?}: {:?}", *client.status().borrow()),
    }
}

/// Waits for anything else.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < WITHIN, "not within {WITHIN:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
