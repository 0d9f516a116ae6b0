//! A real PostgreSQL, a backup of it in a folder, and its files served from there.
#![allow(dead_code)] // each test uses what it needs

pub mod disk;
pub mod numbers;
pub mod postgres;
pub mod server;

use anyhow::Result;
use postgres::Postgres;
use sempre_backup::{
    Backup, Folder, Identity, Options as BackupOptions, Repository, Secret, Writer, Writing, list,
};
use sempre_model::{Lsn, MemberId, Timeline};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

/// A folder for everything of a test. Under /var/tmp: /tmp may be in memory, without attributes.
pub struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("si").tempdir_in("/var/tmp")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self { dir })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn repository(&self) -> Result<(Repository, Secret)> {
        let store = Arc::new(Folder::new(self.path("repository")));
        let key = Secret::random();
        let identity = Identity::new("id", "main", 7, 1);
        Ok((Repository::create(store, &key, identity).await?, key))
    }
}

impl Drop for Scratch {
    /// Nothing stays mounted, whatever happened.
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // What was mounted last is above the others.
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(self.dir.path()) {
                let _ = Command::new("umount").args(["--lazy", point]).status();
            }
        }
    }
}

/// Backs a directory up that nobody writes to.
pub async fn back_up(repository: &Repository, data: &Path) -> Result<Backup> {
    let now = 1_700_000_000_000;
    let writer = Writer::announce(repository, now, true).await?;
    let mut writing = Writing::begin(writer, BackupOptions::default(), Arc::default());
    let sorted_segments = writing.copy(list(data)?).await?;
    let control = data.join(sempre_backup::CONTROL_FILE);
    let late_segments = if control.exists() {
        let from = control.clone();
        let stamp = sempre_backup::Stamp::default();
        let bytes = fs::metadata(&control)?.len();
        let what = sempre_backup::SourceWhat::File(bytes, stamp);
        let path = sempre_backup::CONTROL_FILE.to_owned();
        writing.copy(vec![sempre_backup::Source { path, from, mode: 0o600, what }]).await?
    } else {
        0
    };
    let (id, stats) = (writing.id().to_owned(), writing.stats());
    let mut tablespaces = Vec::new();
    for link in fs::read_dir(data.join("pg_tblspc")).into_iter().flatten() {
        let link = link?;
        let place = fs::read_link(link.path())?.display().to_string();
        tablespaces.push((link.file_name().display().to_string(), place));
    }
    let backup = Backup {
        id,
        parent: None,
        member: MemberId::new("a").unwrap(),
        from_standby: false,
        version_num: 150_000,
        began_unix_ms: now,
        ended_unix_ms: now,
        timeline: Timeline(1),
        start: Lsn(1),
        stop: Lsn(2),
        wal_segment_bytes: 16 << 20,
        label: String::new(),
        tablespaces,
        block_bytes: sempre_backup::BLOCK_BYTES,
        sorted_segments,
        late_segments,
        stats,
        alarms: Vec::new(),
    };
    Ok(writing.publish(backup).await?)
}

/// A backup of a cleanly stopped database with pgbench's tables, and its `pg_wal`, which a backup leaves out.
pub struct Prepared {
    pub scratch: Scratch,
    pub repository: Repository,
    pub key: Secret,
    pub backup: Backup,
    /// Where it is restored.
    pub target: PathBuf,
}

impl Prepared {
    pub async fn new(scale: u32, fill: impl FnOnce(&Postgres) -> Result<()>) -> Result<Self> {
        let scratch = Scratch::new()?;
        let (repository, key) = scratch.repository().await?;
        let original = Postgres::init(&scratch.path("original"))?;
        original.start()?;
        original.bench(&["-i", "-q", "-s", &scale.to_string()])?;
        fill(&original)?;
        original.stop("fast")?;
        let backup = back_up(&repository, &original.data).await?;
        fs::rename(original.data.join("pg_wal"), scratch.path("wal"))?;
        fs::remove_dir_all(&original.data)?;
        let target = scratch.path("data");
        Ok(Self { scratch, repository, key, backup, target })
    }

    /// An empty target that belongs to the database's user.
    pub fn make_target(&self) -> Result<PathBuf> {
        let target = self.target.clone();
        fs::create_dir(&target)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o700))?;
        let user = postgres::user()?;
        std::os::unix::fs::chown(&target, Some(user.0), Some(user.1))?;
        Ok(target)
    }

    /// What recovery from the archive would bring.
    pub fn bring_wal(&self) -> Result<()> {
        let (from, to) = (self.scratch.path("wal"), self.target.join("pg_wal"));
        if fs::read_dir(&to)?.count() > 1 {
            return Ok(());
        }
        let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(&to).status()?;
        anyhow::ensure!(status.success());
        Ok(())
    }
}
