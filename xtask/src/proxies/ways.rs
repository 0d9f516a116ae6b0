//! The four ways to one server, and their processes.

use anyhow::{Context, Result, bail, ensure};
use sempre_lab::rig::{own, postgres_bin};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const BASE_PORT: u16 = 23_000;
const DEADLINE: Duration = Duration::from_secs(20);
/// Neither peer runs as root.
const USER: &str = "postgres";

/// One way.
pub struct Way {
    pub name: &'static str,
    /// Where clients connect.
    pub host: String,
    pub port: u16,
    /// The process in the middle; none: there is none.
    pub pid: Option<u32>,
}

/// All of them. Everything ends when it is dropped.
pub struct Ways {
    pub all: Vec<Way>,
    user: String,
    password: String,
    peers: Vec<Child>,
    demo: Child,
    // Dropped last.
    _folder: tempfile::TempDir,
}

impl Ways {
    pub fn start(binary: &Path, settings: &[String]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("sempre-ways").tempdir_in("/var/tmp")?;
        let root = folder.path();
        let (mut demo, ready) = demo(binary, root)?;
        let started = after_demo(binary, settings, root, (demo.id(), &ready));
        let (all, user, password, peers) = match started {
            Ok(started) => started,
            Err(error) => {
                stop(&mut demo);
                return Err(error);
            }
        };
        Ok(Self { all, user, password, peers, demo, _folder: folder })
    }

    /// A program of PostgreSQL that connects this way.
    pub fn client(&self, way: &Way, program: &str) -> Command {
        let own = postgres_bin().map(|bin| bin.join(program)).unwrap_or_default();
        let mut command = Command::new(if own.exists() { own } else { program.into() });
        command
            .env("PGHOST", &way.host)
            .env("PGPORT", way.port.to_string())
            .env("PGUSER", &self.user)
            .env("PGPASSWORD", &self.password)
            .env("PGDATABASE", &self.user)
            .env("PGSSLMODE", "disable")
            .stdin(Stdio::null());
        command
    }

    /// A connection string of this way.
    pub fn dsn(&self, way: &Way) -> String {
        format!(
            "host={} port={} user={} password={} dbname={}",
            way.host, way.port, self.user, self.password, self.user
        )
    }

    pub fn psql(&self, way: &Way, statement: &str) -> Result<()> {
        let mut command = self.client(way, "psql");
        output(command.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-c", statement]))
            .map(drop)
    }

    pub fn pgbench_init(&self) -> Result<()> {
        output(self.client(&self.all[0], "pgbench").args(["-i", "-q", "-s", "10"])).map(drop)
    }
}

impl Drop for Ways {
    fn drop(&mut self) {
        self.peers.iter_mut().for_each(stop);
        stop(&mut self.demo);
    }
}

/// Asks to end, waits, and ends by force.
fn stop(child: &mut Child) {
    let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    let ends = Instant::now() + DEADLINE;
    while Instant::now() < ends {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        sleep(Duration::from_millis(50));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// What it printed on standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?}: {error}");
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn demo(binary: &Path, root: &Path) -> Result<(Child, Value)> {
    let mut child = Command::new(binary)
        .args(["demo", "--json", "--members", "1", "--base-port", &BASE_PORT.to_string(), "--dir"])
        .arg(root.join("demo"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start {}", binary.display()))?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("no output")?;
    let read = BufReader::new(stdout).read_line(&mut line);
    match (read, serde_json::from_str::<Value>(&line)) {
        (Ok(_), Ok(ready)) => Ok((child, ready)),
        _ => {
            stop(&mut child);
            bail!("the demo did not start; it says why above")
        }
    }
}

type Started = (Vec<Way>, String, String, Vec<Child>);

fn after_demo(
    binary: &Path,
    settings: &[String],
    root: &Path,
    (demo, ready): (u32, &Value),
) -> Result<Started> {
    let config = ready["config"].as_str().context("no config")?;
    for setting in settings {
        output(Command::new(binary).args(["--config", config, "config", "set", setting]))?;
    }
    let dsn = ready["read_write"].as_str().context("no read_write")?;
    let (user, password, host, port) = parts(dsn).context("an odd DSN")?;
    let member = &ready["members"][0];
    let database = u16::try_from(member["database_port"].as_u64().context("no database_port")?)?;
    let mut all = vec![
        Way { name: "direct", host: host.clone(), port: database, pid: None },
        // The demo itself routes, as `sempre route run` does.
        Way { name: "sempre", host: host.clone(), port, pid: Some(demo) },
    ];
    let mut peers = Vec::new();
    let server = Server { host: &host, port: database, user: &user, password: &password };
    for (name, start) in [("haproxy", haproxy as Start), ("pgbouncer", pgbouncer)] {
        let port = free_port()?;
        let Some(mut command) = start(root, &server, port)? else {
            eprintln!("{name} is not installed: left out");
            continue;
        };
        let child = command.stdin(Stdio::null()).spawn().with_context(|| name.to_owned())?;
        all.push(Way { name, host: "127.0.0.1".into(), port, pid: Some(child.id()) });
        peers.push(child);
        let ends = Instant::now() + DEADLINE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > ends {
                peers.iter_mut().for_each(stop);
                bail!("{name} does not listen");
            }
            sleep(Duration::from_millis(50));
        }
    }
    Ok((all, user, password, peers))
}

/// User, password, host and port of `postgresql://user:password@host:port/database`.
fn parts(dsn: &str) -> Option<(String, String, String, u16)> {
    let (user, rest) = dsn.strip_prefix("postgresql://")?.split_once(':')?;
    let (password, rest) = rest.split_once('@')?;
    let (host, port) = rest.split_once('/')?.0.split_once(':')?;
    Some((user.into(), password.into(), host.into(), port.parse().ok()?))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

struct Server<'a> {
    host: &'a str,
    port: u16,
    user: &'a str,
    password: &'a str,
}

type Start = fn(&Path, &Server, u16) -> Result<Option<Command>>;

fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin".into(), "/sbin".into()];
    std::env::split_paths(&path).chain(more).map(|folder| folder.join(name)).find(|f| f.exists())
}

/// A single process with one thread, as on a machine it shares with the database.
fn haproxy(root: &Path, server: &Server, port: u16) -> Result<Option<Command>> {
    let Some(program) = installed("haproxy") else { return Ok(None) };
    let file = root.join("haproxy.cfg");
    fs::write(
        &file,
        format!(
            "global\n  maxconn 8000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 10m\n  \
             timeout server 10m\nlisten rw\n  bind 127.0.0.1:{port}\n  server s {}:{}\n",
            server.host, server.port
        ),
    )?;
    let mut command = Command::new(program);
    command.arg("-f").arg(file);
    Ok(Some(command))
}

fn pgbouncer(root: &Path, server: &Server, port: u16) -> Result<Option<Command>> {
    let Some(program) = installed("pgbouncer") else { return Ok(None) };
    let folder = root.join("pgbouncer");
    fs::create_dir(&folder)?;
    let Server { host, port: server_port, user, password } = server;
    fs::write(folder.join("users.txt"), format!("\"{user}\" \"{password}\"\n"))?;
    let file = folder.join("pgbouncer.ini");
    fs::write(
        &file,
        format!(
            "[databases]\n* = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\n\
             pool_mode = session\nmax_client_conn = 8000\ndefault_pool_size = 40\n\
             log_connections = 0\nlog_disconnections = 0\nignore_startup_parameters = extra_float_digits\n",
            folder.join("users.txt").display()
        ),
    )?;
    own(&folder, USER)?;
    fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut command = Command::new(program);
    command.arg("-q").arg("-u").arg(USER).arg(file);
    Ok(Some(command))
}
