//! The usual pile: Patroni, etcd and HAProxy on three hosts, to compare with.
//!
//! `scripts/peers.sh` installs them. Patroni and etcd use network a alone: neither can do better.

use crate::{
    client::Target,
    process::{self, Process},
    rig::{self, Base, DATABASE_PORT, REST_PORT, Rig},
    shell,
    topology::{APP, Net},
};
use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use serde_json::json;
use std::{collections::BTreeMap, fmt::Write, fs, net::Ipv4Addr, path::PathBuf, time::Duration};

const USER: &str = "postgres";
const PROXY_PORT: u16 = 5000;
const START_DEADLINE: Duration = Duration::from_secs(120);

/// How eager Patroni and HAProxy are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// As shipped.
    Default,
    /// The fastest that Patroni allows.
    Tuned,
}

struct Times {
    ttl: u32,
    loop_wait: u32,
    retry_timeout: u32,
    primary_start_timeout: u32,
    check: &'static str,
}

impl Profile {
    fn times(self) -> Times {
        match self {
            Profile::Default => Times {
                ttl: 30,
                loop_wait: 10,
                retry_timeout: 10,
                primary_start_timeout: 300,
                check: "inter 3s fall 3 rise 2",
            },
            Profile::Tuned => Times {
                ttl: 20,
                loop_wait: 1,
                retry_timeout: 3,
                primary_start_timeout: 0,
                check: "inter 500ms fall 2 rise 1",
            },
        }
    }
}

/// How to set it up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `bin` folder of a virtual environment with `patroni[etcd3]` and `psycopg2-binary`,
    /// readable by user `postgres`.
    pub environment: PathBuf,
    /// PostgreSQL's programs.
    pub postgres_bin: PathBuf,
    /// How eager.
    pub profile: Profile,
    /// Commits wait for one of the standbys (`synchronous_mode: quorum`), as `sempre` does.
    pub synchronous: bool,
}

/// A running rig; everything goes when it is dropped.
#[derive(Debug)]
pub struct Patroni {
    base: Base,
    options: Options,
    agents: BTreeMap<String, u32>,
}

impl Patroni {
    /// Starts it and waits until it is whole.
    pub async fn start(options: &Options) -> Result<Self> {
        ensure!(
            options.environment.join("patroni").exists(),
            "no Patroni in {}; run scripts/peers.sh",
            options.environment.display()
        );
        let mut base = Base::new(3)?;
        base.sync_standbys = if options.synchronous { 2 } else { 0 };
        let mut rig = Self { base, options: options.clone(), agents: BTreeMap::new() };
        match rig.form().await {
            Ok(()) => Ok(rig),
            Err(error) => {
                rig.base.keep = true;
                let logs = rig.base.root.join("logs");
                Err(error.context(format!("Patroni did not start; see {}", logs.display())))
            }
        }
    }

    async fn form(&mut self) -> Result<()> {
        let hosts = self.base.topology.hosts().to_vec();
        for host in &hosts {
            for folder in ["etcd", "socket"] {
                self.base.folder(&format!("{host}-{folder}"), USER)?;
            }
            self.configure(host)?;
            self.start_etcd(host, "new")?;
        }
        // Patroni makes the data directories itself, in here.
        self.base.folder("data", USER)?;
        for host in &hosts {
            self.start_agent(host).await?;
            let base = &self.base;
            rig::wait_until("Patroni has a leader", START_DEADLINE, async || {
                rig::leader(base).await.is_some()
            })
            .await?;
        }
        self.start_proxy(&hosts)?;
        let leader = rig::wait_whole(&self.base, START_DEADLINE).await?;
        let mut psql = self.base.topology.command(&leader, Some(USER), "psql");
        psql.arg("-h").arg(self.base.root.join(format!("{leader}-socket")));
        psql.args(["-U", "postgres", "-qX", "-v", "ON_ERROR_STOP=1", "-c"]);
        psql.arg(format!(
            "create table {} (at timestamptz default clock_timestamp())",
            crate::probe::TABLE
        ));
        shell::run(&mut psql)?;
        rig::wait_reachable(&self.base, self.endpoint(), START_DEADLINE).await
    }

    fn configure(&self, host: &str) -> Result<()> {
        let topology = &self.base.topology;
        let address = topology.address(host, Net::A);
        let times = self.options.profile.times();
        let etcd: Vec<String> = topology
            .hosts()
            .iter()
            .map(|h| format!("{}:2379", topology.address(h, Net::A)))
            .collect();
        let account = |name: &str| json!({"username": name, "password": "x"});
        let synchronous = if self.options.synchronous { json!("quorum") } else { json!(false) };
        let config = json!({
            "scope": "lab",
            "name": host,
            "restapi": {
                "listen": format!("{address}:{REST_PORT}"),
                "connect_address": format!("{address}:{REST_PORT}"),
            },
            "etcd3": {"hosts": etcd},
            "bootstrap": {
                "dcs": {
                    "ttl": times.ttl,
                    "loop_wait": times.loop_wait,
                    "retry_timeout": times.retry_timeout,
                    "primary_start_timeout": times.primary_start_timeout,
                    "synchronous_mode": synchronous,
                    "postgresql": {
                        "use_pg_rewind": true,
                        "parameters": {"wal_log_hints": "on", "max_connections": 100},
                    },
                },
                "initdb": ["data-checksums", {"encoding": "UTF8"}],
            },
            "postgresql": {
                "listen": format!("{address}:{DATABASE_PORT}"),
                "connect_address": format!("{address}:{DATABASE_PORT}"),
                "data_dir": self.data_dir(host),
                "bin_dir": self.options.postgres_bin,
                "pg_hba": ["local all all trust", "host all all all trust",
                           "host replication all all trust"],
                "authentication": {
                    "superuser": account("postgres"),
                    "replication": account("standby"),
                    "rewind": account("rewinder"),
                },
                "parameters": {
                    "unix_socket_directories": self.base.root.join(format!("{host}-socket")),
                },
            },
        });
        // JSON is YAML.
        fs::write(self.config(host), serde_json::to_vec_pretty(&config)?)?;
        Ok(())
    }

    fn config(&self, host: &str) -> PathBuf {
        self.base.root.join(format!("{host}.yml"))
    }

    fn start_etcd(&mut self, host: &str, state: &str) -> Result<()> {
        let topology = &self.base.topology;
        let url =
            |host: &str, port: u16| format!("http://{}:{port}", topology.address(host, Net::A));
        let everyone: Vec<String> =
            topology.hosts().iter().map(|h| format!("{h}={}", url(h, 2380))).collect();
        let mut command = topology.command(host, Some(USER), "etcd");
        command.args(["--name", host, "--initial-cluster-state", state]);
        command.arg("--data-dir").arg(self.base.root.join(format!("{host}-etcd")));
        command.args(["--listen-peer-urls", &url(host, 2380)]);
        command.args(["--initial-advertise-peer-urls", &url(host, 2380)]);
        command.args(["--listen-client-urls", &url(host, 2379)]);
        command.args(["--advertise-client-urls", &url(host, 2379)]);
        command.args(["--initial-cluster", &everyone.join(",")]);
        self.base.spawn(host, &format!("{host}-etcd.log"), &mut command).map(drop)
    }

    fn start_proxy(&mut self, hosts: &[String]) -> Result<()> {
        let check = self.options.profile.times().check;
        let mut config = format!(
            "defaults\n  mode tcp\n  timeout connect 4s\n  timeout client 30m\n  timeout server 30m\n\
             \x20 timeout check 2s\nlisten database\n  bind 127.0.0.1:{PROXY_PORT}\n\
             \x20 option httpchk OPTIONS /primary\n  http-check expect status 200\n\
             \x20 default-server {check} on-marked-down shutdown-sessions\n"
        );
        for host in hosts {
            let address = self.base.topology.address(host, Net::A);
            writeln!(config, "  server {host} {address}:{DATABASE_PORT} check port {REST_PORT}")?;
        }
        let path = self.base.root.join("haproxy.cfg");
        fs::write(&path, config)?;
        let mut command = self.base.topology.command(APP, Some(USER), "haproxy");
        command.arg("-f").arg(&path);
        self.base.spawn(APP, "haproxy.log", &mut command).map(drop)
    }

    fn target(&self, address: std::net::SocketAddr) -> Target {
        Target {
            address,
            user: "postgres".into(),
            password: "x".into(),
            database: "postgres".into(),
        }
    }
}

#[async_trait(?Send)]
impl Rig for Patroni {
    fn make(&self) -> &'static str {
        "patroni"
    }

    fn base(&self) -> &Base {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base {
        &mut self.base
    }

    fn endpoint(&self) -> Target {
        self.target((Ipv4Addr::LOCALHOST, PROXY_PORT).into())
    }

    fn direct(&self, host: &str) -> Target {
        self.target((self.base.topology.address(host, Net::A), DATABASE_PORT).into())
    }

    fn data_dir(&self, host: &str) -> PathBuf {
        self.base.root.join("data").join(host)
    }

    async fn start_host(&mut self, host: &str) -> Result<()> {
        self.start_etcd(host, "existing")?;
        self.start_agent(host).await
    }

    async fn start_agent(&mut self, host: &str) -> Result<()> {
        let program = self.options.environment.join("patroni");
        let mut command = self.base.topology.command(host, Some(USER), program);
        // Its password file goes there.
        let home = self.base.root.join(format!("{host}-socket"));
        command.arg(self.config(host)).env("HOME", home);
        let pid = self.base.spawn(host, &format!("{host}.log"), &mut command)?;
        self.agents.insert(host.to_owned(), pid);
        Ok(())
    }

    fn agent(&self, host: &str) -> Result<Process> {
        let pid = self.agents.get(host).with_context(|| format!("no Patroni started on {host}"))?;
        process::describe(*pid).with_context(|| format!("Patroni of {host} is gone"))
    }

    fn guard(&self, _host: &str) -> Option<Process> {
        None
    }

    fn warden(&self, _host: &str) -> Option<Process> {
        None
    }

    fn fill_disk_possible(&self) -> bool {
        false
    }

    fn fill_disk(&self, _host: &str) -> Result<()> {
        bail!("Patroni's rig has no disks of its own")
    }

    fn empty_disk(&self, _host: &str) -> Result<()> {
        Ok(())
    }

    fn status(&self) -> String {
        let program = self.options.environment.join("patronictl");
        let mut command = self.base.topology.command(APP, None, program);
        command.arg("-c").arg(self.config(&self.base.topology.hosts()[0])).arg("list");
        shell::run(&mut command).unwrap_or_else(|error| format!("{error:#}"))
    }

    async fn switchover(&self, from: &str, to: Option<&str>) -> Result<()> {
        let to = match to {
            Some(to) => to,
            None => {
                let mut hosts = self.base.topology.hosts().iter();
                hosts.find(|h| *h != from).context("nobody to switch to")?
            }
        };
        let program = self.options.environment.join("patronictl");
        let mut command = self.base.topology.command(APP, None, program);
        command.arg("-c").arg(self.config(from));
        command.args(["switchover", "lab", "--leader", from, "--candidate", to, "--force"]);
        let output = tokio::process::Command::from(command).output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "patronictl failed: {}", said.trim());
        Ok(())
    }
}
