//! Two real, independent PostgreSQL servers ("old" and "new"), and a router in front of them.

#![allow(dead_code)] // each test file uses its part

use sempre_model::{Generation, MemberId};
use sempre_route::{
    Limits, Mode, ProxySettings, RouteStats, Router, Standby, Style, Table, Target, Verifier,
};
use std::{
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::watch};

/// How long a condition may take before a test gives up. Generous: machines have slow moments.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn bin() -> PathBuf {
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

/// PostgreSQL refuses root: as root, its programs run as the system user `postgres`.
fn command(program: &str) -> Command {
    let program = bin().join(program);
    let mut command = if nix_is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/").env("LC_ALL", "C");
    command
}

fn nix_is_root() -> bool {
    let out = Command::new("id").arg("-u").output().expect("id runs");
    out.stdout.starts_with(b"0")
}

fn own(path: &Path) {
    if nix_is_root() {
        let status = Command::new("chown").arg("-R").arg("postgres:postgres").arg(path).status();
        assert!(status.unwrap().success());
    }
}

/// A PostgreSQL server. Stopped and removed when dropped.
pub struct Server {
    pub name: &'static str,
    pub port: u16,
    folder: tempfile::TempDir,
    process: Mutex<Option<Child>>,
}

impl Server {
    pub fn new(name: &'static str) -> Self {
        let folder = tempfile::Builder::new().prefix("sempre-route-").tempdir().unwrap();
        own(folder.path());
        let data = folder.path().join("data");
        let out = command("initdb")
            .args(["--no-sync", "-A", "trust", "-U", "postgres", "--no-instructions", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        for (file, text) in
            [("server.crt", made.cert.pem()), ("server.key", made.signing_key.serialize_pem())]
        {
            let file = data.join(file);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
            own(&file);
        }
        let server = Self { name, port: free_port(), folder, process: Mutex::new(None) };
        server.start();
        server
    }

    /// A streaming standby of `primary`.
    pub fn standby(name: &'static str, primary: &Server) -> Self {
        let folder = tempfile::Builder::new().prefix("sempre-route-").tempdir().unwrap();
        own(folder.path());
        let out = command("pg_basebackup")
            .args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-h", "127.0.0.1"])
            .args(["-U", "postgres", "-p", &primary.port.to_string(), "-D"])
            .arg(folder.path().join("data"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        let server = Self { name, port: free_port(), folder, process: Mutex::new(None) };
        server.start();
        server
    }

    pub fn start(&self) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let child = command("postgres")
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-p", &self.port.to_string(), "-c", &format!("cluster_name={}", self.name)])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", "fsync=off", "-c", "ssl=on", "-c", "max_connections=60"])
            .args(["-c", "shared_buffers=16MB", "-c", "autovacuum=off"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.process.lock().unwrap() = Some(child);
        let start = Instant::now();
        let mut ready = command("pg_isready");
        ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        while !ready.status().unwrap().success() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "{} does not start: {log}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Replaces a file in the data directory.
    pub fn write(&self, file: &str, text: &str) {
        let file = self.folder.path().join("data").join(file);
        std::fs::write(&file, text).unwrap();
        own(&file);
    }

    /// SIGQUIT: an immediate shutdown; SIGKILL would leave children of the postmaster behind.
    pub fn signal(&self, signal: &str) {
        let mut process = self.process.lock().unwrap();
        let Some(mut child) = process.take() else { return };
        let pid = child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success());
        child.wait().unwrap();
    }

    pub fn target(&self) -> Target {
        Target {
            member: MemberId::new(self.name).unwrap(),
            hosts: vec!["127.0.0.1".into()],
            port: self.port,
            rest_port: None,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("-QUIT");
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Two servers.
pub struct Pair {
    pub old: Server,
    pub new: Server,
}

static PAIR: Mutex<Weak<Pair>> = Mutex::new(Weak::new());

/// The pair that all tests running at the moment share; the last one removes it.
pub fn pair() -> Arc<Pair> {
    let mut shared = PAIR.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(pair) = shared.upgrade() {
        return pair;
    }
    let new = std::thread::spawn(|| Server::new("new"));
    let pair = Arc::new(Pair { old: Server::new("old"), new: new.join().unwrap() });
    *shared = Arc::downgrade(&pair);
    pair
}

/// Says yes while it is told to.
pub struct Switch(pub AtomicBool);

#[async_trait::async_trait]
impl Verifier for Switch {
    async fn verify(&self, _: &MemberId, _: Generation) -> bool {
        self.0.load(SeqCst)
    }
}

/// A router whose table the test writes.
pub struct Routed {
    pub router: Router,
    pub table: watch::Sender<Arc<Table>>,
    pub verifier: Arc<Switch>,
    pub address: SocketAddr,
}

impl Routed {
    pub fn start(mode: Mode, table: Table) -> Self {
        Self::start_in(Style::Pass, mode, table)
    }

    /// A router that carries sessions.
    pub fn proxy(table: Table) -> Self {
        Self::start_in(Style::Proxy(ProxySettings::default()), Mode::ReadWrite, table)
    }

    pub fn start_in(style: Style, mode: Mode, table: Table) -> Self {
        let (table, seen) = watch::channel(Arc::new(table));
        let verifier = Arc::new(Switch(AtomicBool::new(true)));
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let router = Router::start_in(style, listen, mode, seen, verifier.clone()).unwrap();
        let address = router.addresses()[0];
        Self { router, table, verifier, address }
    }

    pub fn change(&self, change: impl FnOnce(&mut Table)) {
        self.table.send_modify(|table| {
            let table = Arc::make_mut(table);
            change(table);
            table.version += 1;
        });
    }

    pub fn stats(&self) -> RouteStats {
        self.router.stats()
    }

    /// A connection string without TLS.
    pub fn plain(&self) -> String {
        dsn(self.address, "disable")
    }
}

pub fn dsn(address: SocketAddr, sslmode: &str) -> String {
    format!(
        "host={} port={} user=postgres dbname=postgres sslmode={sslmode}",
        address.ip(),
        address.port()
    )
}

/// A table of `generation` whose primary is `primary`.
pub fn table(generation: u64, primary: Option<Target>) -> Table {
    Table {
        version: 1,
        generation: Generation(generation),
        cut_below: Generation(generation),
        primary,
        why_no_primary: "a standby is being promoted".into(),
        limits: Limits { hold_timeout_ms: 60_000, client_tls: true, ..Limits::default() },
        ..Table::default()
    }
}

pub fn standby(server: &Server, lag_bytes: u64) -> Standby {
    Standby { target: server.target(), lag_bytes, follows: true }
}

/// Connects with tokio-postgres, without TLS.
pub async fn connect(
    dsn: &str,
) -> Result<
    (tokio_postgres::Client, tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>),
    tokio_postgres::Error,
> {
    let (client, connection) = tokio_postgres::connect(dsn, tokio_postgres::NoTls).await?;
    Ok((client, tokio::spawn(connection)))
}

/// Which server this session is on. (A simple query: an extended one closes its statement later,
/// and an error that comes before that was answered would count as the answer.)
pub async fn server_of(client: &tokio_postgres::Client) -> String {
    simple(client, "show cluster_name").await
}

/// The one value that a simple query answers.
pub async fn simple(client: &tokio_postgres::Client, sql: &str) -> String {
    try_simple(client, sql).await.unwrap()
}

/// Like [`simple`], where an error is an answer, too.
async fn try_simple(
    client: &tokio_postgres::Client,
    sql: &str,
) -> Result<String, tokio_postgres::Error> {
    for message in client.simple_query(sql).await? {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            return Ok(row.get(0).unwrap().to_owned());
        }
    }
    panic!("{sql} answers no row");
}

/// Waits until `server` runs exactly this statement.
pub async fn until_running(server: &Server, sql: &str) {
    let address = SocketAddr::from(([127, 0, 0, 1], server.port));
    let (client, _connection) = connect(&dsn(address, "disable")).await.unwrap();
    let count = "select count(*) from pg_stat_activity where query = $1 and state = 'active'";
    let start = Instant::now();
    while client.query_one(count, &[&sql]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {sql} to run");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs psql.
pub async fn psql(dsn: &str, sql: &str) -> Output {
    let mut command = Command::new(bin().join("psql"));
    command.args(["-XAtqw", "-v", "ON_ERROR_STOP=1", "-c", sql, dsn]).env("LC_ALL", "C");
    command.env_remove("PGSSLMODE").stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub fn stderr(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// StartupMessage of user `postgres`.
pub fn startup() -> Vec<u8> {
    let mut out = vec![0, 0, 0, 0, 0, 3, 0, 0];
    out.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
    let length = out.len() as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// A simple query.
pub fn query(sql: &str) -> Vec<u8> {
    let mut out = vec![b'Q'];
    out.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
    out.extend_from_slice(sql.as_bytes());
    out.push(0);
    out
}

/// All that comes until the router closes.
pub async fn all(stream: &mut TcpStream) -> String {
    let mut out = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut out)).await;
    read.expect("the router answers and closes").unwrap();
    String::from_utf8_lossy(&out).into_owned()
}

/// The primary is now `server`, in the next generation. Waits until a session has noticed (in a
/// cluster the old primary could not acknowledge a write any more).
pub fn moves_to(routed: &Routed, server: &Server) {
    let before = routed.stats().cut;
    routed.change(|table| {
        let generation = table.generation.next();
        table.generation = generation;
        table.cut_below = generation;
        table.primary = Some(server.target());
    });
    let start = Instant::now();
    while routed.stats().cut == before {
        assert!(start.elapsed() < PATIENCE, "no session was cut");
        std::thread::yield_now();
    }
}

/// Connects to a server itself.
pub async fn direct(server: &Server) -> tokio_postgres::Client {
    let address = SocketAddr::from(([127, 0, 0, 1], server.port));
    connect(&dsn(address, "disable")).await.unwrap().0
}

/// Runs `sql` until it answers `want`. (A standby that is behind answers with an error where it
/// has not seen the table made.)
pub async fn until_answers(client: &tokio_postgres::Client, sql: &str, want: &str) {
    let start = Instant::now();
    loop {
        let got = try_simple(client, sql).await;
        if got.as_ref().is_ok_and(|got| got == want) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{sql} answers {got:?}, not {want}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
