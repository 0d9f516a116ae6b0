//! Files are handed out in the order of their paths, done in any, and listed in their order again.

use super::Shared;
use crate::{
    Entry, Error, Result,
    manifest::{Files, SegmentBuilder, What},
    source::Source,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Files that may be done before an earlier one is, and blocks of theirs.
const AHEAD_FILES: usize = 20_000;
const AHEAD_BLOCKS: usize = 400_000;

/// What is yet to be copied.
pub(super) struct Jobs {
    sources: std::iter::Enumerate<std::vec::IntoIter<Source>>,
    parent: Option<Files>,
    /// What a dead attempt had listed.
    attempt: Option<Files>,
}

/// One file to be copied.
pub(super) struct Job {
    pub(super) number: usize,
    pub(super) source: Source,
    /// What the parent has at its place.
    pub(super) before: Option<Entry>,
    /// What a dead attempt has.
    pub(super) attempt: Option<Entry>,
}

impl Jobs {
    pub(super) fn new(sources: Vec<Source>, parent: Option<Files>, attempt: Option<Files>) -> Self {
        Self { sources: sources.into_iter().enumerate(), parent, attempt }
    }

    pub(super) fn next(&mut self, shared: &Shared) -> Result<Option<Job>> {
        let Some((number, source)) = self.sources.next() else { return Ok(None) };
        let before = find(&mut self.parent, &source.path, shared)?;
        let attempt = find(&mut self.attempt, &source.path, shared)?;
        Ok(Some(Job { number, source, before, attempt }))
    }
}

/// What `files` have of this path.
fn find(files: &mut Option<Files>, path: &str, shared: &Shared) -> Result<Option<Entry>> {
    let Some(there) = files else { return Ok(None) };
    match shared.runtime.block_on(there.find(path)) {
        // What was damaged yesterday does not keep today from being saved: from here on
        // everything is stored anew.
        Err(error @ (Error::Damaged { .. } | Error::Missing { .. })) => {
            tracing::error!("what was stored before cannot be compared with: {error}");
            *files = None;
            Ok(None)
        }
        found => found,
    }
}

/// Puts what is done into its order.
pub(super) struct Order {
    shared: Arc<Shared>,
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    next: usize,
    /// None: it went away.
    ahead: BTreeMap<usize, Option<Entry>>,
    ahead_blocks: usize,
    builder: SegmentBuilder,
    first_segment: u32,
    segments: u32,
    saved: Instant,
}

fn blocks_of(entry: Option<&Entry>) -> usize {
    match entry {
        Some(Entry { what: What::File { blocks, .. }, .. }) => blocks.len(),
        _ => 0,
    }
}

impl Order {
    pub(super) fn new(shared: Arc<Shared>, first_segment: u32) -> Self {
        let state = State {
            next: 0,
            ahead: BTreeMap::new(),
            ahead_blocks: 0,
            builder: SegmentBuilder::default(),
            first_segment,
            segments: 0,
            saved: Instant::now(),
        };
        Self { shared, state: Mutex::new(state), moved: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file is done. Waits while too many are ahead of a slower one.
    pub(super) fn done(&self, number: usize, entry: Option<Entry>) -> Result<()> {
        let mut state = self.state();
        while number != state.next
            && (state.ahead.len() >= AHEAD_FILES || state.ahead_blocks >= AHEAD_BLOCKS)
            && !self.shared.is_stopped()
        {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.ahead_blocks += blocks_of(entry.as_ref());
        state.ahead.insert(number, entry);
        loop {
            let next = state.next;
            let Some(entry) = state.ahead.remove(&next) else { break };
            state.next += 1;
            state.ahead_blocks -= blocks_of(entry.as_ref());
            if let Some(entry) = entry {
                state.builder.push(entry);
            }
            let is_due = state.saved.elapsed() >= self.shared.options.save_every;
            if state.builder.is_full() || is_due && !state.builder.is_empty() {
                self.close(&mut state)?;
            }
        }
        drop(state);
        self.wake();
        Ok(())
    }

    pub(super) fn wake(&self) {
        // Whoever is about to wait has the lock: it looks before this, or is woken by it.
        drop(self.state());
        self.moved.notify_all();
    }

    fn close(&self, state: &mut State) -> Result<()> {
        let builder = std::mem::take(&mut state.builder);
        let number = state.first_segment + state.segments;
        state.segments += 1;
        state.saved = Instant::now();
        self.shared.close_segment(&builder, number)
    }

    /// Lists the rest; returns the number of segments.
    pub(super) fn finish(self) -> Result<u32> {
        let mut state = self.state();
        if !state.builder.is_empty() {
            self.close(&mut state)?;
        }
        Ok(state.segments)
    }
}
