//! A repository on some store, a directory that is backed up into it, and what must come back.
#![allow(dead_code)] // each test uses a part

pub mod member;
pub mod promises;
pub mod proxy;
pub mod s3;
pub mod wrapped;

use anyhow::{Result, ensure};
use sempre_backup::{
    Backup, Folder, Identity, Options, Progress, Repository, RestoreOptions, S3, Secret, Stats,
    Store, Writer, Writing, list,
};
use sempre_model::{Lsn, MemberId, Timeline};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Files and folders below a directory.
pub type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub repository: Repository,
    pub key: Secret,
    pub now: u64,
    /// What each backup must bring back.
    pub expected: BTreeMap<String, Tree>,
}

impl Fixture {
    /// In a folder.
    pub async fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let store = Arc::new(Folder::new(dir.path().join("repository")));
        Self::on(dir, store).await
    }

    /// In a folder that is in memory, where there is one: syncing costs nothing.
    pub async fn quick() -> Result<Self> {
        let dir = quick_dir()?;
        let store = Arc::new(Folder::new(dir.path().join("repository")));
        Self::on(dir, store).await
    }

    /// On every kind of store, one after the other.
    pub async fn on_each(test: impl AsyncFn(Self) -> Result<()>) -> Result<()> {
        test(Self::new().await?).await?;
        let dir = tempfile::tempdir()?;
        let server = s3::Server::start(&dir.path().join("s3")).await?;
        let store = Arc::new(S3::new(&server.config(), s3::HASTE)?);
        test(Self::on(dir, store).await?).await?;
        let dir = tempfile::tempdir()?;
        let member = member::Serving::start(&dir.path().join("repository")).await?;
        test(Self::on(dir, member.store()).await?).await
    }

    pub async fn on(dir: tempfile::TempDir, store: Arc<dyn Store>) -> Result<Self> {
        let key = Secret::random();
        let identity = Identity::new("id", "main", 7, 1);
        let repository = Repository::create(store, &key, identity).await?;
        Self::of(dir, repository, key)
    }

    /// With a repository that is there.
    pub fn of(dir: tempfile::TempDir, repository: Repository, key: Secret) -> Result<Self> {
        fs::create_dir_all(dir.path().join("data/base/5"))?;
        let (now, expected) = (1_700_000_000_000, BTreeMap::new());
        Ok(Self { dir, repository, key, now, expected })
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where the store has its files.
    pub fn stored(&self) -> PathBuf {
        let folder = self.dir.path().join("repository");
        if folder.exists() { folder } else { self.dir.path().join("s3") }
    }

    pub fn put(&self, path: &str, content: &[u8]) {
        fs::write(self.data().join(path), content).unwrap();
    }

    /// The same repository through another store.
    pub async fn through(&self, store: Arc<dyn Store>) -> Result<Repository> {
        Ok(Repository::open(store, &self.key).await?)
    }

    pub async fn announce(&mut self) -> Result<Writer> {
        self.now += 3_600_000;
        Ok(Writer::announce(&self.repository, self.now, true).await?)
    }

    /// Copies and publishes.
    pub async fn finish(&mut self, writer: Writer) -> sempre_backup::Result<Backup> {
        let backup = write(writer, &self.data(), self.now).await?;
        self.expected.insert(backup.id.clone(), tree(&self.data()));
        Ok(backup)
    }

    pub async fn back_up(&mut self) -> Result<Backup> {
        let writer = self.announce().await?;
        Ok(self.finish(writer).await?)
    }

    pub async fn restore(&self, backup: &Backup, to: &str, delta: bool) -> Result<(PathBuf, u64)> {
        let target = self.dir.path().join(to);
        let options = RestoreOptions { delta, ..RestoreOptions::default() };
        let done =
            self.repository.restore_files(backup, &target, options, Arc::<Progress>::default());
        Ok((target.clone(), done.await?.fetched_bytes))
    }

    /// Restores one backup and compares it with what it was made of.
    pub async fn check(&self, backup: &Backup) -> Result<()> {
        let to = tempfile::tempdir_in(self.dir.path())?;
        let options = RestoreOptions::default();
        self.repository.restore_files(backup, to.path(), options, Arc::default()).await?;
        let wanted = self.expected.get(&backup.id);
        ensure!(wanted == Some(&tree(to.path())), "{} came back as something else", backup.id);
        Ok(())
    }

    /// Every backup that is offered comes back as it was; returns their ids.
    pub async fn check_all(&self) -> Result<Vec<String>> {
        let backups = self.repository.backups().await?;
        for backup in &backups {
            self.check(backup).await?;
        }
        Ok(backups.into_iter().map(|backup| backup.id).collect())
    }

    /// All keys of the repository that begin like this.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let listed = self.repository.store.list(prefix).await?;
        Ok(listed.into_iter().map(|listed| listed.key).collect())
    }
}

/// Copies `data` and publishes it.
pub async fn write(writer: Writer, data: &Path, now: u64) -> sempre_backup::Result<Backup> {
    let (writing, backup) = copy(writer, data, now).await?;
    writing.publish(backup).await
}

/// Copies `data`; it is yet to be published.
pub async fn copy(
    writer: Writer,
    data: &Path,
    now: u64,
) -> sempre_backup::Result<(Writing, Backup)> {
    let parent = writer.parent().map(|p| p.id.clone());
    let mut writing = Writing::begin(writer, Options::default(), Arc::default());
    let sorted_segments = writing.copy(list(data)?).await?;
    let (id, stats) = (writing.id().to_owned(), writing.stats());
    let backup = Backup { sorted_segments, ..described(id, parent, now, stats) };
    Ok((writing, backup))
}

/// In memory, where that is possible.
pub fn quick_dir() -> Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory).ok() } else { None };
    Ok(made.map_or_else(tempfile::tempdir, Ok)?)
}

/// The time of the store: objects are dated by it.
pub fn real_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

pub fn described(id: String, parent: Option<String>, now: u64, stats: Stats) -> Backup {
    Backup {
        id,
        parent,
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
        tablespaces: Vec::new(),
        block_bytes: sempre_backup::BLOCK_BYTES,
        sorted_segments: 0,
        late_segments: 0,
        stats,
        alarms: Vec::new(),
    }
}

/// Every file and folder below `dir`.
pub fn tree(dir: &Path) -> Tree {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            let path = entry.path();
            let content = path.is_file().then(|| fs::read(&path).unwrap());
            if path.is_dir() {
                dirs.push(path.clone());
            }
            found.insert(path.strip_prefix(dir).unwrap().to_owned(), content);
        }
    }
    found
}

pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
