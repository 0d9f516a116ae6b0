//! What is made before the database starts: every directory, link and file of the backup, with its length and
//! permissions, and nothing in it.
//!
//! It takes a few system calls a file, and reading the backup's list of files once; nothing of it depends on
//! how much is in the files.

use crate::{
    Error, Options, Result, gate,
    place::{self, Place, TABLESPACES},
    source::{Source, Wanted},
    state::{
        self, Header, PlaceRecord, STATE_DIR, State,
        files::{FilesWriter, Record},
    },
};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, openat};
use sempre_backup::{Block, Entry, Segment, What};
use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    ops::Range,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Segments of the list of files that are read ahead.
const SEGMENTS_AHEAD: usize = 4;

/// Makes the files of a backup, and the state that goes with them.
pub(crate) struct Skeleton<'a> {
    source: &'a Source,
    target: &'a Path,
    options: &'a Options,
    owner: (u32, u32),
    header: Header,
    writer: FilesWriter,
    place_of: BTreeMap<String, u32>,
    bytes_of: BTreeMap<String, u64>,
    /// Runs of blocks of zeros, by file: they are there already.
    zeros: Vec<(u32, Range<u32>)>,
}

/// Makes everything. `lock` is held by the state from then on.
pub(crate) fn build(
    source: &Source,
    target: &Path,
    options: &Options,
    lock: File,
) -> Result<State> {
    let at = fs::metadata(target).map_err(Error::io("look at", target))?;
    let owner = options.owner.unwrap_or((at.uid(), at.gid()));
    let writer = FilesWriter::create(&target.join(STATE_DIR).join("files"))?;
    let mut header = Header::new(&source.backup.id);
    let record = PlaceRecord { prefix: String::new(), at: target.to_owned(), mounted: false };
    header.places.push(record);
    let mut skeleton = Skeleton {
        source,
        target,
        options,
        owner,
        header,
        writer,
        place_of: BTreeMap::new(),
        bytes_of: BTreeMap::new(),
        zeros: Vec::new(),
    };
    skeleton.own(target)?;
    skeleton.make_all()?;
    skeleton.finish(lock)
}

impl Skeleton<'_> {
    fn make_all(&mut self) -> Result<()> {
        let backup = &self.source.backup;
        let mut numbers = 0..backup.sorted_segments + backup.late_segments;
        let mut ahead = VecDeque::new();
        let mut made = 0;
        loop {
            while ahead.len() < SEGMENTS_AHEAD {
                let Some(number) = numbers.next() else { break };
                let (repository, id) = (self.source.repository.clone(), backup.id.clone());
                ahead.push_back(
                    self.source.runtime.spawn(async move { repository.segment(&id, number).await }),
                );
            }
            let Some(next) = ahead.pop_front() else { return Ok(()) };
            let segment = self.source.runtime.block_on(next);
            let segment = segment.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))?;
            self.make_segment(&segment, made)?;
            made += 1;
        }
    }

    fn make_segment(&mut self, segment: &Segment, number: u32) -> Result<()> {
        for (at, entry) in segment.entries.iter().enumerate() {
            check_path(&entry.path)?;
            let entry_number = u32::try_from(at).expect("a segment is small");
            match &entry.what {
                What::Dir => self.make_dir(&entry.path, entry.mode)?,
                What::Link(_) if place::is_tablespace(&entry.path) => {
                    self.make_tablespace(&entry.path)?;
                }
                What::Link(target) => self.make_link(&entry.path, target)?,
                What::File { bytes, blocks, .. } => {
                    let record = Record {
                        segment: number,
                        entry: entry_number,
                        place: self.place(&entry.path, *bytes)?,
                        blocks: u32::try_from(blocks.len()).map_err(|_| too_long(entry))?,
                        first_word: 0,
                        bytes: *bytes,
                    };
                    self.make_file(entry, record, blocks)?;
                }
            }
        }
        Ok(())
    }

    /// The number of the place of a file.
    fn place(&mut self, path: &str, bytes: u64) -> Result<u32> {
        let Some(prefix) = place::prefix_of(path) else { return Ok(0) };
        *self.bytes_of.entry(prefix.to_owned()).or_default() += bytes;
        if let Some(known) = self.place_of.get(prefix) {
            return Ok(*known);
        }
        let at = self.target.join(prefix);
        let at = fs::canonicalize(&at).map_err(Error::io("follow", &at))?;
        let number = u32::try_from(self.header.places.len()).expect("they are few");
        let record = PlaceRecord { prefix: prefix.to_owned(), at, mounted: false };
        self.header.places.push(record);
        self.place_of.insert(prefix.to_owned(), number);
        Ok(number)
    }

    fn make_dir(&self, path: &str, mode: u32) -> Result<()> {
        let at = self.target.join(path);
        self.make_dir_at(&at)?;
        fs::set_permissions(&at, Permissions::from_mode(mode))
            .map_err(Error::io("set the permissions of", &at))
    }

    fn make_dir_at(&self, at: &Path) -> Result<()> {
        let made = match DirBuilder::new().recursive(true).mode(0o700).create(at) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        made.map_err(Error::io("make", at))?;
        self.own(at)
    }

    fn own(&self, at: &Path) -> Result<()> {
        let (user, group) = (Uid::from_raw(self.owner.0), Gid::from_raw(self.owner.1));
        chownat(CWD, at, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(Error::io("set the owner of", at))
    }

    fn make_link(&self, path: &str, target: &str) -> Result<()> {
        let at = self.target.join(path);
        symlink(target, &at).map_err(Error::io("link", &at))?;
        self.own(&at)
    }

    fn make_tablespace(&self, path: &str) -> Result<()> {
        let oid = path.trim_start_matches(TABLESPACES).trim_start_matches('/');
        let known = &self.source.backup.tablespaces;
        let was = known.iter().find(|(known, _)| known == oid).map(|(_, at)| PathBuf::from(at));
        let place = self.options.tablespaces.get(oid).cloned().or(was).ok_or_else(|| {
            Error::Refused(format!("name a place for tablespace {oid} (--tablespace {oid}=FOLDER)"))
        })?;
        self.make_dir_at(&place)?;
        let mut there = fs::read_dir(&place).map_err(Error::io("list", &place))?;
        if there.next().is_some() {
            return Err(Error::Refused(format!(
                "{} is not empty: name another place for tablespace {oid} (--tablespace {oid}=FOLDER)",
                place.display()
            )));
        }
        let at = self.target.join(path);
        symlink(&place, &at).map_err(Error::io("link", &at))?;
        self.own(&at)
    }

    fn make_gate(&self, entry: &Entry, record: &Record) -> Result<()> {
        let at = self.target.join(gate::FILE);
        let mut content = Vec::new();
        self.source.read(record, 0..record.blocks, Wanted::Behind, |_, block| {
            content.extend_from_slice(block);
            Ok(())
        })?;
        let file = File::create_new(&at).map_err(Error::io("make", &at))?;
        file.set_permissions(Permissions::from_mode(entry.mode))
            .map_err(Error::io("set the permissions of", &at))?;
        gate::close(file, self.target, &content)?;
        self.own(&at)?;
        self.own(&self.target.join(STATE_DIR).join(gate::FILE))
    }

    fn make_file(&mut self, entry: &Entry, record: Record, blocks: &[Block]) -> Result<()> {
        if entry.path == gate::FILE {
            return self.make_gate(entry, &record);
        }
        let at = self.target.join(&entry.path);
        let token = self.header.token;
        let number = self.writer.push(record)?;
        let make = || {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let file = options.open(&at)?;
            file.set_len(record.bytes)?;
            file.set_permissions(Permissions::from_mode(entry.mode))?;
            if record.blocks > 0 {
                state::set_mark(&file, token, number)?;
            }
            Ok(())
        };
        make().map_err(|source: io::Error| match source.raw_os_error() {
            Some(errno) if errno == rustix::io::Errno::NOTSUP.raw_os_error() => {
                Error::Refused(format!(
                    "the file system of {} has no extended attributes (user.*), which files need while they are brought in: take another file system, or restore without --instant",
                    at.display()
                ))
            }
            _ => Error::Io { doing: "make", path: at.clone(), source },
        })?;
        self.own(&at)?;
        self.header.total_bytes += record.bytes;
        let mut next = 0;
        for run in blocks.chunk_by(|a, b| (*a == Block::Zero) == (*b == Block::Zero)) {
            let end = next + run.len() as u32;
            if run[0] == Block::Zero {
                self.zeros.push((number, next..end));
            }
            next = end;
        }
        Ok(())
    }

    fn finish(mut self, lock: File) -> Result<State> {
        let mounted = place::mounted(&self.bytes_of, self.options.mount_above_bytes);
        for place in &mut self.header.places {
            place.mounted = mounted.contains(&place.prefix);
        }
        let files = self.writer.finish()?;
        let places = open_places(&self.header)?;
        // Before the header: nothing may be served that a power failure could take away.
        for place in &places {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(&place.dir, ".", flags, Mode::empty())
                .and_then(rustix::fs::syncfs)
                .map_err(Error::io("sync", &place.at))?;
        }
        let state = State::begin(self.target, self.header, files, lock)?;
        for (number, blocks) in self.zeros {
            let record = state.files.get(number)?;
            blocks.for_each(|block| state.bits.set_local(&record, block));
        }
        Ok(state)
    }
}

/// Opens the places, before anything is mounted there.
pub(crate) fn open_places(header: &Header) -> Result<Vec<Arc<Place>>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |record: &PlaceRecord| {
        let dir = openat(CWD, &record.at, flags, Mode::empty());
        let dir = dir.map_err(Error::io("open", &record.at))?;
        let (prefix, at) = (record.prefix.clone(), record.at.clone());
        Ok(Arc::new(Place { prefix, at, mounted: record.mounted, dir }))
    };
    header.places.iter().map(open).collect()
}

/// Paths come from the repository: none leads out of the target.
fn check_path(path: &str) -> Result<()> {
    let fine = path.split('/').all(|word| !word.is_empty() && word != "." && word != "..");
    if fine && !path.starts_with(STATE_DIR) {
        return Ok(());
    }
    let (key, why) = (path.to_owned(), "it is no path in a data directory".to_owned());
    Err(sempre_backup::Error::Damaged { key, why }.into())
}

fn too_long(entry: &Entry) -> Error {
    Error::Refused(format!("{} is too long", entry.path))
}
