//! Directories of files, backed up into a folder and brought back.

use anyhow::Result;
use sempre_backup::{
    Backup, Folder, Identity, Options, Progress, Repository, RestoreOptions, Secret, Stats, Writer,
    Writing, list,
};
use sempre_model::{Lsn, MemberId, Timeline};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

struct Fixture {
    dir: tempfile::TempDir,
    repository: Repository,
    key: Secret,
    now: u64,
}

impl Fixture {
    async fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let store = Arc::new(Folder::new(dir.path().join("repository")));
        let key = Secret::random();
        let identity = Identity::new("id", "main", 7, 1);
        let repository = Repository::create(store, &key, identity).await?;
        fs::create_dir_all(dir.path().join("data/base/5"))?;
        Ok(Self { dir, repository, key, now: 1_700_000_000_000 })
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn put(&self, path: &str, content: &[u8]) {
        fs::write(self.data().join(path), content).unwrap();
    }

    async fn back_up(&mut self) -> Result<Backup> {
        self.now += 3_600_000;
        let writer = Writer::announce(&self.repository, self.now, true).await?;
        let parent = writer.parent().map(|p| p.id.clone());
        let mut writing = Writing::begin(writer, Options::default(), Arc::default());
        let sorted_segments = writing.copy(list(&self.data())?).await?;
        let (id, stats) = (writing.id().to_owned(), writing.stats());
        let backup = Backup { sorted_segments, ..described(id, parent, self.now, stats) };
        Ok(writing.publish(backup).await?)
    }

    async fn restore(&self, backup: &Backup, to: &str, delta: bool) -> Result<(PathBuf, u64)> {
        let target = self.dir.path().join(to);
        let options = RestoreOptions { delta, ..RestoreOptions::default() };
        let done =
            self.repository.restore_files(backup, &target, options, Arc::<Progress>::default());
        Ok((target.clone(), done.await?.fetched_bytes))
    }
}

fn described(id: String, parent: Option<String>, now: u64, stats: Stats) -> Backup {
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
    }
}

/// Every file and folder below `dir`.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
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

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_backed_up_comes_back_and_only_what_changed_is_stored_again() -> Result<()> {
    let mut fixture = Fixture::new().await?;
    let mut big = noise(1, 3_000_000);
    fixture.put("PG_VERSION", b"15\n");
    fixture.put("base/5/1", &big);
    fixture.put("base/5/2", &[0; 500_000]);
    fixture.put("base/5/3", b"");
    let first = fixture.back_up().await?;
    assert_eq!((first.stats.files, first.stats.new_bytes), (4, 3_000_003));
    let before = tree(&fixture.data());
    let (target, fetched) = fixture.restore(&first, "a", false).await?;
    assert_eq!((tree(&target), fetched), (before.clone(), 3_000_003));

    big[1_000_000] ^= 1;
    fixture.put("base/5/1", &big);
    fixture.put("base/5/2", &noise(2, 10));
    let second = fixture.back_up().await?;
    assert_eq!(second.parent.as_deref(), Some(first.id.as_str()));
    assert_eq!(second.stats.new_bytes, u64::from(sempre_backup::BLOCK_BYTES) + 10);
    // Over what the first left, only what differs is fetched; what is too much goes.
    fs::write(target.join("base/5/9"), "more")?;
    let (target, fetched) = fixture.restore(&second, "a", true).await?;
    assert_eq!(tree(&target), tree(&fixture.data()));
    assert_eq!(fetched, u64::from(sempre_backup::BLOCK_BYTES) + 10);
    let (target, _) = fixture.restore(&first, "b", false).await?;
    assert_eq!(tree(&target), before, "the first is as it was");
    let error = fixture.restore(&first, "b", false).await.unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_opens_with_its_key_only() -> Result<()> {
    let mut fixture = Fixture::new().await?;
    fixture.put("PG_VERSION", b"the secret of the house\n".repeat(1000).as_slice());
    let backup = fixture.back_up().await?;
    let store = fixture.repository.store.clone();
    let error = Repository::open(store.clone(), &Secret::random()).await.unwrap_err().to_string();
    assert!(error.contains("does not open"), "{error}");
    for (path, content) in tree(&fixture.dir.path().join("repository")) {
        let content = content.unwrap_or_default();
        assert!(!content.windows(6).any(|w| w == b"secret"), "{}", path.display());
    }
    // Both kinds of rotation: the old key opens nothing any more, old objects stay readable.
    let mut repository = Repository::open(store.clone(), &fixture.key).await?;
    repository.new_epoch(&fixture.key).await?;
    let new_key = Secret::random();
    repository.replace_key(&fixture.key, &new_key).await?;
    assert!(Repository::open(store.clone(), &fixture.key).await.is_err());
    fixture.repository = Repository::open(store, &new_key).await?;
    fixture.put("base/5/1", b"more");
    let later = fixture.back_up().await?;
    for backup in [backup, later] {
        let (target, _) = fixture.restore(&backup, &backup.id, false).await?;
        assert_eq!(
            fs::read(target.join("PG_VERSION"))?,
            fs::read(fixture.data().join("PG_VERSION"))?
        );
    }
    let error = fixture.repository.expect_cluster("other", 8).unwrap_err().to_string();
    assert!(error.contains("main") && error.contains("other"), "{error}");
    Ok(())
}
