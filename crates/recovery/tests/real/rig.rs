//! A server whose WAL is kept, and its repository.

use crate::servers::{Server, folder, secrets};
use anyhow::{Context, Result};
use sempre_backup::{Backup, Folder, Identity, Options, Repository, RestoreOptions, Secret};
use sempre_model::{
    Lsn,
    backup::{ArchiveView, BackupKey, StoreAt},
};
use sempre_postgres::Session;
use sempre_recovery::{Archive, BaseBackup, Feed, Goal, Place, Recovered, Restore, back_up};
use std::{sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};

pub struct Rig {
    pub dir: TempDir,
    pub repository: Repository,
    pub place: Place,
    pub refuse_wrong_pages: bool,
}

/// WAL that is being kept, until this is dropped.
pub struct Keeping {
    task: JoinHandle<()>,
    archived: watch::Receiver<Option<ArchiveView>>,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeping {
    /// Waits until WAL is kept up to here.
    pub async fn until(&mut self, lsn: Lsn) -> Result<ArchiveView> {
        let reached = self.archived.wait_for(|a| a.is_some_and(|a| a.flushed >= lsn));
        let reached = tokio::time::timeout(Duration::from_secs(30), reached).await;
        Ok(reached.context("it is not archived")?.context("the archive ended")?.unwrap())
    }
}

impl Rig {
    pub async fn of(server: &Server) -> Result<Self> {
        let dir = folder();
        let key = Secret::random();
        let system_identifier = server.instance.control_data()?.system_identifier;
        let folder = dir.path().join("repository");
        let (name, at) = ("main".into(), StoreAt::Folder(folder.clone()));
        let key_text = BackupKey(key.to_text());
        let place = Place { name, store: at, key: key_text, next_key: None, reach: None };
        let store = Arc::new(Folder::new(folder));
        let identity = Identity::new("id", "tests", system_identifier, 1);
        let repository = Repository::create(store, &key, identity).await?;
        Ok(Self { dir, repository, place, refuse_wrong_pages: false })
    }

    /// Keeps the WAL of `server`.
    pub fn keep(&self, server: &Server, feed: Feed) -> Keeping {
        let (tell, archived) = watch::channel(None);
        let (instance, repository) = (server.instance.clone(), self.repository.clone());
        let task = tokio::spawn(async move {
            let archive = Archive {
                generation: None,
                instance: &instance,
                feed,
                name: "tests:archive".into(),
                slot: Some("archive".into()),
                repository,
            };
            let Err(error) = archive.run(|archived| _ = tell.send(Some(archived))).await;
            eprintln!("the archive ended: {error}");
        });
        Keeping { task, archived }
    }

    pub fn keep_local(&self, server: &Server) -> Keeping {
        self.keep(server, Feed::Local(secrets().admin))
    }

    pub async fn back_up(&self, server: &Server) -> Result<Backup> {
        let admin_password = &secrets().admin;
        let (instance, repository) = (&server.instance, &self.repository);
        let options = Options::default();
        let (full, refuse_wrong_pages) = (false, self.refuse_wrong_pages);
        let task = BaseBackup {
            instance,
            admin_password,
            repository,
            owner: "a",
            options,
            full,
            refuse_wrong_pages,
        };
        Ok(back_up(&task, Arc::default()).await?)
    }

    /// Restores into a new server's data directory.
    pub async fn restore(&self, to: &mut Server, goal: Goal) -> sempre_recovery::Result<Recovered> {
        self.restore_from(None, to, goal).await
    }

    async fn restore_from(
        &self,
        backup: Option<&str>,
        to: &mut Server,
        goal: Goal,
    ) -> sempre_recovery::Result<Recovered> {
        let restore = Restore {
            repository: &self.repository,
            installation: &to.instance.installation,
            target: &to.instance.layout.data_dir,
            goal,
            backup,
            options: RestoreOptions::default(),
            fetch_command: fetch_command(),
        };
        restore.run(Arc::default()).await
    }

    /// Restores, starts what was restored, and asks it.
    pub async fn restored(
        &self,
        name: &str,
        goal: Goal,
        question: &str,
    ) -> Result<(String, Server)> {
        self.restored_by(None, name, goal, question).await
    }

    /// The same, from this backup.
    pub async fn restored_from(
        &self,
        backup: &str,
        name: &str,
        goal: Goal,
        question: &str,
    ) -> Result<(String, Server)> {
        self.restored_by(Some(backup), name, goal, question).await
    }

    async fn restored_by(
        &self,
        backup: Option<&str>,
        name: &str,
        goal: Goal,
        question: &str,
    ) -> Result<(String, Server)> {
        let mut server = Server::empty(self.dir.path(), name);
        self.restore_from(backup, &mut server, goal).await?;
        server.start(&server.primary_settings()).await?;
        let answer = ask(&server, question).await?;
        Ok((answer, server))
    }
}

/// What answers `restore_command`.
pub fn fetch_command() -> Vec<String> {
    vec![env!("CARGO_BIN_EXE_sempre-fetch-wal").into()]
}

/// One value.
pub async fn ask(server: &Server, question: &str) -> Result<String> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(&server.instance.layout.run_dir).port(server.instance.port);
    config.user("sempre").password(secrets().admin).dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    let mut answer = String::new();
    for message in client.simple_query(question).await? {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            answer = row.get(0).unwrap_or("null").to_owned();
        }
    }
    drop(client);
    connection.await??;
    Ok(answer)
}

/// Runs statements; returns how far WAL is flushed then.
pub async fn run(session: &Session, sql: &str) -> Result<Lsn> {
    session.execute(sql).await?;
    Ok(session.flush_lsn().await?)
}

/// Writes all the time, until it is told to stop.
pub async fn keep_busy(
    instance: sempre_postgres::Instance,
    mut stopped: tokio::sync::oneshot::Receiver<()>,
) -> Result<()> {
    let session = instance.session(&secrets().admin).await?;
    while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
        run(&session, "update public.busy set i = i + 1 where i % 7 = 0").await?;
        run(&session, "vacuum public.busy").await?;
        run(&session, "checkpoint").await?;
    }
    Ok(())
}
