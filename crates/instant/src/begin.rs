//! Up to the moment when the database can start.

use crate::{
    Error, Options, Result, Serving,
    background::{self, Which},
    gate,
    mounts::{self, Mount},
    place::TABLESPACES,
    shared::Shared,
    skeleton,
    source::Source,
    state::{Found, STATE_DIR, State},
};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// See [`crate::Instant::mount`].
pub(crate) fn mount(source: Source, target: &Path, options: Options) -> Result<Serving> {
    allow_descriptors();
    fs::create_dir_all(target).map_err(Error::io("make", target))?;
    let target = fs::canonicalize(target).map_err(Error::io("follow", target))?;
    let (state, whole, fresh) = prepare(&source, &target, &options)?;
    mounts::clear(&target.join(gate::FILE))?;
    for place in &state.header.places {
        mounts::clear(&place.at)?;
    }
    let places = skeleton::open_places(&state.header)?;
    let shared = Arc::new(Shared::new(target, state, source, places));
    shared.count_left()?;
    let local = Arc::new(AtomicBool::new(whole));
    if !whole {
        background::bring_in(&shared, &options, Which::Unmounted)?;
        if fresh {
            shared.save()?;
        }
    }
    let mut serving = Serving { shared, options, mounts: Vec::new(), local, switched: whole };
    if whole {
        serving.shared.left_bytes.store(0, Ordering::Relaxed);
        return Ok(serving);
    }
    let threads = serving.options.serving_threads.unwrap_or(mounts::THREADS);
    for place in serving.shared.places.iter().filter(|place| place.mounted) {
        serving.mounts.push(Mount::new(&serving.shared, place.clone(), threads)?);
    }
    if let Some(gate) = gate::place(&serving.shared.target)? {
        serving.mounts.push(Mount::new(&serving.shared, Arc::new(gate), 1)?);
    }
    let shared = serving.shared.clone();
    serving.spawn("sempre-save", move || background::save_regularly(&shared))?;
    if serving.options.bring_in {
        serving.start_bringing_in()?;
    }
    Ok(serving)
}

/// The state of the target: is it whole, was it made just now?
fn prepare(source: &Source, target: &Path, options: &Options) -> Result<(State, bool, bool)> {
    let begun = target.join(STATE_DIR).exists();
    let mut there = fs::read_dir(target).map_err(Error::io("list", target))?;
    if let (false, Some(first)) = (begun, there.next()) {
        let first = first.map_err(Error::io("list", target))?.file_name();
        return Err(Error::Refused(format!(
            "{} is not empty (there is {}): name another folder",
            target.display(),
            first.display()
        )));
    }
    match State::find(target)? {
        Found::Fresh(lock) => {
            remove_unfinished(target)?;
            Ok((skeleton::build(source, target, options, lock)?, false, true))
        }
        Found::Begun(state) | Found::Whole(state) if state.header.backup != source.backup.id => {
            Err(Error::Refused(format!(
                "{} is being restored from backup {}, not {}",
                target.display(),
                state.header.backup,
                source.backup.id
            )))
        }
        Found::Begun(state) => Ok((*state, false, false)),
        Found::Whole(state) => Ok((*state, true, false)),
    }
}

/// Removes the files of a skeleton that was not finished: nothing was served of it.
fn remove_unfinished(target: &Path) -> Result<()> {
    for entry in fs::read_dir(target).map_err(Error::io("list", target))? {
        let entry = entry.map_err(Error::io("list", target))?;
        let path = entry.path();
        if entry.file_name() == STATE_DIR {
            let left = path.join(gate::FILE);
            if left.exists() {
                fs::remove_file(&left).map_err(Error::io("remove", &left))?;
            }
            continue;
        }
        if entry.file_name() == TABLESPACES {
            for link in fs::read_dir(&path).map_err(Error::io("list", &path))?.flatten() {
                // The link was made when the place had been found empty.
                empty(&link.path())?;
            }
        }
        remove(&entry)?;
    }
    Ok(())
}

/// The kernel has many files in mind, each with a descriptor here.
fn allow_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!("the limit of open files stays as it is: {error}");
        }
    }
}

fn empty(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))?.flatten() {
        remove(&entry)?;
    }
    Ok(())
}

fn remove(entry: &fs::DirEntry) -> Result<()> {
    let dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
    let path = entry.path();
    let removed = if dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    removed.map_err(Error::io("remove", &path))
}
