//! Takes over a stand-alone server that ran without sempre.

use crate::{
    DataDir, Error, Instance, Result, Session, Settings, command, is_managed, roles::statements,
    session::get,
};
use sempre_model::record::Secrets;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// An orderly stop writes all that is dirty in memory first.
const STOP_LIMIT: Duration = Duration::from_secs(300);

/// Where a running server has its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its `postgresql.conf`.
    pub config_file: PathBuf,
    /// Its `pg_hba.conf`.
    pub hba_file: PathBuf,
    /// Its `pg_ident.conf`.
    pub ident_file: PathBuf,
    /// Parameters set in its configuration files that sempre does not manage. In the record,
    /// they count for all members.
    pub parameters: BTreeMap<String, String>,
}

impl Session {
    /// Where the server has its files, and what is set in them.
    pub async fn server_files(&self) -> Result<ServerFiles> {
        let doing = "tell its files";
        let sql = "SELECT current_setting('data_directory'), current_setting('config_file'), \
             current_setting('hba_file'), current_setting('ident_file')";
        let row = self.row(doing, sql, &[]).await?;
        let path = |index| get::<String>(&row, index, doing).map(PathBuf::from);
        let sql = "SELECT name, setting FROM pg_file_settings WHERE applied ORDER BY seqno";
        let mut parameters = BTreeMap::new();
        for row in self.rows(doing, sql, &[]).await? {
            let (name, value): (String, String) = (get(&row, 0, doing)?, get(&row, 1, doing)?);
            if !is_managed(&name) {
                parameters.insert(name, value);
            }
        }
        Ok(ServerFiles {
            data_dir: path(0)?,
            config_file: path(1)?,
            hba_file: path(2)?,
            ident_file: path(3)?,
            parameters,
        })
    }
}

impl Instance {
    /// Takes over the data directory of a stand-alone primary as it is: stops its server, if it
    /// runs, and makes (or corrects) sempre's two roles. Nothing else in it changes.
    pub async fn adopt(&self, secrets: &Secrets) -> Result<()> {
        crate::init::refuse_root()?;
        let refuse = |why: String| Error::DataDir {
            doing: "adopt",
            data_dir: self.layout.data_dir.clone(),
            why,
        };
        let control = match self.inspect() {
            DataDir::Present(control) => control,
            DataDir::Foreign(foreign) => return Err(refuse(foreign.to_string())),
            DataDir::Missing | DataDir::Empty => return Err(refuse("there is nothing".into())),
        };
        if control.state.is_standby() || self.is_standby_prepared() {
            return Err(refuse("it is a standby; adopt its primary instead".into()));
        }
        if self.running_pid().is_some() {
            let mut stop = command::command(&self.installation.program("pg_ctl"));
            stop.arg("stop").arg("-D").arg(&self.layout.data_dir);
            stop.args(["--mode=fast", "--wait", "--silent"]);
            stop.arg(format!("--timeout={}", STOP_LIMIT.as_secs()));
            command::run(stop, "", STOP_LIMIT + Duration::from_secs(5)).await?;
        }
        self.write_config(&Settings::primary()).await?;
        let mut lines: Vec<String> = [crate::ADMIN_ROLE, crate::REPLICATION_ROLE]
            .map(|role| {
                format!(
                    "DO $$BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') \
                     THEN CREATE ROLE {role}; END IF; END$$"
                )
            })
            .to_vec();
        lines.extend(statements(secrets, true));
        self.single_user(&lines.iter().map(|l| format!("{l};\n")).collect::<String>()).await
    }
}

impl Session {
    /// Makes or corrects sempre's two roles on a running primary.
    pub async fn create_roles_if_missing(&self, secrets: &Secrets) -> Result<()> {
        let doing = "make the roles";
        for role in [crate::ADMIN_ROLE, crate::REPLICATION_ROLE] {
            let sql = "SELECT count(*) FROM pg_roles WHERE rolname = $1";
            if get::<i64>(&self.row(doing, sql, &[&role]).await?, 0, doing)? == 0 {
                self.execute(&format!("CREATE ROLE {role}")).await?;
            }
        }
        for statement in statements(secrets, true) {
            self.execute(&statement).await?;
        }
        Ok(())
    }
}
