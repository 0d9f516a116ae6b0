//! Plain PostgreSQL: a primary `h1`, and standbys made with `pg_basebackup`. Nobody manages it.
//!
//! It is what the checkers are tried on, and what throughput is compared with.

use crate::{
    client::Target,
    probe,
    rig::{Base, DATABASE_PORT, postgres_bin, wait_until},
    shell,
    topology::Net,
};
use anyhow::{Context, Result};
use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    process::Command,
    time::Duration,
};

const USER: &str = "postgres";
const DEADLINE: Duration = Duration::from_secs(30);
const HBA: &str = "local all all trust\nhost all all all trust\nhost replication all all trust\n";

/// Running databases; everything goes when it is dropped.
#[derive(Debug)]
pub struct Plain {
    /// The hosts.
    pub base: Base,
}

impl Plain {
    /// `hosts` hosts, `h1` a primary. With `standbys`, all others stream from it.
    pub async fn start(hosts: usize, standbys: bool) -> Result<Self> {
        Self::start_with(hosts, standbys, false).await
    }

    /// The same, with standbys whose connections are encrypted.
    pub async fn encrypted(hosts: usize) -> Result<Self> {
        Self::start_with(hosts, true, true).await
    }

    async fn start_with(hosts: usize, standbys: bool, encrypted: bool) -> Result<Self> {
        let mut plain = Self { base: Base::new(hosts)? };
        let hosts = plain.base.topology.hosts().to_vec();
        for host in &hosts {
            plain.base.folder(host, USER)?;
        }
        plain.on(
            "h1",
            "initdb",
            &["-A", "trust", "-U", "postgres", "-k", "-D", &plain.data("h1")],
        )?;
        fs::write(format!("{}/pg_hba.conf", plain.data("h1")), HBA)?;
        let mode = if encrypted { "require" } else { "disable" };
        if encrypted {
            plain.certify("h1")?;
        }
        plain.run("h1").await?;
        plain
            .ask("h1", &format!("create table {} (at timestamptz default now())", probe::TABLE))
            .await?;
        for host in hosts.iter().skip(1).filter(|_| standbys) {
            let from = plain.base.topology.address("h1", Net::A).to_string();
            // A certificate that is not there is not shown; root's own cannot even be looked for.
            let conninfo = format!(
                "host={from} user=postgres sslmode={mode} sslcert=none sslkey=none \
                 sslrootcert=none sslcrl=none application_name={host}"
            );
            let data = plain.data(host);
            plain.on(host, "pg_basebackup", &["-d", &conninfo, "-D", &data, "-R", "-c", "fast"])?;
            plain.run(host).await?;
        }
        Ok(plain)
    }

    /// Gives a database that does not run yet a certificate, which copies of it show too.
    fn certify(&self, host: &str) -> Result<()> {
        let data = self.data(host);
        let made = rcgen::generate_simple_self_signed(vec![host.to_owned()])?;
        let owner = fs::metadata(&data)?;
        for (file, text) in
            [("server.crt", made.cert.pem()), ("server.key", made.signing_key.serialize_pem())]
        {
            let file = format!("{data}/{file}");
            fs::write(&file, text)?;
            fs::set_permissions(&file, Permissions::from_mode(0o600))?;
            chown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        let mut settings =
            fs::OpenOptions::new().append(true).open(format!("{data}/postgresql.conf"))?;
        Ok(settings.write_all(b"ssl = on\n")?)
    }

    /// Makes commits wait for one of the standbys.
    pub async fn synchronous(&self) -> Result<()> {
        let names = self.base.topology.hosts()[1..].join(", ");
        self.ask("h1", &format!("alter system set synchronous_standby_names = 'ANY 1 ({names})'"))
            .await?;
        self.ask("h1", "select pg_reload_conf()").await?;
        wait_until("standbys count", DEADLINE, async || {
            let query = "select count(*) from pg_stat_replication where sync_state = 'quorum'";
            let wanted = self.base.topology.hosts().len() - 1;
            self.ask("h1", query).await.is_ok_and(|n| n == Some(wanted.to_string()))
        })
        .await
    }

    fn data(&self, host: &str) -> String {
        self.base.root.join(host).join("data").display().to_string()
    }

    fn command(&self, host: &str, program: &str) -> Command {
        let bin = postgres_bin().unwrap_or_default();
        self.base.topology.command(host, Some(USER), bin.join(program))
    }

    fn on(&self, host: &str, program: &str, arguments: &[&str]) -> Result<()> {
        shell::run(self.command(host, program).args(arguments)).map(drop)
    }

    /// Starts the database of `host`, and waits until it answers.
    pub async fn run(&mut self, host: &str) -> Result<()> {
        let mut command = self.command(host, "postgres");
        command.args(["-D", &self.data(host), "-c", "listen_addresses=*"]);
        command.args(["-k", &self.base.root.join(host).display().to_string()]);
        self.base.spawn(host, &format!("{host}.log"), &mut command)?;
        let this = &*self;
        wait_until("the database answers", DEADLINE, async || {
            this.ask(host, "select 1").await.is_ok()
        })
        .await
    }

    /// The database of one host.
    pub fn target(&self, host: &str) -> Target {
        Target {
            address: (self.base.topology.address(host, Net::A), DATABASE_PORT).into(),
            user: USER.into(),
            password: "x".into(),
            database: "postgres".into(),
        }
    }

    /// Asks a database from its own host. The first value of the answer, as text.
    pub async fn ask(&self, host: &str, statement: &str) -> Result<Option<String>> {
        let (target, statement) = (self.target(host), statement.to_owned());
        let task = async move {
            let session = target.connect("test", Duration::from_secs(2)).await?;
            let answer = session.client.simple_query(&statement).await?;
            Ok(answer.iter().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            }))
        };
        self.base.stations[host].run(task).await
    }

    /// Promotes a standby, whatever else is going on.
    pub async fn promote(&self, host: &str) -> Result<()> {
        self.ask(host, "select pg_promote()").await.map(drop)
    }

    /// Rows of a table.
    pub async fn count(&self, host: &str, table: &str) -> Result<i64> {
        let answer = self.ask(host, &format!("select count(*) from {table}")).await?;
        Ok(answer.context("no count")?.parse()?)
    }

    /// Waits until the probe wrote a few rows here.
    pub async fn wait_for_probe_rows(&self, host: &str) -> Result<()> {
        let before = self.count(host, probe::TABLE).await?;
        wait_until("the probe wrote", DEADLINE, async || {
            self.count(host, probe::TABLE).await.is_ok_and(|now| now > before + 3)
        })
        .await
    }
}
