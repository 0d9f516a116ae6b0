//! A server that recovers in a restored directory, for itself: nobody else can reach it.

use crate::{Error, Result, choose::Goal, clock::unix_ms, instant::Listen};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sempre_model::{MemberId, Timeline};
use sempre_postgres::{Base, Installation, Instance, Layout, Session};
use std::{
    fmt::Write as _,
    fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// How often a server that recovers is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How often a server that has all there is asks for more, ms.
const ASK_AGAIN_MS: u64 = 20;
/// Lines of the server's log that are kept for an error.
const LOG_LINES: usize = 12;

/// A server of a restored directory.
pub(crate) struct Replay {
    instance: Instance,
    process: Child,
    work: PathBuf,
}

impl Replay {
    /// The instance that recovers `data_dir`, with what it needs in `work`.
    pub(crate) fn instance(installation: &Installation, data_dir: &Path, work: &Path) -> Instance {
        Instance {
            installation: installation.clone(),
            layout: Layout {
                data_dir: data_dir.to_owned(),
                config_dir: work.to_owned(),
                run_dir: work.to_owned(),
                salvage_dir: work.join("salvage"),
                log_file: work.join("postgresql.log"),
                tls_dir: work.to_owned(),
            },
            base: Base::default(),
            port: 5432,
            listen_addresses: Vec::new(),
            socket_dirs: Vec::new(),
            me: MemberId::new("restore").expect("a name"),
        }
    }

    /// Starts it. `restore_command` brings WAL. Once it has recovered it takes clients by `listen`, as its
    /// own `pg_hba.conf` says; without, nobody but us.
    pub(crate) fn start(
        installation: &Installation,
        data_dir: &Path,
        work: &Path,
        goal: &Goal,
        restore_command: &str,
        listen: Option<&Listen>,
    ) -> Result<Self> {
        let signal = data_dir.join("recovery.signal");
        fs::write(&signal, "").map_err(Error::io("write", &signal))?;
        Self::configured(installation, data_dir, work, goal, restore_command, listen)
    }

    /// Starts it as a standby of nobody: it takes all the WAL that `restore_command` brings, along the
    /// timeline, and waits for more.
    pub(crate) fn follow(
        installation: &Installation,
        data_dir: &Path,
        work: &Path,
        timeline: Timeline,
        restore_command: &str,
    ) -> Result<Self> {
        let signal = data_dir.join("standby.signal");
        fs::write(&signal, "").map_err(Error::io("write", &signal))?;
        let more = format!(
            "recovery_target_timeline = '{timeline}'\nwal_retrieve_retry_interval = {ASK_AGAIN_MS}\n"
        );
        let (goal, hba) = (&Goal::Latest, "local all all reject\n");
        Self::written(installation, data_dir, work, goal, restore_command, (hba, &more), 5432)
    }

    /// Ends by itself only when something is wrong.
    pub(crate) async fn fails(&mut self) -> Error {
        loop {
            match self.process.try_wait() {
                Ok(None) => tokio::time::sleep(POLL).await,
                Ok(Some(status)) => return self.failed(format!("the server ended ({status})")),
                Err(error) => return self.failed(error.to_string()),
            }
        }
    }

    /// Starts it again, recovered: there is nothing to recover but from a crash.
    pub(crate) fn run(
        installation: &Installation,
        data_dir: &Path,
        work: &Path,
        listen: Option<&Listen>,
    ) -> Result<Self> {
        Self::configured(installation, data_dir, work, &Goal::Latest, "false", listen)
    }

    fn configured(
        installation: &Installation,
        data_dir: &Path,
        work: &Path,
        goal: &Goal,
        restore_command: &str,
        listen: Option<&Listen>,
    ) -> Result<Self> {
        let (mut hba, mut more) = ("local all all trust\n".to_owned(), String::new());
        let mut port = 5432;
        if let Some(listen) = listen {
            port = listen.port;
            let clients = fs::read_to_string(data_dir.join("pg_hba.conf")).unwrap_or_default();
            hba = format!("local all {} trust\n{clients}", sempre_postgres::ADMIN_ROLE);
            more = format!("listen_addresses = '{}'\n", listen.addresses.replace('\'', "''"));
        }
        let words = (hba.as_str(), more.as_str());
        Self::written(installation, data_dir, work, goal, restore_command, words, port)
    }

    /// Writes its configuration, with these lines of `pg_hba.conf` and of settings, and starts it.
    fn written(
        installation: &Installation,
        data_dir: &Path,
        work: &Path,
        goal: &Goal,
        restore_command: &str,
        (hba, more): (&str, &str),
        port: u16,
    ) -> Result<Self> {
        let instance = Instance { port, ..Self::instance(installation, data_dir, work) };
        let write =
            |path: PathBuf, text: &str| fs::write(&path, text).map_err(Error::io("write", &path));
        write(instance.hba_file(), hba)?;
        let text = configuration(&instance, goal, restore_command) + more;
        write(instance.config_file(), &text)?;
        let process = spawn(&instance)?;
        Ok(Self { instance, process, work: work.to_owned() })
    }

    /// Leaves it running: it is its user's from now on.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    /// Has it ended by itself?
    pub(crate) fn ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits until it has recovered and takes writes.
    pub(crate) async fn recovered(&mut self) -> Result<Session> {
        loop {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(self.failed(format!("the server ended ({status})")));
            }
            if let Ok(session) = self.instance.session("").await
                && session.is_primary().await.unwrap_or(false)
            {
                return Ok(session);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops it in order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        signal(&self.process, Signal::SIGINT);
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.failed(format!("the server ended ({status})"))),
                Ok(None) => tokio::time::sleep(POLL).await,
                Err(error) => return Err(self.failed(error.to_string())),
            }
        }
    }

    /// What the server said last.
    fn failed(&self, why: String) -> Error {
        let log = fs::read_to_string(self.work.join("postgresql.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        Error::Replay { why, log: last }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            signal(&self.process, Signal::SIGQUIT);
            let _ = self.process.wait();
        }
    }
}

fn signal(process: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(process.id()) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn spawn(instance: &Instance) -> Result<Child> {
    let start = instance.start_command();
    let file = &instance.layout.log_file;
    let log = File::options().append(true).create(true).open(file);
    let log = log.map_err(Error::io("open", file))?;
    let mut command = Command::new(&start.program);
    command.args(start.args).envs(start.env);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().map_err(Error::io("start", &start.program))
}

fn configuration(instance: &Instance, goal: &Goal, restore_command: &str) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    let at = |path: &Path| quoted(&path.to_string_lossy());
    let mut text = String::new();
    // The user's own settings first: libraries that replay needs are named there.
    let own = instance.layout.data_dir.join("postgresql.conf");
    let _ = writeln!(text, "include_if_exists = {}", at(&own));
    let mut set = |name: &str, value: String| {
        let _ = writeln!(text, "{name} = {value}");
    };
    set("listen_addresses", "''".into());
    set("port", instance.port.to_string());
    set("unix_socket_directories", at(&instance.layout.run_dir));
    set("hba_file", at(&instance.hba_file()));
    set("ident_file", at(&instance.layout.config_dir.join("pg_ident.conf")));
    set("external_pid_file", "''".into());
    set("logging_collector", "off".into());
    set("log_destination", "'stderr'".into());
    set("ssl", "off".into());
    set("archive_mode", "off".into());
    set("archive_cleanup_command", "''".into());
    set("synchronous_standby_names", "''".into());
    set("primary_conninfo", "''".into());
    // Nobody reads before it is done; and limits of the old server need not be matched then.
    set("hot_standby", "off".into());
    set("restore_command", quoted(restore_command));
    set("recovery_target_timeline", "'latest'".into());
    set("recovery_target_action", "'promote'".into());
    set("recovery_target_inclusive", "on".into());
    for name in ["", "_time", "_lsn", "_name", "_xid"] {
        set(&format!("recovery_target{name}"), "''".into());
    }
    match goal {
        Goal::Latest => {}
        Goal::Backup => set("recovery_target", "'immediate'".into()),
        Goal::Time(unix_ms) => set("recovery_target_time", quoted(&timestamp(*unix_ms))),
        Goal::Lsn(lsn) => set("recovery_target_lsn", quoted(&lsn.to_string())),
        Goal::Name(name) => set("recovery_target_name", quoted(name)),
        Goal::Transaction(id) => set("recovery_target_xid", quoted(&id.to_string())),
        Goal::BeforeTransaction(id) => {
            set("recovery_target_xid", quoted(&id.to_string()));
            set("recovery_target_inclusive", "off".into());
        }
    }
    text
}

fn timestamp(unix_ms: u64) -> String {
    let nanos = i128::from(unix_ms) * 1_000_000;
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(nanos);
    let format = time::macros::format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]+00"
    );
    at.ok().and_then(|at| at.format(format).ok()).unwrap_or_else(|| unix_ms.to_string())
}

/// A name for a folder of work beside `target`, which is on the same file system.
pub(crate) fn work_beside(target: &Path) -> PathBuf {
    let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    target.with_file_name(format!(".{name}.restore-{}", unix_ms() % 1_000_000))
}
