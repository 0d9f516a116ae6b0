//! A cluster of `sempre`, as an operator sets it up: `init` on the first host, `token` and `join` for
//! the others, `run` on each, and `route run` beside the application.

use crate::{
    client::Target,
    disk::Disk,
    process::{self, Process},
    rig::{self, Base, DATABASE_PORT, REST_PORT, Rig},
    shell,
    topology::{APP, Net},
};
use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The system user members run as.
const USER: &str = "postgres";
/// The role applications of the lab use.
const ROLE: &str = "app";
const PASSWORD: &str = "lab";
/// The role by which routing reads password verifiers.
const READER: &str = "routing";
/// Where `sempre route run` listens on host `app`.
const ROUTE_PORT: u16 = 6432;
/// Enough for data, a fresh copy beside it, and WAL; sparse.
const DISK_BYTES: u64 = 4 << 30;
/// From `init` to the first primary, and from all `run` to all streaming.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// What a setting of PostgreSQL begins with.
const DATABASE_SETTING: &str = "postgresql.";
/// What a setting of the application's routing begins with.
const ROUTE_SETTING: &str = "route.";

/// How to set a cluster up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `sempre` binary. It is copied, so that building it meanwhile does no harm.
    pub binary: PathBuf,
    /// How many members.
    pub members: usize,
    /// Policy, as `key=value`; of PostgreSQL, `postgresql.key=value`; of `route run`, `route.flag=value`.
    pub settings: Vec<String>,
    /// Give each member a small file system of its own for its data.
    pub disks: bool,
}

/// A running cluster; everything goes when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    // Before `base`: its processes must be gone before its files are.
    base: Base,
    disks: BTreeMap<String, Disk>,
    binary: PathBuf,
    agents: BTreeMap<String, u32>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The disks are unmounted when the fields go, after this; nothing may be using them then.
        self.base.topology.kill_all();
        for disk in self.disks.values_mut() {
            disk.keep = self.base.keep;
        }
        self.disks.clear();
    }
}

impl Cluster {
    /// Forms a cluster and waits until it is whole. On an error its files stay, and the error says where.
    pub async fn start(options: &Options) -> Result<Self> {
        let mut base = Base::new(options.members)?;
        base.sync_standbys = sync_standbys(options);
        let binary = base.root.join("sempre");
        fs::copy(&options.binary, &binary)
            .with_context(|| format!("no sempre at {}", options.binary.display()))?;
        let mut cluster = Self { base, disks: BTreeMap::new(), binary, agents: BTreeMap::new() };
        match cluster.form(options).await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                cluster.base.keep = true;
                let logs = cluster.base.root.join("logs");
                let status = cluster.status();
                Err(error.context(format!("no cluster formed\n{status}\nlogs: {}", logs.display())))
            }
        }
    }

    async fn form(&mut self, options: &Options) -> Result<()> {
        let hosts = self.base.topology.hosts().to_vec();
        for host in &hosts {
            self.prepare(host, options.disks)?;
        }
        let (first, others) = hosts.split_first().context("a cluster has a first member")?;
        let mut init = vec!["init", "--cluster", "lab"];
        // PostgreSQL's own are for a cluster that is there.
        let (database, policy): (Vec<_>, Vec<_>) = options
            .settings
            .iter()
            .filter(|setting| !setting.starts_with(ROUTE_SETTING))
            .partition(|setting| setting.starts_with(DATABASE_SETTING));
        init.extend(policy.iter().flat_map(|s| ["--set", s.as_str()]));
        self.sempre(first, &init)?;
        self.start_agent(first).await?;
        let base = &self.base;
        rig::wait_until("the first member leads", START_DEADLINE, async || {
            rig::leader(base).await.as_deref() == Some(first)
        })
        .await?;
        if !database.is_empty() {
            let mut set = vec!["config", "set"];
            set.extend(database.iter().map(|setting| setting.as_str()));
            self.sempre(first, &set)?;
            // Some of them are in force only then.
            self.sempre(first, &["restart", first])?;
        }
        for host in others {
            let token = self.sempre(first, &["token"])?;
            self.sempre(host, &["join", token.trim()])?;
            self.start_agent(host).await?;
        }
        rig::wait_whole(&self.base, START_DEADLINE).await?;
        self.make_role(first)?;
        self.start_route(&options.settings)?;
        rig::wait_reachable(&self.base, self.endpoint(), START_DEADLINE).await
    }

    /// The folder and the configuration of one member.
    fn prepare(&mut self, host: &str, disk: bool) -> Result<()> {
        let dir = self.base.folder(host, USER)?;
        let mut config = format!(
            "name = \"{host}\"\ndir = \"{}\"\naddresses = [\"{}\", \"{}\"]\nuser = \"{USER}\"\n",
            dir.display(),
            self.base.topology.address(host, Net::A),
            self.base.topology.address(host, Net::B),
        );
        if disk {
            let disk = Disk::new(&self.base.root.join(format!("{host}-disk")), DISK_BYTES)?;
            rig::own(disk.path(), USER)?;
            config +=
                &format!("[postgres]\ndata_dir = \"{}\"\n", disk.path().join("data").display());
            self.disks.insert(host.to_owned(), disk);
        }
        let path = self.config(host);
        fs::write(&path, config).with_context(|| format!("could not write {}", path.display()))
    }

    fn config(&self, host: &str) -> PathBuf {
        self.base.root.join(format!("{host}.toml"))
    }

    fn command(&self, host: &str, arguments: &[&str]) -> Command {
        let mut command = self.base.topology.command(host, None, &self.binary);
        command.arg("--config").arg(self.config(host)).args(arguments);
        command
    }

    /// Runs `sempre --config HOST.toml ARGUMENTS` on `host` to its end. What it printed.
    pub fn sempre(&self, host: &str, arguments: &[&str]) -> Result<String> {
        shell::run(&mut self.command(host, arguments))
    }

    /// The one place that knows how a client's role comes to be.
    fn make_role(&self, primary: &str) -> Result<()> {
        let socket = self.base.root.join(primary).join("run");
        let statements = format!(
            "create role {ROLE} login password '{PASSWORD}'; grant all on schema public to {ROLE}; \
             create table {table} (at timestamptz default clock_timestamp()); \
             alter table {table} owner to {ROLE}; \
             create role {READER} login password '{PASSWORD}'; \
             grant select on pg_catalog.pg_authid to {READER};",
            table = crate::probe::TABLE,
        );
        let mut psql = self.base.topology.command(primary, Some(USER), "psql");
        psql.arg("-h").arg(&socket).args(["-p", &DATABASE_PORT.to_string(), "-U", "postgres"]);
        psql.args(["-d", "postgres", "-qX", "-v", "ON_ERROR_STOP=1", "-c", &statements]);
        shell::run(&mut psql).context("could not make the role of the application").map(drop)
    }

    /// The guard and the warden, its parent. The kernel's name of both is not `sempre`, because the
    /// agent starts the file it was itself started from, even if that was replaced meanwhile.
    fn guards(&self, host: &str) -> Vec<Process> {
        let mut found = self.base.topology.processes(host);
        found.retain(|p| p.arguments.split(' ').any(|word| word == "guard"));
        found
    }

    fn start_route(&mut self, settings: &[String]) -> Result<()> {
        let topology = &self.base.topology;
        let members: Vec<String> = Net::ALL
            .iter()
            .flat_map(|net| topology.hosts().iter().map(|host| topology.address(host, *net)))
            .map(|address| format!("{address}:{REST_PORT}"))
            .collect();
        let password = self.base.root.join("routing.password");
        fs::write(&password, PASSWORD).context("could not write the password of routing")?;
        let mut command = topology.command(APP, None, &self.binary);
        command.args(["route", "run", "--members", &members.join(",")]);
        command.args(["--read-write", &format!("127.0.0.1:{ROUTE_PORT}")]);
        command.args(["--read-only", &format!("127.0.0.1:{}", ROUTE_PORT + 1)]);
        command.args(["--auth-user", READER, "--auth-password-file"]).arg(password);
        for setting in settings.iter().filter_map(|setting| setting.strip_prefix(ROUTE_SETTING)) {
            match setting.split_once('=') {
                Some((flag, "true")) => command.arg(format!("--{flag}")),
                Some((flag, value)) => command.arg(format!("--{flag}")).arg(value),
                None => command.arg(format!("--{setting}")),
            };
        }
        self.base.spawn(APP, "route.log", &mut command).map(drop)
    }

    fn target(&self, address: SocketAddr) -> Target {
        Target {
            address,
            user: ROLE.into(),
            password: PASSWORD.into(),
            database: "postgres".into(),
        }
    }
}

/// The size of the sync set under the default policy (one, and one to spare); 0, which is not
/// looked at, where that is changed.
fn sync_standbys(options: &Options) -> usize {
    let changed =
        options.settings.iter().any(|s| s.starts_with("sync_") || s.starts_with("durability"));
    if changed { 0 } else { 2.min(options.members.saturating_sub(1)) }
}

/// `sempre` built in release mode, next to the workspace's other results.
pub fn default_binary(target_dir: &Path) -> PathBuf {
    target_dir.join("release").join("sempre")
}

#[async_trait(?Send)]
impl Rig for Cluster {
    fn make(&self) -> &'static str {
        "sempre"
    }

    fn base(&self) -> &Base {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base {
        &mut self.base
    }

    fn endpoint(&self) -> Target {
        self.target((Ipv4Addr::LOCALHOST, ROUTE_PORT).into())
    }

    fn direct(&self, host: &str) -> Target {
        self.target((self.base.topology.address(host, Net::A), DATABASE_PORT).into())
    }

    fn data_dir(&self, host: &str) -> PathBuf {
        match self.disks.get(host) {
            Some(disk) => disk.path().join("data"),
            None => self.base.root.join(host).join("data"),
        }
    }

    async fn start_host(&mut self, host: &str) -> Result<()> {
        self.start_agent(host).await
    }

    async fn start_agent(&mut self, host: &str) -> Result<()> {
        let mut command = self.command(host, &["run"]);
        let pid = self.base.spawn(host, &format!("{host}.log"), &mut command)?;
        self.agents.insert(host.to_owned(), pid);
        Ok(())
    }

    fn agent(&self, host: &str) -> Result<Process> {
        let pid = self.agents.get(host).with_context(|| format!("no agent started on {host}"))?;
        process::describe(*pid).with_context(|| format!("the agent of {host} is gone"))
    }

    fn guard(&self, host: &str) -> Option<Process> {
        let both = self.guards(host);
        both.iter().find(|guard| both.iter().any(|p| p.pid == guard.parent)).cloned()
    }

    fn warden(&self, host: &str) -> Option<Process> {
        let both = self.guards(host);
        both.iter().find(|warden| both.iter().any(|p| p.parent == warden.pid)).cloned()
    }

    fn fill_disk_possible(&self) -> bool {
        !self.disks.is_empty()
    }

    fn fill_disk(&self, host: &str) -> Result<()> {
        self.disks.get(host).context("this cluster was started without disks")?.fill()
    }

    fn empty_disk(&self, host: &str) -> Result<()> {
        self.disks.get(host).context("this cluster was started without disks")?.empty()
    }

    fn status(&self) -> String {
        let mut last = String::new();
        for host in self.base.topology.hosts() {
            match self.sempre(host, &["status"]) {
                Ok(said) => return said,
                Err(error) => last = format!("{error:#}"),
            }
        }
        last
    }

    async fn switchover(&self, from: &str, to: Option<&str>) -> Result<()> {
        let mut arguments = vec!["switchover", "--yes"];
        arguments.extend(to.into_iter().flat_map(|to| ["--to", to]));
        let mut command = tokio::process::Command::from(self.command(from, &arguments));
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "switchover refused: {}", said.trim());
        Ok(())
    }
}
