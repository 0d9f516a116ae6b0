//! A folder with everything in it that a folder can have.

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lgetxattr, lsetxattr, utimensat};
use sempre_backup::{Folder, Progress, Secret};
use sempre_files::{Files, Set};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, Permissions},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes of the file that is a hole for the most part.
const SPARSE: u64 = 64 << 20;

pub fn files(root: &Path, key: &Secret) -> Files {
    Files::new(Arc::new(Folder::new(root.join("store"))), key.clone())
}

pub fn progress() -> Arc<Progress> {
    Arc::new(Progress::default())
}

pub fn set(name: &str, path: &Path) -> Set {
    Set {
        name: name.to_owned(),
        member: "m1".into(),
        paths: vec![path.to_owned()],
        excludes: Vec::new(),
    }
}

/// All files below a folder.
pub fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(objects(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// What is known of an entry: permissions, owner, time, link or contents.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    what: What,
    attribute: Option<Vec<u8>>,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Dir,
    Link(PathBuf),
    File { bytes: u64, hash: u64, links: u64 },
    Other,
}

/// A folder as it was made.
pub struct Tree(BTreeMap<PathBuf, Seen>);

impl Tree {
    /// Makes one.
    pub fn make(root: &Path) -> Self {
        fs::create_dir_all(root.join("deep/er")).unwrap();
        fs::create_dir(root.join("empty folder")).unwrap();
        fs::write(root.join("plain"), "a text").unwrap();
        fs::write(root.join("empty"), "").unwrap();
        let noise = |seed: u64, length: usize| -> Vec<u8> {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u8
            };
            (0..length).map(|_| next()).collect()
        };
        fs::write(root.join("deep/er/big"), noise(1, 9_000_000)).unwrap();
        for n in 0..200 {
            fs::write(root.join(format!("deep/{n}.bin")), noise(n, n as usize * 97)).unwrap();
        }
        let sparse = File::create(root.join("sparse")).unwrap();
        sparse.set_len(SPARSE).unwrap();
        sparse.write_all_at(b"an island", SPARSE / 2).unwrap();
        for name in
            [&b"no utf-8 \xff\xfe"[..], b"quote \" and \\ and \n line", "käse 🧀".as_bytes(), b" "]
        {
            fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
        }
        let odd_folder = root.join(OsStr::from_bytes(b"folder \xc3\x28"));
        fs::create_dir(&odd_folder).unwrap();
        fs::write(odd_folder.join("inside"), "x").unwrap();
        symlink("plain", root.join("link")).unwrap();
        symlink("/does/not/exist", root.join("dangling")).unwrap();
        symlink(OsStr::from_bytes(b"to \xff"), root.join("link to bytes")).unwrap();
        fs::hard_link(root.join("plain"), root.join("deep/plain too")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o620))
            .unwrap();
        let mode = |name: &str, mode| {
            fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
        };
        mode("deep/7.bin", 0o4751);
        mode("deep/8.bin", 0o400);
        mode("deep/er", 0o2775);
        mode("empty folder", 0o1777);
        let name = "user.sempre.test";
        let set = lsetxattr(root.join("deep/9.bin"), name, b"of\0value", XattrFlags::empty());
        if let Err(error) = set {
            assert_eq!(error, rustix::io::Errno::NOTSUP);
        }
        let made = Self(BTreeMap::new());
        made.restore_times(root);
        Self(look(root))
    }

    /// Gives everything below it times of its own: some before 1970, to the nanosecond.
    pub fn restore_times(&self, root: &Path) {
        let mut all: Vec<PathBuf> = look(root).into_keys().collect();
        all.reverse();
        for path in all {
            let seed = path.as_os_str().len() as i64;
            let time = Timespec { tv_sec: 1_000_000 * seed - 5_000_000, tv_nsec: 987_654_321 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, root.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
    }

    /// Is it the same there?
    pub fn expect_at(&self, root: &Path) {
        self.expect_at_but(root, "");
    }

    /// Is it the same there, but for one that needs only be there?
    pub fn expect_at_but(&self, root: &Path, other: &str) {
        let found = look(root);
        let names = |seen: &BTreeMap<PathBuf, Seen>| seen.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&self.0));
        for (path, seen) in
            self.0.iter().filter(|(path, _)| *path != Path::new(other) || other.is_empty())
        {
            assert_eq!(found[path], *seen, "{}", path.display());
        }
    }

    pub fn is_sparse(&self, root: &Path) -> bool {
        let metadata = root.join("sparse").metadata().unwrap();
        metadata.blocks() * 512 < metadata.len() / 2
    }
}

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let what = if kind.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            What::Dir
        } else if kind.is_symlink() {
            What::Link(fs::read_link(&path).unwrap())
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            let hash = bytes.iter().fold(14_695_981_039_346_656_037_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(1_099_511_628_211)
            });
            What::File { bytes: metadata.len(), hash, links: metadata.nlink() }
        } else {
            What::Other
        };
        let mut attribute = [0; 64];
        let attribute = lgetxattr(&path, "user.sempre.test", &mut attribute[..])
            .ok()
            .map(|length| attribute[..length].to_vec());
        let seen = Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            what,
            attribute,
        };
        found.insert(path.strip_prefix(root).unwrap().to_owned(), seen);
    }
    found
}
