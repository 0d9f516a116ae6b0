//! A PostgreSQL of its own, run as the user `postgres` on a socket in its folder.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

static NEXT_PORT: AtomicU32 = AtomicU32::new(0);

pub struct Postgres {
    pub data: PathBuf,
    sockets: PathBuf,
    port: String,
    postmaster: Mutex<Option<String>>,
}

fn program(name: &str) -> PathBuf {
    let named = std::env::var_os("SEMPRE_PG_BIN").map(PathBuf::from);
    let known = ["18", "17", "16", "15", "14"].map(|v| format!("/usr/lib/postgresql/{v}/bin"));
    let known = named.into_iter().chain(known.map(PathBuf::from));
    known.map(|dir| dir.join(name)).find(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// The ids of the user that runs it.
pub fn user() -> Result<(u32, u32)> {
    let id = |what| -> Result<u32> {
        let id = Command::new("id").args([what, "postgres"]).output()?;
        String::from_utf8(id.stdout)?.trim().parse().context("there is no user postgres")
    };
    Ok((id("-u")?, id("-g")?))
}

/// Makes a directory of its user.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir(path)?;
    let user = user()?;
    Ok(std::os::unix::fs::chown(path, Some(user.0), Some(user.1))?)
}

fn as_user(name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program(name));
    command.current_dir("/").stdin(Stdio::null());
    command
}

fn done(mut command: Command) -> Result<String> {
    let Output { status, stdout, stderr } = command.output()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    Ok(stdout.trim().to_owned())
}

impl Postgres {
    /// The database in `data`.
    pub fn at(data: &Path) -> Result<Self> {
        Self::with_sockets(data, data.with_extension("sockets"))
    }

    /// With its socket and log elsewhere.
    pub fn with_sockets(data: &Path, sockets: PathBuf) -> Result<Self> {
        let number = std::process::id() * 64 + NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        fs::create_dir_all(&sockets)?;
        let user = user()?;
        std::os::unix::fs::chown(&sockets, Some(user.0), Some(user.1))?;
        let port = (10_000 + number % 50_000).to_string();
        let postmaster = Mutex::default();
        Ok(Self { data: data.to_owned(), sockets, port, postmaster })
    }

    pub fn init(data: &Path) -> Result<Self> {
        fs::create_dir(data)?;
        let user = user()?;
        std::os::unix::fs::chown(data, Some(user.0), Some(user.1))?;
        let mut initdb = as_user("initdb");
        initdb.args(["--no-sync", "-k", "-A", "trust", "-D"]).arg(data);
        done(initdb)?;
        Self::at(data)
    }

    pub fn start(&self) -> Result<()> {
        let mut start = as_user("pg_ctl");
        let sockets = self.sockets.display();
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories={sockets} -p {} -c max_wal_size=256MB \
             -c checkpoint_timeout=30s -c shared_buffers=32MB -c bgwriter_delay=20ms -c autovacuum_naptime=1s",
            self.port
        );
        let log = self.sockets.join("log");
        start.args(["-w", "-t", "120", "-o", &options, "-l"]).arg(&log).arg("-D").arg(&self.data);
        // It would hold our pipes open.
        start.arg("start").stdout(Stdio::null()).stderr(Stdio::null());
        let status = start.status()?;
        ensure!(status.success(), "{status}\n{}", self.log());
        let pid = fs::read_to_string(self.data.join("postmaster.pid"))?;
        *self.postmaster.lock().unwrap() = pid.lines().next().map(ToOwned::to_owned);
        Ok(())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.sockets.join("log")).unwrap_or_default()
    }

    pub fn stop(&self, how: &str) -> Result<()> {
        let mut stop = as_user("pg_ctl");
        stop.args(["-w", "-t", "120", "-m", how, "stop", "-D"]).arg(&self.data);
        done(stop)?;
        self.postmaster.lock().unwrap().take();
        Ok(())
    }

    fn client(&self, name: &str) -> Command {
        let mut client = as_user(name);
        client.arg("-h").arg(&self.sockets).args(["-p", &self.port]);
        client
    }

    pub fn query(&self, sql: &str) -> Result<String> {
        let mut psql = self.client("psql");
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", sql]);
        done(psql)
    }

    pub fn bench(&self, args: &[&str]) -> Result<String> {
        let mut pgbench = self.client("pgbench");
        pgbench.args(args).arg("postgres");
        done(pgbench)
    }

    /// pgbench, until it is stopped or fails; each line of its output is a commit that was acknowledged.
    pub fn bench_behind(&self, args: &[&str]) -> Result<Child> {
        let mut pgbench = self.client("pgbench");
        pgbench.args(args).arg("postgres").stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(pgbench.spawn()?)
    }

    /// Inserts numbers one after the other into `numbers`; each line of output is one that was
    /// acknowledged. Ends when the database does.
    pub fn numbers(&self, from: u64) -> Result<Child> {
        let mut psql = self.client("psql");
        // `RETURNING` would speak before the commit.
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = psql.spawn()?;
        let mut stdin = child.stdin.take().expect("it is piped");
        std::thread::spawn(move || {
            let mut n = from;
            // Ends when psql does. A full pipe holds it back.
            while writeln!(stdin, "insert into numbers values ({n});\n\\echo {n}").is_ok() {
                n += 1;
            }
        });
        Ok(child)
    }

    /// The database dies with all of its processes, also when its files cannot be read any more.
    pub fn crash(&self) {
        let Some(pid) = self.postmaster.lock().unwrap().take() else { return };
        let kill = |signal: &str| {
            let status = Command::new("kill").args([signal, &pid]).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        let patience = Instant::now() + Duration::from_secs(20);
        kill("-QUIT");
        while kill("-0") && Instant::now() < patience {
            thread::sleep(Duration::from_millis(20));
        }
        kill("-KILL");
    }

    /// Every table and index is what it should be.
    pub fn check(&self) -> Result<()> {
        self.query("create extension if not exists amcheck")?;
        let mut amcheck = self.client("pg_amcheck");
        amcheck.args(["--heapallindexed", "--parent-check", "-a", "-j", "2"]);
        let said = done(amcheck)?;
        ensure!(said.is_empty(), "{said}");
        Ok(())
    }

    /// Checksums of all pages, of a stopped database.
    pub fn checksums(&self) -> Result<()> {
        let mut checksums = as_user("pg_checksums");
        checksums.arg("--check").arg("-D").arg(&self.data);
        done(checksums).map(drop)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
    }
}
