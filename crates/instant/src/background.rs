//! Bringing in what nobody has asked for yet: in the order in which the repository has it, several threads at
//! a time, giving way to those that somebody waits for.

use crate::{Error, Options, Result, file::Pending, shared::Shared, state::files::Record};
use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Blocks that one thread brings in at a time: 2 MiB. Foreground reads wait for no more.
const RUN_BLOCKS: u32 = 16;
/// How long what came in may be unknown on disk: so much is brought in again after a crash.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// After a failure it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How often the threads look whether they should stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Files that are found in one go when all are looked at; each is open.
const OTHERS_MAX: usize = 256;
/// The threads are nicer than the database.
const NICENESS: i32 = 10;

/// Which files are brought in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that are not in a mounted place: before the database starts.
    Unmounted,
    /// All.
    All,
}

/// A run of blocks that one thread brings in.
struct Job {
    file: Arc<Pending>,
    blocks: Range<u32>,
}

/// Keeps to a rate.
struct Throttle {
    begun: Instant,
    bytes: AtomicU64,
    max_per_s: Option<u64>,
}

impl Throttle {
    fn wait(&self, shared: &Shared, bytes: u64) {
        let Some(max) = self.max_per_s else { return };
        let total = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = Duration::from_secs_f64(total as f64 / max.max(1) as f64);
        while !shared.is_stopped() && self.begun.elapsed() < due {
            thread::sleep(LOOK_EVERY.min(due - self.begun.elapsed().min(due)));
        }
    }
}

/// Brings everything in; comes back when all is local and known on disk to be, or when stopped.
pub(crate) fn run(shared: &Arc<Shared>, options: &Options) -> Result<()> {
    let began = Instant::now();
    while !shared.is_stopped() {
        match bring_in(shared, options, Which::All).and_then(|()| bring_in_others(shared)) {
            Ok(()) => {
                shared.note(None);
                break;
            }
            Err(error) => {
                tracing::warn!("bringing in goes on in a moment: {error}");
                shared.note(Some(&error));
                let until = Instant::now() + RETRY_AFTER;
                while !shared.is_stopped() && Instant::now() < until {
                    thread::sleep(LOOK_EVERY);
                }
            }
        }
    }
    if shared.is_stopped() {
        return shared.save();
    }
    shared.save()?;
    shared.left_bytes.store(0, Ordering::Relaxed);
    tracing::info!("all files are local after {:?}", began.elapsed());
    Ok(())
}

/// Every so often, saves what came in.
pub(crate) fn save_regularly(shared: &Arc<Shared>) {
    let mut saved = Instant::now();
    while !shared.is_stopped() {
        thread::sleep(LOOK_EVERY);
        if saved.elapsed() >= SAVE_EVERY || shared.has_much_unsaved() {
            if let Err(error) = shared.save() {
                tracing::error!("{error}");
                shared.note(Some(&error));
            }
            saved = Instant::now();
        }
    }
}

/// Brings in files where the backup has them.
pub(crate) fn bring_in(shared: &Arc<Shared>, options: &Options, which: Which) -> Result<()> {
    let throttle = Throttle {
        begun: Instant::now(),
        bytes: AtomicU64::new(0),
        max_per_s: options.max_bytes_per_s.filter(|_| which == Which::All),
    };
    let jobs = Mutex::new(Jobs { shared, which, next: 0, current: None });
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                if which == Which::All {
                    // Of the calling thread only, and no harm if it may not.
                    let _ = rustix::process::setpriority_process(None, NICENESS);
                }
                let failed = |error| {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                };
                while !shared.is_stopped() {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let job = match job {
                        Ok(None) => return,
                        Err(error) => return failed(error),
                        Ok(Some(job)) => job,
                    };
                    let length = u64::from(job.blocks.end - job.blocks.start);
                    throttle.wait(shared, length * shared.source.block_bytes());
                    // One broken object keeps nothing else out.
                    if let Err(error) = job.file.bring_in_behind(shared, job.blocks) {
                        failed(error);
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Hands out runs of blocks that are missing, file by file in the order of the records.
struct Jobs<'a> {
    shared: &'a Shared,
    which: Which,
    next: u32,
    current: Option<(Arc<Pending>, u32)>,
}

impl Jobs<'_> {
    fn next(&mut self) -> Result<Option<Job>> {
        loop {
            if let Some((file, from)) = self.current.take() {
                let missing = |b: &u32| !self.shared.state.bits.is_local(&file.record, *b);
                if let Some(begin) = (from..file.record.blocks).find(missing) {
                    let end = (begin + RUN_BLOCKS).min(file.record.blocks);
                    self.current = Some((file.clone(), end));
                    return Ok(Some(Job { file, blocks: begin..end }));
                }
            }
            if self.next == self.shared.state.files.count() {
                return Ok(None);
            }
            let number = self.next;
            self.next += 1;
            self.current = self.open(number)?.map(|file| (file, 0));
        }
    }

    /// The file, where the backup has it, if it is the same still and something is missing.
    fn open(&self, number: u32) -> Result<Option<Arc<Pending>>> {
        let record = self.shared.state.files.get(number)?;
        let place = &self.shared.places[record.place as usize];
        let wanted = self.which == Which::All || !place.mounted;
        if !wanted || self.shared.state.bits.missing(&record) == 0 {
            return Ok(None);
        }
        let path = self.path(&record)?;
        let Some(file) = self.shared.local(&record, &path)? else { return Ok(None) };
        let pending = self.shared.pending(&Arc::new(file))?;
        Ok(pending.filter(|pending| pending.number == number))
    }

    fn path(&self, record: &Record) -> Result<String> {
        let segment = self.shared.source.segment(record.segment)?;
        Ok(crate::source::blocks_of(&segment, record)?.0.to_owned())
    }
}

/// Brings in what has another name by now, or none, until there is nothing.
fn bring_in_others(shared: &Arc<Shared>) -> Result<()> {
    while !shared.is_stopped() {
        let others = others(shared)?;
        if others.is_empty() {
            break;
        }
        for file in others {
            file.bring_in_behind(shared, 0..file.record.blocks)?;
        }
    }
    Ok(())
}

/// Files that are not all local, whatever they are called. Nothing is renamed meanwhile: what moves from
/// where was not yet looked to where was already would be missed.
fn others(shared: &Arc<Shared>) -> Result<Vec<Arc<Pending>>> {
    let _naming = shared.naming.write().unwrap_or_else(PoisonError::into_inner);
    let mut found = shared.all_open();
    found.retain(|file| !file.is_local(shared));
    for place in &shared.places {
        visit(&place.local_path(), &mut |file| {
            if found.len() < OTHERS_MAX
                && let Some(pending) = shared.pending(&Arc::new(file))?
                && !pending.is_local(shared)
            {
                found.push(pending);
            }
            Ok(())
        })?;
    }
    Ok(found)
}

/// Every file below a directory that nobody removes meanwhile; mounts are not entered.
pub(crate) fn visit(dir: &Path, each: &mut impl FnMut(File) -> Result<()>) -> Result<()> {
    let device = fs::metadata(dir).map_err(Error::io("look at", dir))?.dev();
    visit_on(device, dir, each)
}

fn visit_on(device: u64, dir: &Path, each: &mut impl FnMut(File) -> Result<()>) -> Result<()> {
    let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
    let entries = match fs::read_dir(dir) {
        Err(error) if gone(&error) => return Ok(()),
        entries => entries.map_err(Error::io("list", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("list", dir))?;
        let path = entry.path();
        match entry.metadata() {
            // What is mounted there is ours, and shows what is visited elsewhere.
            Ok(found) if found.dev() != device => {}
            Ok(found) if found.is_dir() => visit_on(device, &path, each)?,
            Ok(found) if found.is_file() => {
                match File::options().read(true).write(true).open(&path) {
                    Err(error) if gone(&error) => {}
                    file => each(file.map_err(Error::io("open", &path))?)?,
                }
            }
            _ => {}
        }
    }
    Ok(())
}
