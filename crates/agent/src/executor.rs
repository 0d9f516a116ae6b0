//! Executes steps: the only place where the guard and PostgreSQL are told to do something.
//!
//! A step carries all choices; what is left here is how. Each ends within a bounded time, or when
//! the generation changes (the loop then drops it), so nothing in here leaves anything half done
//! that the next step would not put right.

mod fill;
mod jobs;
mod logical_slots;
mod recover;
mod rejoin;

use crate::{
    Config,
    looper::Event,
    member_dir::{Applied, MemberDir},
};
use anyhow::{Context, Result, bail};
use sempre_api::codes;
use sempre_decide::member::{DataDir, Step};
use sempre_guard::{GuardClient, GuardError, Lease, StartRequest};
use sempre_model::{Generation, Lsn, MemberId, Record, command::Change, record::Fenced};
use sempre_postgres::{
    self as postgres, Encryption, Installation, Instance, Layout, ServerRole, Session, Settings,
    Upstream,
};
use std::{
    collections::BTreeMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpSocket, sync::mpsc};

/// The guard answers a request within this time, or is stopped.
const GUARD_WITHIN: Duration = Duration::from_secs(5);
/// Lines of PostgreSQL's log shown when it does not start.
const LOG_LINES: usize = 5;

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// A step of the table.
    Step(Step),
    /// Make or adopt the first data directory.
    Bootstrap,
    /// Read the position of a fenced standby.
    ReadFence,
    /// The end of WAL after a start or promotion.
    SampleRecovered,
    /// The flush position after a change of the sync set took effect.
    SampleSync,
    /// Replication slots, and parameters that wait for a restart.
    HouseKeeping { positions: BTreeMap<MemberId, Lsn> },
    /// Look at the data directory.
    Inspect,
    /// End a walsender whose network is lost.
    CutWalsender { member: MemberId, address: String },
}

impl Job {
    /// A word for it, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Job::Step(Step::Fence { .. }) => "fence",
            Job::Step(Step::StartPrimary { .. }) => "start as primary",
            Job::Step(Step::StartStandby { .. }) => "start as standby",
            Job::Step(Step::Follow { .. }) => "follow",
            Job::Step(Step::Promote { .. }) => "promote",
            Job::Step(Step::SetSync { .. }) => "set sync set",
            Job::Step(Step::Admit(_)) => "admit clients",
            Job::Step(Step::Reload) => "reload",
            Job::Step(Step::Checkpoint) => "checkpoint",
            Job::Step(Step::HandOver) => "hand over",
            Job::Step(Step::Rejoin { .. }) => "rejoin",
            Job::Step(Step::Clone { .. }) => "clone",
            Job::Step(Step::Fill { .. }) => "fill",
            Job::Step(Step::TakeArchived { .. }) => "take archived WAL",
            Job::Step(Step::Recover { .. }) => "recover from backup",
            Job::Step(Step::Restart) => "restart",
            Job::Step(Step::Rest) => "start to be read",
            Job::Step(Step::EndRest) => "stop being read",
            Job::Bootstrap => "bootstrap",
            Job::ReadFence => "read fence",
            Job::SampleRecovered => "sample recovered position",
            Job::SampleSync => "sample sync position",
            Job::HouseKeeping { .. } => "housekeeping",
            Job::Inspect => "inspect",
            Job::CutWalsender { .. } => "cut walsender",
        }
    }

    /// Long jobs, as `status` shows them.
    pub fn busy(&self) -> Option<&'static str> {
        match self {
            Job::Step(Step::Rejoin { .. }) => Some("rejoining"),
            Job::Step(Step::Clone { .. }) => Some("cloning"),
            Job::Step(Step::Fill { .. }) => Some("restoring from a repository"),
            Job::Step(Step::Recover { .. }) => Some("restoring from backup"),
            Job::Step(Step::Restart) => Some("restarting"),
            Job::Bootstrap => Some("making the database"),
            _ => None,
        }
    }

    /// Is it dropped when the generation changes?
    pub fn ends_with_generation(&self) -> bool {
        !matches!(
            self,
            Job::Step(Step::HandOver | Step::Fence { .. }) | Job::Inspect | Job::Bootstrap
        )
    }

    /// Does its failure count as a failed start?
    pub fn is_attempt(&self) -> bool {
        matches!(
            self,
            Job::Step(
                Step::StartPrimary { .. }
                    | Step::StartStandby { .. }
                    | Step::Rejoin { .. }
                    | Step::Clone { .. }
                    | Step::Fill { .. }
                    | Step::TakeArchived { .. }
                    | Step::Recover { .. }
                    | Step::Promote { .. }
            ) | Job::Bootstrap
        )
    }
}

/// What came of a job.
#[derive(Default)]
pub struct Done {
    /// The configuration as it is now.
    pub applied: Option<Applied>,
    /// The data directory, its system identifier, and where it ended cleanly.
    pub data: Option<(DataDir, Option<u64>, Option<Lsn>)>,
    /// The standby is fenced.
    pub fenced: Option<Fenced>,
    /// Everything the record asks for is in the configuration, as of this change.
    pub settings_written: Option<u64>,
    /// The checkpoint before a hand-over is done.
    pub hand_over_ready: bool,
    /// The WAL fits the upstream's.
    pub checked: bool,
    /// Parameters that wait for a restart.
    pub pending_restart: Option<Vec<String>>,
    /// What is wrong with `pg_hba.conf`, if something is.
    pub hba_error: Option<Option<String>>,
    /// To be proposed.
    pub propose: Vec<Change>,
}

/// Executes.
pub struct Executor {
    pub(crate) config: Config,
    pub(crate) dir: MemberDir,
    pub(crate) guard: GuardClient,
    pub(crate) instance: Instance,
    record: RwLock<Arc<Record>>,
    upstream_host: Mutex<Option<String>>,
    running: AtomicBool,
    own_certificate: AtomicBool,
}

/// All that one job works with.
pub(crate) struct JobContext {
    pub executor: Arc<Executor>,
    pub record: Arc<Record>,
    pub applied: Applied,
    pub lease: Option<Lease>,
    pub hosts: BTreeMap<MemberId, Vec<String>>,
    pub settings_change: u64,
    pub events: mpsc::Sender<Event>,
}

impl Executor {
    /// Finds PostgreSQL (unless this is a witness) and knows where everything is.
    pub fn new(
        config: &Config,
        dir: &MemberDir,
        guard: GuardClient,
        record: Arc<Record>,
    ) -> Result<Self> {
        let installation = Installation::find(
            config.postgres.bin_dir.as_deref(),
            record.cluster.as_ref().and_then(|c| c.major_version),
        );
        let installation = match installation {
            Ok(found) => found,
            // A witness needs none.
            Err(_) if config.kind == sempre_model::MemberKind::Witness => {
                Installation { bin_dir: PathBuf::new(), major: 0 }
            }
            Err(error) => return Err(error.into()),
        };
        let instance = Instance {
            installation,
            layout: Layout {
                data_dir: dir.data(),
                config_dir: dir.root().join("postgres"),
                run_dir: dir.run(),
                salvage_dir: dir.salvage(),
                log_file: dir.log().join("postgresql.log"),
                tls_dir: dir.tls(),
            },
            base: postgres::Base {
                config_file: config.postgres.config_file.clone(),
                hba_file: config.postgres.hba_file.clone(),
                ident_file: None,
            },
            port: config.ports.database,
            listen_addresses: listen(config),
            socket_dirs: Vec::new(),
            me: config.name.clone(),
        };
        if config.kind == sempre_model::MemberKind::Data {
            instance.prepare_dirs()?;
        }
        Ok(Self {
            config: config.clone(),
            dir: dir.clone(),
            guard,
            instance,
            record: RwLock::new(record),
            upstream_host: Mutex::new(None),
            running: false.into(),
            own_certificate: false.into(),
        })
    }

    /// The newest record.
    pub fn set_record(&self, record: Arc<Record>) {
        *self.record.write().unwrap_or_else(|e| e.into_inner()) = record;
    }

    /// The newest record.
    pub fn record(&self) -> Arc<Record> {
        self.record.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Whether the guard has a database.
    pub fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::Release);
    }

    /// The upstream's address that stands first in the configuration.
    pub fn upstream_host(&self) -> Option<String> {
        self.upstream_host.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Whether the database shows a certificate of the administrator's, as last looked at.
    pub fn own_certificate(&self) -> bool {
        self.own_certificate.load(Ordering::Acquire)
    }

    /// Looks whether the server's own configuration turns TLS on: at the start, and when the data
    /// directory (which may hold that configuration) has become another one.
    pub async fn look_at_certificate(&self) {
        match self.instance.own_certificate().await {
            Ok(own) => self.own_certificate.store(own, Ordering::Release),
            Err(error) => tracing::warn!(
                %error,
                "it is not known whether the server has a certificate of its own; it gets the cluster's"
            ),
        }
    }

    /// PostgreSQL's own last words.
    pub fn log_tail(&self) -> String {
        self.instance.tail_log(LOG_LINES).join(" / ")
    }

    /// A job as a future that reports back to the loop.
    pub fn prepare(
        self: Arc<Self>,
        job: Job,
        applied: Applied,
        lease: Option<Lease>,
        hosts: BTreeMap<MemberId, Vec<String>>,
        settings_change: u64,
        events: mpsc::Sender<Event>,
    ) -> impl Future<Output = ()> + Send {
        let record = self.record();
        let context = JobContext {
            executor: self,
            record,
            applied,
            lease,
            hosts,
            settings_change,
            events: events.clone(),
        };
        async move {
            let result = context.execute(&job).await;
            let result = result.map(Box::new).map_err(|e| format!("{e:#}"));
            let _ = events.send(Event::Done { job, result }).await;
        }
    }

    /// Looks at the data directory: what is in it, its system identifier, where it ended cleanly.
    pub async fn inspect(&self) -> (DataDir, Option<u64>, Option<Lsn>) {
        let instance = self.instance.clone();
        let found = tokio::task::spawn_blocking(move || {
            let standby = instance.is_standby_prepared()
                || instance.layout.data_dir.join("backup_label").exists();
            (instance.inspect(), standby)
        })
        .await;
        let Ok((found, standby)) = found else { return (DataDir::Missing, None, None) };
        let cluster = self.record().cluster.as_ref().and_then(|c| c.system_identifier);
        match found {
            postgres::DataDir::Missing | postgres::DataDir::Empty => (DataDir::Missing, None, None),
            // An interrupted rewind has nothing left to keep: a fresh copy replaces it.
            postgres::DataDir::Foreign(postgres::Foreign::Unfinished) => {
                (DataDir::Missing, None, None)
            }
            postgres::DataDir::Foreign(why) => {
                let code = match why {
                    postgres::Foreign::Version { .. } => codes::WRONG_VERSION,
                    postgres::Foreign::Owner { .. } | postgres::Foreign::Permissions { .. } => {
                        codes::WRONG_OWNER
                    }
                    postgres::Foreign::NotData => codes::FOREIGN_DATA,
                    _ => codes::DATABASE_DOES_NOT_START,
                };
                let dir = self.instance.layout.data_dir.display();
                let why = format!("the data directory {dir} cannot be used: {why} ({code})");
                (DataDir::Unusable(why), None, None)
            }
            postgres::DataDir::Present(control) => {
                let identifier = control.system_identifier;
                if cluster.is_some_and(|known| known != identifier) {
                    let why = format!(
                        "the data directory {} belongs to another cluster: its system identifier is {identifier}, and this cluster's is {}; it is left untouched ({})",
                        self.instance.layout.data_dir.display(),
                        cluster.unwrap_or_default(),
                        codes::FOREIGN_DATA
                    );
                    return (DataDir::Unusable(why), Some(identifier), None);
                }
                // One that rests looks like a standby, and has a primary's WAL.
                let resting = self.dir.applied().resting;
                let was_primary = resting || !control.state.is_standby() && !standby;
                let clean = was_primary && !resting && control.state.is_clean();
                let clean_end = clean.then_some(control.checkpoint_lsn);
                (DataDir::Present { was_primary }, Some(identifier), clean_end)
            }
        }
    }

    /// Ends database and guard: for the demo and for `run --stop-database`.
    pub async fn shut_down(&self) {
        use sempre_guard::StopMode;
        let mut status = self.guard.status();
        if self.guard.stop(StopMode::Fast, GUARD_WITHIN).await.is_ok() {
            let gone = status.wait_for(|s| s.nothing_runs() || !s.connected);
            let _ = tokio::time::timeout(Duration::from_secs(10), gone).await;
        }
        let _ = self.guard.quit(true, GUARD_WITHIN).await;
    }

    /// A guard that does not answer cannot be relied on: it is ended, with its database, and a
    /// new one takes over.
    pub async fn replace_silent_guard<T>(&self, answer: Result<T, GuardError>) -> Result<T> {
        if let Err(GuardError::NoAnswer { .. }) = &answer {
            tracing::error!("the guard does not answer; it is replaced");
            GuardClient::kill_guard(self.guard.dir()).await?;
        }
        Ok(answer?)
    }

    /// The private connection to the running server.
    pub async fn session(&self) -> Result<Session> {
        let record = self.record();
        let cluster = record.cluster.as_ref().context("not initialised")?;
        Ok(self.instance.session(&cluster.secrets.admin).await?)
    }

    /// The same to another member's database, at one of these hosts.
    pub async fn session_at(&self, member: &MemberId, hosts: Vec<String>) -> Result<Session> {
        let record = self.record();
        let cluster = record.cluster.as_ref().context("not initialised")?;
        let known = record.member(member).context("it is no member")?;
        let upstream = Upstream {
            member: member.clone(),
            hosts,
            port: known.ports.database,
            password: cluster.secrets.replication.clone(),
            encryption: encryption_of(&record, known.own_certificate),
        };
        Ok(self.instance.remote_session(&upstream, &cluster.secrets.admin).await?)
    }
}

fn listen(config: &Config) -> Vec<String> {
    let mut list = config.addresses.clone();
    if !list.iter().any(|a| a == "127.0.0.1" || a == "localhost") {
        list.push("127.0.0.1".into());
    }
    list
}

/// The administrator's own certificate counts, be it of one member or of all.
pub(crate) fn encryption_of(record: &Record, own_certificate: bool) -> Encryption {
    let is_set = |name: &str| record.parameters.contains_key(name);
    if own_certificate || is_set("ssl_cert_file") || is_set("ssl_key_file") {
        Encryption::Own
    } else if is_set("ssl_ca_file") || is_set("ssl_crl_file") || is_set("ssl_crl_dir") {
        Encryption::ServerOnly
    } else {
        Encryption::Mutual
    }
}

impl JobContext {
    pub(crate) fn instance(&self) -> &Instance {
        &self.executor.instance
    }

    /// Where to find another member's database.
    pub(crate) fn upstream(&self, member: &MemberId) -> Result<Upstream> {
        let known = self.record.member(member).context("the upstream is no member")?;
        let cluster = self.record.cluster.as_ref().context("not initialised")?;
        let hosts = self
            .hosts
            .get(member)
            .cloned()
            .unwrap_or_else(|| known.paths.iter().map(|p| p.host.clone()).collect());
        Ok(Upstream {
            member: member.clone(),
            hosts,
            port: known.ports.database,
            password: cluster.secrets.replication.clone(),
            encryption: self.encryption(known),
        })
    }

    /// How another member's server is known, by what the record says of it.
    fn encryption(&self, member: &sempre_model::Member) -> Encryption {
        encryption_of(&self.record, member.own_certificate)
    }

    /// What this member's server shows and asks for.
    fn own_encryption(&self) -> Encryption {
        encryption_of(&self.record, self.executor.own_certificate())
    }

    /// Writes the configuration for a role; the caller reloads or starts.
    pub(crate) async fn configure(&mut self, role: ServerRole, next: Applied) -> Result<()> {
        let policy = &self.record.policy;
        let upstream = match (&next.upstream, role) {
            (Some(member), ServerRole::Standby) => Some(self.upstream(member)?),
            _ => None,
        };
        let mut order: Vec<_> = self.record.data_members().collect();
        order.sort_by_key(|m| (-m.tags.priority, m.name.clone()));
        let host = upstream.as_ref().and_then(|u| u.hosts.first().cloned());
        let settings = Settings {
            role,
            upstream,
            sync: next.sync.clone(),
            durability: policy.durability,
            sync_order: order.iter().map(|m| m.name.clone()).collect(),
            admitted: next.admitted || role == ServerRole::Standby,
            parameters: self.record.parameters.clone(),
            hba: self.record.hba.clone(),
            data_members: self.record.data_members().count(),
            slot_max_wal_bytes: policy.slot_max_wal_bytes,
            encryption: self.own_encryption(),
        };
        self.instance().write_config(&settings).await?;
        self.executor.dir.set_applied(&next)?;
        *self.executor.upstream_host.lock().unwrap_or_else(|e| e.into_inner()) = host;
        self.applied = next;
        Ok(())
    }

    pub(crate) async fn reload(&self) -> Result<()> {
        self.executor.guard.reload(GUARD_WITHIN).await?;
        Ok(())
    }

    /// PostgreSQL would start all the same if it could listen on one of its addresses, and
    /// nobody would find it on the others.
    fn refuse_taken_port(&self) -> Result<()> {
        let Instance { listen_addresses, port, .. } = self.instance();
        for host in listen_addresses {
            let Ok(ip) = host.parse::<IpAddr>() else { continue };
            let socket = if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            match socket.bind(SocketAddr::new(ip, *port)) {
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                    let code = codes::PORT_IN_USE;
                    bail!("PostgreSQL cannot listen on {ip}:{port}: {e} ({code})");
                }
                // One that is not there yet may come while it runs.
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) async fn start(&self, lease: Option<Lease>) -> Result<()> {
        self.refuse_taken_port()?;
        let command = self.instance().start_command();
        let request = StartRequest {
            program: command.program,
            args: command.args,
            env: command.env.into_iter().collect(),
            cwd: None,
            log_file: self.instance().layout.log_file.clone(),
            data_dir: self.instance().layout.data_dir.clone(),
            lease,
        };
        self.executor.guard.start(request, GUARD_WITHIN).await?;
        Ok(())
    }

    pub(crate) fn lease_for(&self, generation: Generation) -> Result<Lease> {
        self.lease.filter(|l| l.generation == generation).context("the lease is not held any more")
    }

    pub(crate) fn done(&self) -> Done {
        Done { applied: Some(self.applied.clone()), ..Done::default() }
    }
}

impl Executor {
    /// The private Unix socket of the server.
    pub fn socket(&self) -> PathBuf {
        self.dir.run().join(format!(".s.PGSQL.{}", self.config.ports.database))
    }
}
