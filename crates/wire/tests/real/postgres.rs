//! A PostgreSQL server of our own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a condition may take before a test gives up. Generous: machines have slow moments.
pub const PATIENCE: Duration = Duration::from_secs(60);

fn bin() -> PathBuf {
    if let Ok(bin) = std::env::var("SEMPRE_PG_BIN") {
        return bin.into();
    }
    let mut found: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed, or SEMPRE_PG_BIN names it")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("an initdb")
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().expect("id runs").stdout.starts_with(b"0")
}

/// PostgreSQL refuses root: as root, its programs run as the system user `postgres`.
pub fn command(program: &str) -> Command {
    let program = bin().join(program);
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/").env("LC_ALL", "C");
    command
}

fn own(path: &Path) {
    if is_root() {
        let status = Command::new("chown").arg("-R").arg("postgres:postgres").arg(path).status();
        assert!(status.unwrap().success());
    }
}

/// A server. Stopped and removed when dropped.
pub struct Postgres {
    pub port: u16,
    process: Child,
    // Behind the process: removed after it.
    _folder: tempfile::TempDir,
}

impl Postgres {
    /// Starts one with these lines as its pg_hba.conf.
    pub fn start(hba: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("sempre-wire-").tempdir().unwrap();
        own(folder.path());
        let data = folder.path().join("data");
        let out = command("initdb")
            .args(["--no-sync", "-A", "trust", "-U", "postgres", "--no-instructions", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        // Someone else may take the port before PostgreSQL does: then another one.
        let start = Instant::now();
        loop {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut process = command("postgres")
                .arg("-D")
                .arg(&data)
                .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"])
                .args(["-c", "unix_socket_directories=", "-c", "fsync=off"])
                .args(["-c", "shared_buffers=16MB", "-c", "autovacuum=off"])
                .args(["-c", "max_prepared_transactions=4"])
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log.try_clone().unwrap())
                .spawn()
                .unwrap();
            let mut ready = command("pg_isready");
            ready.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
            loop {
                let said = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                assert!(start.elapsed() < PATIENCE, "PostgreSQL does not start: {said}");
                if process.try_wait().unwrap().is_some() {
                    break;
                }
                if ready.status().unwrap().success() {
                    return Self { port, process, _folder: folder };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// What psql says, as `postgres`.
    pub fn psql(&self, text: &str) -> String {
        let out = psql(self.port, "postgres", "").args(["-c", text]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT: an immediate shutdown; SIGKILL would leave children of the server behind.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").args(["-QUIT", &pid]).status();
        let _ = self.process.wait();
    }
}

/// psql, not started yet.
pub fn psql(port: u16, user: &str, password: &str) -> Command {
    let mut command = command("psql");
    command
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &port.to_string()])
        .args(["-U", user, "-d", "postgres"])
        .env("PGPASSWORD", password)
        .env("PGCONNECT_TIMEOUT", "30")
        .stdin(Stdio::null());
    command
}
