//! Servers for tests: made from one template, on ports of their own, ended with the test.

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User, geteuid, setgid, setgroups, setuid};
use sempre_model::{MemberId, record::Secrets};
use sempre_net::{Authority, Identity, MEMBER_LIFETIME};
use sempre_postgres::{
    Base, Encryption, Installation, Instance, Layout, Session, Settings, Upstream,
};
use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{LazyLock, Once, OnceLock},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Nothing here takes nearly so long, unless it is broken.
const WITHIN: Duration = Duration::from_secs(30);

/// PostgreSQL refuses to run as root: become the system user `postgres`, all threads of us.
pub fn become_ordinary() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if geteuid() != Uid::from_raw(0) {
            return;
        }
        let user = User::from_name("postgres").unwrap().expect("a system user `postgres`");
        setgroups(&[user.gid]).unwrap();
        setgid(user.gid).unwrap();
        setuid(user.uid).unwrap();
        // The folder tests start in may be closed to that user.
        std::env::set_current_dir("/").unwrap();
    });
}

/// A folder for one test.
pub fn folder() -> TempDir {
    become_ordinary();
    tempfile::tempdir().unwrap()
}

pub fn secrets() -> Secrets {
    Secrets { admin: "adm'in:1".into(), replication: "repl\\1:x".into(), rest: "rest".into() }
}

pub fn member(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

/// The authority of the tests' cluster.
pub fn authority() -> &'static Authority {
    static AUTHORITY: LazyLock<Authority> =
        LazyLock::new(|| Authority::new("tests", "0123456789abcdef").unwrap());
    &AUTHORITY
}

/// A member's key and certificate.
pub fn identity(authority: &Authority, name: &str, lifetime: Duration) -> Identity {
    let addresses = ["127.0.0.1", "localhost"].map(String::from);
    Identity::issue_for(authority, &member(name), &addresses, lifetime).unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An instance below `root`, without any files yet.
pub fn instance(root: &Path, name: &str) -> Instance {
    become_ordinary();
    let root = root.join(name);
    fs::create_dir_all(&root).unwrap();
    Instance {
        installation: Installation::find(None, None).unwrap(),
        layout: Layout {
            data_dir: root.join("data"),
            config_dir: root.join("config"),
            run_dir: root.join("run"),
            salvage_dir: root.join("salvage"),
            log_file: root.join("postgresql.log"),
            tls_dir: root.join("tls"),
        },
        base: Base::default(),
        port: free_port(),
        listen_addresses: vec!["127.0.0.1".into()],
        socket_dirs: Vec::new(),
        me: member(name),
    }
}

/// A new cluster, made once. Also tries what an interrupted one leaves behind.
async fn template() -> &'static Path {
    static LOCK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
    let _held = LOCK.lock().await;
    if TEMPLATE.get().is_none() {
        become_ordinary();
        let dir = tempfile::tempdir().unwrap();
        let instance = instance(dir.path(), "template");
        let secrets = secrets();
        let init = instance.init_db(&secrets);
        tokio::time::timeout(Duration::from_millis(300), init).await.unwrap_err();
        assert_eq!(instance.inspect(), sempre_postgres::DataDir::Missing);
        instance.init_db(&secrets).await.unwrap();
        let _ = TEMPLATE.set(dir);
        // Statics are not dropped.
        extern "C" fn remove() {
            if let Some(dir) = TEMPLATE.get() {
                let _ = fs::remove_dir_all(dir.path());
            }
        }
        unsafe { nix::libc::atexit(remove) };
    }
    TEMPLATE.get().unwrap().path()
}

/// One server of a test.
pub struct Server {
    pub instance: Instance,
    /// What it shows and asks for; what others expect of it.
    pub encryption: Encryption,
    process: Option<Child>,
}

impl Server {
    /// Without data.
    pub fn empty(root: &Path, name: &str) -> Self {
        let instance = instance(root, name);
        identity(authority(), name, MEMBER_LIFETIME).save(&instance.layout.tls_dir).unwrap();
        Self { instance, encryption: Encryption::Mutual, process: None }
    }

    /// With a new cluster, stopped.
    pub async fn new(root: &Path, name: &str) -> Self {
        let server = Self::empty(root, name);
        let from = template().await.join("template/data");
        let status = Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(&server.instance.layout.data_dir)
            .status()
            .unwrap();
        assert!(status.success());
        server
    }

    pub fn primary_settings(&self) -> Settings {
        let mut settings = Settings::primary();
        settings.parameters.insert("shared_buffers".into(), "8MB".into());
        settings.parameters.insert("max_connections".into(), "20".into());
        settings.admitted = true;
        settings.encryption = self.encryption;
        settings
    }

    pub fn standby_settings(&self, of: Option<&Server>) -> Settings {
        Settings {
            role: sempre_postgres::ServerRole::Standby,
            upstream: of.map(Server::as_upstream),
            ..self.primary_settings()
        }
    }

    pub fn as_upstream(&self) -> Upstream {
        Upstream {
            member: self.instance.me.clone(),
            // The first one does not answer: the second is another network's.
            hosts: vec!["127.0.0.1".into(), "localhost".into()],
            port: self.instance.port,
            password: secrets().replication,
            encryption: self.encryption,
        }
    }

    /// Starts the process, and waits for nothing.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none());
        let start = self.instance.start_command();
        let log =
            File::options().append(true).create(true).open(&self.instance.layout.log_file).unwrap();
        let process = Command::new(start.program)
            .args(start.args)
            .envs(start.env)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    pub async fn start(&mut self, settings: &Settings) -> Result<Session> {
        let standby = settings.role == sempre_postgres::ServerRole::Standby;
        self.instance.prepare_role(standby)?;
        self.instance.write_config(settings).await?;
        self.spawn();
        self.session().await
    }

    /// As soon as it answers.
    pub async fn session(&mut self) -> Result<Session> {
        let until = Instant::now() + WITHIN;
        loop {
            match self.instance.session(&secrets().admin).await {
                Ok(session) => {
                    session.execute("SET search_path = public").await?;
                    return Ok(session);
                }
                Err(error) if Instant::now() > until => {
                    bail!("{error}\n{}", self.instance.tail_log(20).join("\n"))
                }
                Err(_) => {}
            }
            if let Some(status) = self.process.as_mut().and_then(|p| p.try_wait().unwrap()) {
                bail!("it ended: {status}\n{}", self.instance.tail_log(20).join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn reconfigure(&self, session: &Session, settings: &Settings) -> Result<()> {
        self.instance.write_config(settings).await?;
        Ok(session.reload().await?)
    }

    pub fn signal(&mut self, signal: nix::sys::signal::Signal) {
        let Some(mut process) = self.process.take() else { return };
        let pid = nix::unistd::Pid::from_raw(process.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(pid, signal);
        process.wait().unwrap();
    }

    /// Stops it in order.
    pub fn stop(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGINT);
    }

    /// Its processes end at once; nothing is written any more.
    pub fn crash(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGQUIT);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.crash();
    }
}

/// A client's own connection.
pub async fn client(server: &Server, user: &str) -> Result<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(server.instance.port).user(user).password("app");
    config.dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Waits until a condition holds.
pub async fn until<F: Future<Output = Result<bool>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> Result<()> {
    let end = Instant::now() + WITHIN;
    loop {
        let last = condition().await;
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > end {
            last.context(format!("waiting until {what}"))?;
            bail!("it never came that {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a standby has all that a primary has flushed by now.
pub async fn caught_up(primary: &Session, standby: &Session) -> Result<()> {
    let wanted = primary.flush_lsn().await?;
    until("the standby has caught up", async || Ok(standby.observe().await?.replay_lsn >= wanted))
        .await
}
