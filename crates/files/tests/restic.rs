//! Beside the `restic` program: it reads, checks and restores what we wrote, and we what it wrote.

mod common;

use common::{Tree, files, progress, set};
use sempre_backup::{Retention, Secret};
use sempre_files::{Error, How};
use std::{fs, os::unix::ffi::OsStrExt, path::Path, process::Command};

/// Bytes of the file that has two names, and is restored once.
const LINKED: u64 = 6;

struct Restic {
    folder: std::path::PathBuf,
    password: std::path::PathBuf,
}

impl Restic {
    fn of(root: &Path, key: &Secret) -> Self {
        let password = root.join("key.txt");
        fs::write(&password, format!("{}\n", key.to_text())).unwrap();
        Self { folder: root.join("store/files"), password }
    }

    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new("restic");
        command.arg("--no-cache").arg("-r").arg(&self.folder);
        command.arg("--password-file").arg(&self.password).args(arguments);
        let done = command.output().expect("restic is installed (scripts/setup.sh --test)");
        let said = [done.stdout, done.stderr].concat();
        (done.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    fn expect(&self, arguments: &[&str]) -> String {
        let (ok, said) = self.run(arguments);
        assert!(ok, "restic {arguments:?}: {said}");
        said
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restic_lists_checks_and_restores_what_we_wrote_and_so_do_we() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let source = root.path().join("srv/uploads");
    let tree = Tree::make(&source);
    let key = Secret::random();
    let files = files(root.path(), &key);
    let set = set("uploads", &source);
    let made = files.back_up(&set, How::default(), progress()).await?;
    assert_eq!((made.vanished, made.changed), (0, 0));

    let restic = Restic::of(root.path(), &key);
    let listed = restic.expect(&["snapshots"]);
    assert!(listed.contains(&made.id[..8]) && listed.contains("sempre:uploads"), "{listed}");
    assert!(restic.expect(&["check", "--read-data"]).contains("no errors were found"));
    let by_restic = root.path().join("by-restic");
    restic.expect(&["restore", &made.id, "--target", by_restic.to_str().unwrap()]);
    let below = source.strip_prefix("/")?;
    // That such a target is bytes, restic knows from 0.17 on.
    tree.expect_at_but(&by_restic.join(below), "link to bytes");

    let by_us = root.path().join("by-us");
    let restored = files.restore("uploads", None, &by_us, 3, progress()).await?;
    assert_eq!(
        (restored.snapshot.id.as_str(), restored.bytes),
        (made.id.as_str(), made.bytes - LINKED)
    );
    tree.expect_at(&by_us.join(below));
    assert!(tree.is_sparse(&by_us.join(below)), "holes stay holes");

    // A limit is kept.
    let slow = How { full: true, max_bytes_per_s: Some(40_000_000) };
    let limited = files.back_up(&set, slow, progress()).await?;
    assert!(limited.took_ms > (limited.bytes - LINKED) / 40_000, "{limited:?}");
    // Files that restic adds to our snapshots do not harm ours, and are left alone by retention.
    restic.expect(&["backup", source.join("plain").to_str().unwrap()]);
    let again = files.back_up(&set, How::default(), progress()).await?;
    assert!(again.stored_bytes < 20_000, "nothing is new: {again:?}");
    let rules = Retention { last: 1, ..Retention::default() };
    let pruned = files.prune(&rules, again.took_ms).await?;
    assert_eq!(pruned.snapshots, [made.id.clone(), limited.id]);
    let left: Vec<_> = files.snapshots().await?.into_iter().map(|s| (s.set, s.id)).collect();
    assert_eq!(left.len(), 2);
    assert!(left.contains(&(Some("uploads".into()), again.id.clone())), "{left:?}");
    restic.expect(&["check", "--read-data"]);
    assert!(files.check(progress()).await?.damages.is_empty());
    let second = root.path().join("second");
    files.restore("uploads", Some(&again.id[..10]), &second, 2, progress()).await?;
    tree.expect_at(&second.join(below));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_is_stored_and_each_snapshot_comes_back_as_it_was() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let source = root.path().join("data");
    let before = Tree::make(&source);
    let key = Secret::random();
    let files = files(root.path(), &key);
    let mut set = set("data", &source);
    set.excludes = vec!["*.tmp".into(), "/cache/".into()];
    for left_out in ["x.tmp", "deep/y.tmp"] {
        fs::write(source.join(left_out), "gone")?;
    }
    fs::create_dir(source.join("cache"))?;
    fs::write(source.join("cache/z"), "gone")?;
    before.restore_times(&source);
    let first = files.back_up(&set, How::default(), progress()).await?;
    fs::write(source.join("plain"), "another text")?;
    fs::remove_file(source.join("deep/er/big"))?;
    let second = files.back_up(&set, How::default(), progress()).await?;
    assert_ne!(first.id, second.id);
    let restic = Restic::of(root.path(), &key);
    let listed = restic.expect(&["ls", &second.id]);
    assert!(!listed.contains(".tmp\n") && !listed.contains("/cache") && !listed.contains("/big"));

    let below = source.strip_prefix("/")?;
    let old = root.path().join("old");
    files.restore("data", Some(&first.id), &old, 2, progress()).await?;
    before.expect_at(&old.join(below));
    let new = root.path().join("new");
    files.restore("data", None, &new, 2, progress()).await?;
    assert_eq!(fs::read(new.join(below).join("plain"))?, b"another text");
    assert!(!new.join(below).join("deep/er/big").exists());
    // Not over what is there.
    let again = files.restore("data", None, &new, 2, progress()).await;
    assert!(matches!(again, Err(Error::Refused(_))), "{again:?}");
    let unknown = files.restore("other", None, &root.path().join("no"), 2, progress()).await;
    assert!(matches!(unknown, Err(Error::NoSnapshot { .. })), "{unknown:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_opens_nothing_until_the_key_is_changed() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let source = root.path().join("data");
    fs::create_dir(&source)?;
    fs::write(source.join("a"), "a")?;
    let (key, other) = (Secret::random(), Secret::random());
    let (ours, theirs) = (files(root.path(), &key), files(root.path(), &other));
    ours.back_up(&set("data", &source), How::default(), progress()).await?;
    let refused = theirs.snapshots().await;
    assert!(matches!(refused, Err(Error::WrongKey { .. })), "{refused:?}");
    let refused = theirs.back_up(&set("data", &source), How::default(), progress()).await;
    assert!(matches!(refused, Err(Error::WrongKey { .. })), "{refused:?}");
    assert!(!Restic::of(root.path(), &other).run(&["snapshots"]).0);

    ours.change_key(&other).await?;
    assert_eq!(theirs.snapshots().await?.len(), 1);
    assert!(matches!(ours.snapshots().await, Err(Error::WrongKey { .. })));
    Restic::of(root.path(), &other).expect(&["check", "--read-data"]);
    assert!(!Restic::of(root.path(), &key).run(&["snapshots"]).0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_that_is_wrong_is_found_and_never_restored() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let source = root.path().join("data");
    let tree = Tree::make(&source);
    let key = Secret::random();
    let files = files(root.path(), &key);
    files.back_up(&set("data", &source), How::default(), progress()).await?;
    assert_eq!(files.check(progress()).await?.damages, Vec::<String>::new());

    let packs = common::objects(&root.path().join("store/files/data"));
    assert!(packs.len() >= 2, "contents and lists: {packs:?}");
    for (index, pack) in packs.iter().enumerate() {
        let whole = fs::read(pack)?;
        let mut damaged = whole.clone();
        let at = damaged.len() / 3;
        damaged[at] ^= 1;
        fs::write(pack, &damaged)?;
        let found = files.check(progress()).await?;
        assert!(!found.damages.is_empty(), "a flipped byte in {}", pack.display());
        let target = root.path().join(format!("damaged-{index}"));
        let restored = files.restore("data", None, &target, 2, progress()).await;
        assert!(restored.is_err(), "restored from a damaged pack");
        fs::remove_file(pack)?;
        assert!(!files.check(progress()).await?.damages.is_empty(), "a missing pack");
        fs::write(pack, whole)?;
    }
    let target = root.path().join("whole");
    files.restore("data", None, &target, 2, progress()).await?;
    tree.expect_at(&target.join(source.strip_prefix("/")?));

    // Without its own file it is not begun anew over what is there.
    let config = root.path().join("store/files/config");
    fs::rename(&config, root.path().join("config"))?;
    let begun = files.back_up(&set("data", &source), How::default(), progress()).await;
    assert!(matches!(begun, Err(Error::Damaged { .. })), "{begun:?}");
    assert!(!files.check(progress()).await?.damages.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_fails_the_backup_and_leaves_no_snapshot() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let source = root.path().join("data");
    fs::create_dir(&source)?;
    fs::write(source.join("good"), vec![3; 300_000])?;
    let key = Secret::random();
    let files = files(root.path(), &key);
    let mut set = set("data", &source);

    // The kernel itself refuses to have it read, to root as well: a loopback has no speed.
    let unreadable = Path::new("/sys/devices/virtual/net/lo/speed");
    assert!(fs::read(unreadable).is_err() && unreadable.metadata()?.is_file());
    let cases: [(&Path, &str); 3] = [
        (unreadable, "speed"),
        (&root.path().join("not-mounted"), "No such file"),
        (&root.path().join("link"), "symbolic link"),
    ];
    std::os::unix::fs::symlink(&source, root.path().join("link"))?;
    for (path, word) in cases {
        set.paths = vec![source.clone(), path.to_owned()];
        let made = files.back_up(&set, How::default(), progress()).await;
        let Err(Error::Unreadable { count: 1, first }) = made else {
            panic!("{}: {made:?}", path.display())
        };
        assert!(first[0].contains(word), "{first:?}");
        assert!(files.snapshots().await?.is_empty(), "no snapshot of a part");
    }

    // A folder that only others may enter; root enters every one.
    if !nix::unistd::Uid::effective().is_root() {
        let closed = source.join("closed");
        fs::create_dir(&closed)?;
        fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o000))?;
        set.paths = vec![source.clone()];
        assert!(matches!(
            files.back_up(&set, How::default(), progress()).await,
            Err(Error::Unreadable { .. })
        ));
        fs::remove_dir(&closed)?;
    }

    // What was stored meanwhile is there already, and the next one is whole.
    set.paths = vec![source.clone()];
    let made = files.back_up(&set, How::default(), progress()).await?;
    assert_eq!(files.snapshots().await?.len(), 1);
    assert_eq!(made.bytes, 300_000);
    Restic::of(root.path(), &key).expect(&["check", "--read-data"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_of_the_beginning_does_not_stand_in_the_way() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let source = root.path().join("data");
    fs::create_dir(&source)?;
    fs::write(source.join(std::ffi::OsStr::from_bytes(b"\xff")), "a")?;
    let key = Secret::random();
    let files = files(root.path(), &key);
    files.back_up(&set("data", &source), How::default(), progress()).await?;
    // As after a crash between the key and the file that makes it a repository.
    let store = root.path().join("store/files");
    for gone in ["config", "data", "index", "locks", "snapshots"] {
        let path = store.join(gone);
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    assert_eq!(common::objects(&store).len(), 1, "its key");
    assert!(files.snapshots().await?.is_empty());
    files.back_up(&set("data", &source), How::default(), progress()).await?;
    assert_eq!(common::objects(&store.join("keys")).len(), 1);
    Restic::of(root.path(), &key).expect(&["check", "--read-data"]);
    Ok(())
}
