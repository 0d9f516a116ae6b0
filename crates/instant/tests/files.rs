//! What a database does with files, on a mount; and what both ways to a file see after the switch. Needs
//! root and /dev/fuse.

mod common;

use anyhow::{Result, ensure};
use common::Scratch;
use sempre_instant::{Instant, Options, Serving};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

const BLOCK: usize = sempre_backup::BLOCK_BYTES as usize;

/// Different everywhere, and not compressible.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(step).take(bytes).collect()
}

struct Fixture {
    scratch: Scratch,
    repository: sempre_backup::Repository,
    backup: sempre_backup::Backup,
    options: Options,
}

impl Fixture {
    async fn new(files: &[(&str, &[u8])]) -> Result<Self> {
        let scratch = Scratch::new()?;
        let (repository, _) = scratch.repository().await?;
        for (path, content) in files {
            let path = scratch.path("original").join(path);
            fs::create_dir_all(path.parent().unwrap())?;
            fs::write(path, content)?;
        }
        let backup = common::back_up(&repository, &scratch.path("original")).await?;
        let options = Options { mount_above_bytes: 0, bring_in: false, ..Options::default() };
        Ok(Self { scratch, repository, backup, options })
    }

    fn base(&self) -> PathBuf {
        self.scratch.path("data/base")
    }

    async fn mount(&self) -> Result<Serving> {
        let target = self.scratch.path("data");
        let (repository, backup) = (self.repository.clone(), self.backup.clone());
        Ok(Instant::mount(repository, backup, &target, self.options.clone()).await?)
    }
}

fn open(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

fn at(file: &File, offset: usize, bytes: usize) -> Result<Vec<u8>> {
    let mut content = vec![0; bytes];
    file.read_exact_at(&mut content, offset as u64)?;
    Ok(content)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root: mounts a file system"]
async fn blocks_come_in_when_they_are_looked_at_and_only_then() -> Result<()> {
    let content = noise(1, 10 * BLOCK + 5000);
    let fixture = Fixture::new(&[("base/5/1", &content), ("PG_VERSION", b"15\n")]).await?;
    let serving = fixture.mount().await?;
    ensure!(fs::read(fixture.scratch.path("data/PG_VERSION"))? == b"15\n");
    let left = serving.progress().left_bytes;
    ensure!(left == content.len() as u64, "nothing is read for nothing");

    let file = open(&fixture.base().join("5/1"))?;
    ensure!(file.metadata()?.len() == content.len() as u64);
    ensure!(at(&file, 3 * BLOCK + 8192, 8192)? == content[3 * BLOCK + 8192..][..8192]);
    ensure!(serving.progress().left_bytes == left - BLOCK as u64);
    // A page in the middle of a block; over a border; the last bytes, and behind them.
    let mut expected = content.clone();
    for (offset, bytes) in [(6 * BLOCK + 8192, 8192), (9 * BLOCK - 10, 20), (content.len() - 1, 9)]
    {
        file.write_all_at(&vec![7; bytes], offset as u64)?;
        expected.resize(expected.len().max(offset + bytes), 0);
        expected[offset..offset + bytes].fill(7);
    }
    let mut all = Vec::new();
    open(&fixture.base().join("5/1"))?.read_to_end(&mut all)?;
    ensure!(all == expected);
    ensure!(serving.progress().left_bytes == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root: mounts a file system"]
async fn what_was_cut_off_never_comes_in_again() -> Result<()> {
    let content = noise(2, 6 * BLOCK + 77);
    let paths = ["base/5/1", "base/5/2", "base/5/3"];
    let fixture = Fixture::new(&paths.map(|path| (path, content.as_slice()))).await?;
    let serving = fixture.mount().await?;
    let cut = 2 * BLOCK + 8192;
    let mut expected = content[..cut].to_vec();
    expected.resize(5 * BLOCK, 0);

    let file = open(&fixture.base().join("5/1"))?;
    file.set_len(cut as u64)?;
    file.set_len(5 * BLOCK as u64)?;
    ensure!(fs::read(fixture.base().join("5/1"))? == expected);
    // By name, at a border; and to nothing, by opening.
    let second = fixture.base().join("5/2");
    rustix::fs::ftruncate(File::options().write(true).open(&second)?, 2 * BLOCK as u64)?;
    OpenOptions::new().write(true).open(&second)?.set_len(7 * BLOCK as u64)?;
    let mut of_second = content[..2 * BLOCK].to_vec();
    of_second.resize(7 * BLOCK, 0);
    ensure!(fs::read(&second)? == of_second);
    drop(File::create(fixture.base().join("5/3"))?);
    drop(file);
    serving.stop().await?;

    // Nor after the process went away.
    let mut serving = fixture.mount().await?;
    serving.start_bringing_in()?;
    serving.switch().await?;
    serving.unused().await;
    ensure!(fs::read(fixture.base().join("5/1"))? == expected);
    ensure!(fs::read(&second)? == of_second);
    ensure!(fs::read(fixture.base().join("5/3"))?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root: mounts a file system"]
async fn names_are_made_moved_linked_and_removed() -> Result<()> {
    let content = noise(3, 3 * BLOCK);
    let fixture =
        Fixture::new(&[("base/5/1", &content), ("base/5/2", &content), ("base/5/3", &content)])
            .await?;
    let mut serving = fixture.mount().await?;
    let dir = fixture.base().join("5");
    let names = || -> Result<Vec<String>> {
        let entries = fs::read_dir(&dir)?.map(|e| Ok(e?.file_name().display().to_string()));
        let mut names = entries.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    ensure!(names()? == ["1", "2", "3"]);

    // What is not there yet moves with its name, and with a second one.
    fs::rename(dir.join("1"), dir.join("moved"))?;
    fs::hard_link(dir.join("2"), dir.join("linked"))?;
    fs::remove_file(dir.join("2"))?;
    ensure!(fs::metadata(dir.join("linked"))?.nlink() == 1);
    // What is open is there until it is closed.
    let gone = open(&dir.join("3"))?;
    fs::remove_file(dir.join("3"))?;
    fs::write(dir.join("3"), b"another")?;
    ensure!(fs::read(dir.join("3"))? == b"another");
    ensure!(at(&gone, BLOCK, 100)? == content[BLOCK..][..100]);
    // As PostgreSQL replaces a file: written, synced, renamed over the old one, folder synced.
    let mut file = File::create(dir.join("new"))?;
    file.write_all(b"new")?;
    file.sync_all()?;
    fs::rename(dir.join("new"), dir.join("3"))?;
    File::open(&dir)?.sync_all()?;
    ensure!(fs::read(dir.join("3"))? == b"new");

    fs::create_dir(dir.join("sub"))?;
    ensure!(fs::remove_dir(&dir).unwrap_err().kind() == ErrorKind::DirectoryNotEmpty);
    symlink("../3", dir.join("sub/link"))?;
    ensure!(fs::read_link(dir.join("sub/link"))? == Path::new("../3"));
    ensure!(fs::read(dir.join("sub/link"))? == b"new");
    fs::set_permissions(dir.join("3"), fs::Permissions::from_mode(0o640))?;
    std::os::unix::fs::chown(dir.join("3"), Some(7), Some(8))?;
    let found = fs::metadata(dir.join("3"))?;
    ensure!((found.mode() & 0o7777, found.uid(), found.gid()) == (0o640, 7, 8));
    let exclusive = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join("3"));
    ensure!(exclusive.unwrap_err().kind() == ErrorKind::AlreadyExists);
    ensure!(fs::read(dir.join("none")).unwrap_err().kind() == ErrorKind::NotFound);
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 100_000)?;
    ensure!(fs::metadata(dir.join("3"))?.len() == 100_000);
    ensure!(rustix::fs::statvfs(&dir)?.f_blocks > 0);
    fs::remove_dir_all(dir.join("sub"))?;

    serving.start_bringing_in()?;
    serving.switch().await?;
    ensure!(names()? == ["3", "linked", "moved"]);
    ensure!(fs::read(dir.join("moved"))? == content && fs::read(dir.join("linked"))? == content);
    ensure!(at(&gone, 2 * BLOCK, 100)? == content[2 * BLOCK..][..100]);
    drop((gone, file));
    serving.unused().await;
    Ok(())
}

/// A file that was opened by the mount, and one that was opened by its name after the switch, are one:
/// content, length, cut and what was written.
fn are_one(by_mount: &mut File, by_name: &File) -> Result<()> {
    ensure!(by_mount.metadata()?.dev() != by_name.metadata()?.dev(), "the mount is still there");
    let end = by_name.metadata()?.len();
    let ends = |file: &mut File| file.seek(SeekFrom::End(0));
    for (round, length) in [8192_u64, 3 * 8192, 200_000].into_iter().enumerate() {
        // Longer, by name: PostgreSQL asks the open file where its end is, and writes there.
        by_name.write_all_at(&vec![round as u8 + 1; length as usize], end)?;
        ensure!(ends(by_mount)? == end + length);
        ensure!(
            at(by_mount, end as usize, length as usize)? == vec![round as u8 + 1; length as usize]
        );
        by_mount.write_all_at(&[9; 8192], end + length)?;
        ensure!(by_name.metadata()?.len() == end + length + 8192);
        ensure!(at(by_name, (end + length) as usize, 8192)? == [9; 8192]);
        by_mount.sync_data()?;
        by_name.set_len(end)?;
        ensure!(ends(by_mount)? == end);
        ensure!(by_mount.read_at(&mut [0; 10], end)? == 0);
        by_mount.set_len(end - 8192)?;
        ensure!(by_name.metadata()?.len() == end - 8192);
        by_name.set_len(end)?;
        ensure!(at(by_mount, end as usize - 8192, 8192)? == [0; 8192]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root: mounts a file system"]
async fn after_the_switch_open_files_and_names_lead_to_the_same() -> Result<()> {
    let content = noise(4, 4 * BLOCK);
    let fixture = Fixture::new(&[("base/5/1", &content), ("base/5/2", &content)]).await?;
    let mut serving = fixture.mount().await?;
    let (first, second, third) =
        (fixture.base().join("5/1"), fixture.base().join("5/2"), fixture.base().join("5/3"));
    // Opened before it is local (direct), when it is (passed through), and made by the mount.
    let mut before = open(&first)?;
    ensure!(at(&before, 0, 8192)? == content[..8192]);
    drop(fs::read(&second)?);
    let mut when_local = open(&second)?;
    let mut made = File::options().read(true).write(true).create_new(true).open(&third)?;
    made.write_all(&content)?;
    serving.start_bringing_in()?;
    serving.switch().await?;

    ensure!(serving.open_handles() == 3, "{}", serving.open_handles());
    for (by_mount, path) in [(&mut before, &first), (&mut when_local, &second), (&mut made, &third)]
    {
        let by_name = open(path)?;
        ensure!(fs::read(path)? == content);
        are_one(by_mount, &by_name)?;
    }
    // Removed by its name, it is there for who has it open.
    fs::remove_file(&first)?;
    ensure!(at(&before, 0, 8192)? == content[..8192]);
    drop((before, when_local, made));
    serving.unused().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root: mounts a file system"]
async fn a_block_that_is_damaged_is_an_error_and_all_else_comes_in() -> Result<()> {
    let content = noise(5, 8 * BLOCK);
    let fixture = Fixture::new(&[("base/5/1", &content)]).await?;
    let packs = fixture.scratch.path("repository/packs").join(&fixture.backup.id);
    let pack = fs::read_dir(&packs)?.next().unwrap()?.path();
    let whole = fs::read(&pack)?;
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&pack, &flipped)?;
    let mut serving = fixture.mount().await?;
    serving.start_bringing_in()?;
    let wait_for = async |done: &dyn Fn(&Serving) -> bool, serving: &Serving| {
        while !done(serving) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    wait_for(&|serving| serving.progress().error.is_some(), &serving).await;
    let error = serving.progress().error.unwrap_or_default();
    ensure!(error.contains("damaged"), "{error}");
    let file = open(&fixture.base().join("5/1"))?;
    let read: Vec<_> = (0..8).map(|block| at(&file, block * BLOCK, BLOCK).ok()).collect();
    ensure!(read.iter().filter(|block| block.is_none()).count() == 1, "one block is damaged");
    for (block, content) in read.iter().zip(content.chunks(BLOCK)) {
        ensure!(block.as_ref().is_none_or(|block| block == content), "never a wrong one");
    }
    // Once it is mended, it goes on by itself.
    fs::write(&pack, &whole)?;
    drop(file);
    serving.switch().await?;
    serving.unused().await;
    ensure!(fs::read(fixture.base().join("5/1"))? == content);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root: mounts a file system"]
async fn what_makes_no_sense_is_refused() -> Result<()> {
    let content = noise(6, BLOCK);
    let fixture = Fixture::new(&[("base/5/1", &content)]).await?;
    fs::create_dir(fixture.scratch.path("data"))?;
    fs::write(fixture.scratch.path("data/mine"), b"mine")?;
    let said = |mounted: Result<Serving>| mounted.err().map(|e| e.to_string()).unwrap_or_default();
    let error = said(fixture.mount().await);
    ensure!(error.contains("not empty (there is mine)"), "{error}");
    fs::remove_file(fixture.scratch.path("data/mine"))?;
    let serving = fixture.mount().await?;
    let error = said(fixture.mount().await);
    ensure!(error.contains("another process serves"), "{error}");
    fs::write(fixture.scratch.path("data/postmaster.pid"), b"1\n")?;
    let serving = match serving.stop().await {
        Err(error) => {
            ensure!(error.to_string().contains("stop it first"), "{error}");
            fs::remove_file(fixture.scratch.path("data/postmaster.pid"))?;
            fixture.mount().await.map_err(|e| e.to_string())
        }
        Ok(()) => Err("it was stopped under a database".to_owned()),
    };
    // What was dropped is served as long as the process lives.
    ensure!(serving.is_err_and(|e| e.contains("another process serves")));
    ensure!(fs::read(fixture.base().join("5/1"))? == content);

    let fixture = Fixture::new(&[("base/5/1", &content)]).await?;
    fixture.mount().await?.stop().await?;
    let mut other = fixture.backup.clone();
    other.id = "another".to_owned();
    let other = Fixture { backup: other, ..fixture };
    let error = said(other.mount().await);
    ensure!(
        error.contains("is being restored from backup") && error.contains("another"),
        "{error}"
    );
    Ok(())
}
