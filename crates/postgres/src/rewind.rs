//! Brings a data directory that has diverged back to a primary's WAL.

use crate::{
    ControlData, ControlState, Error, Instance, Result, Settings, Upstream, command, files,
    init::refuse_root, roles::DATABASE,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs::OpenOptions, process::Stdio, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Crash recovery before a rewind may replay a whole checkpoint interval on a slow disk.
const RECOVERY_LIMIT: Duration = Duration::from_secs(600);
/// A rewind copies what changed since the fork, and all of the source's WAL.
const REWIND_LIMIT: Duration = Duration::from_secs(3600);
/// Between two looks at a server that is about to be ready.
const POLL: Duration = Duration::from_millis(50);

impl Instance {
    /// Rewinds the data directory to where its WAL parts from `source`'s, so that it can start
    /// as a standby. The server must be stopped; [`Instance::salvage`] first what it discards.
    ///
    /// A server that was not stopped in order is recovered first, by ourselves: `pg_rewind`
    /// would do so without syncing, and could not for a standby. Interrupted after that, it
    /// leaves a directory that [`Instance::inspect`] calls unfinished: only a fresh copy helps.
    pub async fn rewind(&self, source: &Upstream, admin_password: &str) -> Result<()> {
        refuse_root()?;
        self.refuse_running("rewind")?;
        let control = self.control_data()?;
        if !control.data_checksums && !control.wal_log_hints {
            return Err(Error::DataDir {
                doing: "rewind",
                data_dir: self.layout.data_dir.clone(),
                why: "it has neither checksums nor wal_log_hints; make a fresh copy".into(),
            });
        }
        self.end_in_order(&control, admin_password).await?;

        files::write_atomically(&self.tool_pass_file(), &source.pass_lines())?;
        let name = format!("{}:rewind", self.me);
        let conninfo = source.conninfo(self, &name, &self.tool_pass_file(), Some(DATABASE));
        let mut tool = command::command(&self.installation.program("pg_rewind"));
        tool.arg(format!("--target-pgdata={}", self.layout.data_dir.display()));
        tool.arg(format!("--source-server={conninfo}")).arg("--no-ensure-shutdown");
        files::write_atomically(&self.rewind_marker(), "a rewind began here and did not end\n")?;
        let ended = command::run(tool, "", REWIND_LIMIT).await;
        self.forget_tool_passwords();
        if let Err(error) = ended {
            // It looks at both sides before it touches anything: then all is as it was.
            let untouched = matches!(&error, Error::Tool { output, .. } if is_refusal(output));
            if untouched {
                files::remove_file(&self.rewind_marker())?;
            }
            return Err(error);
        }
        self.prepare_role(true)?;
        files::remove_file(&self.rewind_marker()).map(|_| ())
    }

    /// Makes sure the server ended in order, so that the data files hold what the WAL says.
    async fn end_in_order(&self, control: &ControlData, admin_password: &str) -> Result<()> {
        // After a copy or an earlier rewind, or for a standby, only recovery as a standby is
        // right: single-user mode knows nothing of timelines.
        let as_standby =
            control.state.is_standby() || self.layout.data_dir.join("backup_label").exists();
        match (&control.state, as_standby) {
            (ControlState::ShutDown | ControlState::ShutDownInRecovery, false) => Ok(()),
            (ControlState::ShutDownInRecovery, true) => Ok(()),
            (_, true) => self.recover_as_standby(admin_password).await,
            (_, false) => self.recover_as_primary().await,
        }
    }

    /// Crash recovery and an orderly end, reachable for nobody.
    async fn recover_as_primary(&self) -> Result<()> {
        self.prepare_role(false)?;
        self.write_config(&Settings::primary()).await?;
        self.single_user("").await
    }

    /// Runs statements (one a line) in single-user mode.
    pub(crate) async fn single_user(&self, input: &str) -> Result<()> {
        let mut single = command::command(&self.installation.program("postgres"));
        single.arg("--single").arg("-D").arg(&self.layout.data_dir).arg("-c");
        single.arg(format!("config_file={}", self.config_file().display()));
        single.args(["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", DATABASE]);
        command::run(single, input, RECOVERY_LIMIT).await.map(|_| ())
    }

    /// Replays as a standby without an upstream until consistent, then ends in order. Only its
    /// private socket is open meanwhile.
    async fn recover_as_standby(&self, admin_password: &str) -> Result<()> {
        self.prepare_role(true)?;
        self.write_config(&Settings::standby(None)).await?;
        let start = self.start_command();
        let log = &self.layout.log_file;
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(log)
            .map_err(Error::io("open the log", log))?;
        let mut server = command::command(&start.program);
        server.args(&start.args).args(["-c", "listen_addresses="]).envs(start.env);
        server.arg("-c");
        server.arg(format!("unix_socket_directories={}", self.layout.run_dir.display()));
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut server = server.spawn().map_err(Error::io("start", &start.program))?;

        let until = Instant::now() + RECOVERY_LIMIT;
        let outcome = loop {
            if let Ok(Some(status)) = server.try_wait() {
                let tail = self.tail_log(8).join("\n");
                return Err(command::failed("postgres".into(), &status, &tail));
            }
            if self.session(admin_password).await.is_ok() {
                break Ok(());
            }
            if Instant::now() >= until {
                let what = "recovery before the rewind".to_owned();
                break Err(Error::TimedOut { what, after: RECOVERY_LIMIT });
            }
            sleep(POLL).await;
        };
        if let Some(pid) = server.id().and_then(|pid| i32::try_from(pid).ok()) {
            // SIGINT: end all sessions, then stop in order. It may have ended just now.
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        match timeout(RECOVERY_LIMIT, server.wait()).await {
            Ok(_) => outcome,
            Err(_) => Err(Error::TimedOut {
                what: "the end of recovery before the rewind".into(),
                after: RECOVERY_LIMIT,
            }),
        }
    }
}

/// Did `pg_rewind` refuse before it changed anything?
fn is_refusal(output: &str) -> bool {
    let began = output.contains("rewinding from");
    let refused = [
        "could not connect to server",
        "connection to server at",
        "source and target cluster",
        "must be shut down",
        "could not find common ancestor",
        "could not find previous WAL record",
        "needs to use either data checksums",
        "password authentication failed",
        "certificate verify failed",
        "SSL error",
        "channel binding",
    ]
    .iter()
    .any(|words| output.contains(words));
    refused && !began
}
