//! Plain PostgreSQL: a primary, and a standby made with `pg_basebackup`.

use anyhow::{Context, Result};
use sempre_lab::{
    client::Target,
    probe,
    rig::{Base, DATABASE_PORT, postgres_bin, wait_until},
    shell,
    topology::Net,
};
use std::{fs, process::Command, time::Duration};

const USER: &str = "postgres";
const DEADLINE: Duration = Duration::from_secs(30);

pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not root: network namespaces cannot be made, nothing is tested");
    }
    root
}

pub struct Plain {
    pub base: Base,
}

impl Plain {
    /// `h1` a primary, and `h2` its asynchronous standby if wished.
    pub async fn start(standby: bool) -> Result<Self> {
        let mut plain = Self { base: Base::new(2)? };
        for host in ["h1", "h2"] {
            plain.base.folder(host, USER)?;
        }
        plain.on("h1", "initdb", &["-A", "trust", "-U", "postgres", "-D", &plain.data("h1")])?;
        let hba = "local all all trust\nhost all all all trust\nhost replication all all trust\n";
        fs::write(format!("{}/pg_hba.conf", plain.data("h1")), hba)?;
        plain.run("h1").await?;
        plain
            .ask("h1", &format!("create table {} (at timestamptz default now())", probe::TABLE))
            .await?;
        if standby {
            let from = plain.base.topology.address("h1", Net::A).to_string();
            let data = plain.data("h2");
            let copy = ["-h", &from, "-U", "postgres", "-D", &data, "-R", "-c", "fast"];
            plain.on("h2", "pg_basebackup", &copy)?;
            plain.run("h2").await?;
        }
        Ok(plain)
    }

    fn data(&self, host: &str) -> String {
        self.base.root.join(host).join("data").display().to_string()
    }

    fn command(&self, host: &str, program: &str) -> Command {
        let bin = postgres_bin().unwrap();
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

    pub async fn promote(&self, host: &str) -> Result<()> {
        self.ask(host, "select pg_promote()").await.map(drop)
    }

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
