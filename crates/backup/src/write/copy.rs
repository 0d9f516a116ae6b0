//! One thread of a backup.

use super::{
    BLOCK_BYTES, Shared,
    order::{Job, Jobs, Order},
    packer::Packer,
    pages::Pages,
};
use crate::{
    Entry, Error, Result, alarm,
    manifest::{Block, Stamp, What},
    source::{Source, SourceWhat, stamp},
};
use std::{
    fs::File,
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// A thread that is throttled looks so often whether it has been stopped.
const THROTTLE_STEP: Duration = Duration::from_millis(200);

pub(super) struct Copier {
    shared: Arc<Shared>,
    packer: Packer,
    buffer: Vec<u8>,
}

impl Copier {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let packer = Packer::new(shared.clone());
        Self { shared, packer, buffer: vec![0; BLOCK_BYTES as usize] }
    }

    /// Copies until nothing is left.
    pub(super) fn run(mut self, jobs: &Mutex<Jobs>, order: &Order) -> Result<()> {
        loop {
            self.shared.progress.check()?;
            if self.shared.is_stopped() {
                return Ok(());
            }
            let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).next(&self.shared)?;
            let Some(job) = next else { break };
            order.done(job.number, self.entry(job)?)?;
        }
        self.packer.close()
    }

    /// Copies one entry; none if it went away.
    fn entry(&mut self, job: Job) -> Result<Option<Entry>> {
        let Job { source, before, attempt, .. } = job;
        let Source { path, from, mode, what } = source;
        let what = match what {
            SourceWhat::Dir => What::Dir,
            SourceWhat::Link(target) => What::Link(target),
            SourceWhat::File(bytes, now) => {
                let before = before.and_then(|entry| match entry.what {
                    What::File { bytes, stamp, blocks } => Some((bytes, stamp, blocks)),
                    _ => None,
                });
                match before {
                    Some((was, stamp, blocks)) if self.is_unchanged((was, stamp), (bytes, now)) => {
                        self.shared.count(|stats| {
                            stats.files += 1;
                            stats.bytes += bytes;
                        });
                        self.shared.progress.advance(bytes);
                        What::File { bytes, stamp, blocks }
                    }
                    before => {
                        let (before_bytes, before) =
                            before.map(|(bytes, _, blocks)| (bytes, blocks)).unwrap_or_default();
                        let attempt = match attempt.map(|entry| entry.what) {
                            Some(What::File { blocks, .. }) => blocks,
                            _ => Vec::new(),
                        };
                        let before = Before { bytes: before_bytes, blocks: before, attempt };
                        let copied = File::open(&from).and_then(|file| {
                            // The stamp from before reading: what is written meanwhile changes it.
                            let stamp = stamp(&file.metadata()?);
                            Ok((file, stamp))
                        });
                        let (file, stamp) = match copied {
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                                return Ok(None);
                            }
                            opened => opened.map_err(Error::io("open", &from))?,
                        };
                        let (bytes, blocks) = self.file(file, bytes, &before, &from, &path)?;
                        What::File { bytes, stamp, blocks }
                    }
                }
            }
        };
        Ok(Some(Entry { path, mode, what }))
    }

    /// Does the stamp say that the file is the parent's?
    fn is_unchanged(&self, before: (u64, Stamp), now: (u64, Stamp)) -> bool {
        /// A change within a tick of the file system's clock may leave the stamp as it was.
        const TICK_NS: i64 = 2_000_000_000;
        let Some(parent) = &self.shared.parent else { return false };
        let began_ns = i64::try_from(parent.began_unix_ms).unwrap_or(0).saturating_mul(1_000_000);
        self.shared.options.trust_stamps
            && before == now
            && now.1.ctime_ns.max(now.1.mtime_ns) < began_ns - TICK_NS
    }

    /// Copies up to `limit` bytes of a file: what is appended meanwhile is in the WAL, and so is
    /// its being cut off.
    fn file(
        &mut self,
        file: File,
        limit: u64,
        before: &Before,
        from: &std::path::Path,
        path: &str,
    ) -> Result<(u64, Vec<Block>)> {
        let mut file = file.take(limit);
        let segment_pages = self.shared.options.segment_pages;
        let mut pages = if segment_pages > 0 { Pages::of(path, segment_pages) } else { None };
        let (mut bytes, mut fresh, mut blocks) = (0, Fresh::default(), Vec::new());
        loop {
            if self.shared.is_stopped() {
                self.shared.progress.check()?;
                return Ok((bytes, blocks));
            }
            let read = read_full(&mut file, &mut self.buffer).map_err(Error::io("read", from))?;
            if read == 0 {
                break;
            }
            let block = &self.buffer[..read];
            if let Some(pages) = &mut pages {
                pages.look(bytes, block);
            }
            let id = self.shared.repository.block_id(block);
            let there = before.blocks.get(blocks.len());
            let is_it = |known: &&Block| matches!(known, Block::Stored { id: of, .. } if *of == id);
            let known = there.filter(is_it);
            let stored = before.attempt.get(blocks.len()).filter(is_it);
            let stored = stored.filter(|stored| self.is_adopted(stored));
            blocks.push(if is_zero(block) {
                Block::Zero
            } else if let Some(known) = known {
                known.clone()
            } else {
                let (pack, offset, packed) = match stored {
                    Some(Block::Stored { pack, offset, bytes, .. }) => {
                        fresh.adopted += read as u64;
                        (pack.clone(), *offset, *bytes)
                    }
                    _ => self.packer.push(block)?,
                };
                // The last block of what was before may have been a part of one.
                let there = there.filter(|_| bytes + u64::from(BLOCK_BYTES) <= before.bytes);
                fresh.count(read, packed, there);
                Block::Stored { id, pack, offset, bytes: packed }
            });
            bytes += read as u64;
            self.shared.progress.advance(read as u64);
            self.throttle(read as u64);
        }
        let checked = pages.as_ref().map_or(0, |pages| pages.checked);
        if let Some(pages) = pages {
            pages.finish(file.get_ref(), &self.shared.doubts).map_err(Error::io("read", from))?;
        }
        self.shared.count(|stats| {
            stats.files += 1;
            stats.bytes += bytes;
            stats.read_bytes += bytes;
            stats.checked_pages += checked;
            stats.new_bytes += fresh.bytes;
            stats.rewritten_bytes += fresh.rewritten;
            stats.noise_bytes += fresh.noise;
            stats.turned_bytes += fresh.turned;
            stats.adopted_bytes += fresh.adopted;
        });
        Ok((bytes, blocks))
    }

    /// Is it in a pack that was taken over?
    fn is_adopted(&self, block: &Block) -> bool {
        matches!(block, Block::Stored { pack, .. } if self.shared.adopted.has(pack))
    }

    fn throttle(&self, bytes: u64) {
        let Some(rate) = self.shared.options.max_bytes_per_s else { return };
        let read = self.shared.progress.throttled(bytes);
        let due = Duration::from_secs_f64(read as f64 / rate.max(1) as f64);
        while !self.shared.is_stopped() {
            let early = due.saturating_sub(self.shared.began.elapsed());
            if early.is_zero() {
                break;
            }
            thread::sleep(early.min(THROTTLE_STEP));
        }
    }
}

/// What is there of a file.
struct Before {
    /// In the parent.
    bytes: u64,
    blocks: Vec<Block>,
    /// In a dead attempt.
    attempt: Vec<Block>,
}

/// Bytes of new blocks of a file, by what they are.
#[derive(Default)]
struct Fresh {
    bytes: u64,
    rewritten: u64,
    noise: u64,
    turned: u64,
    adopted: u64,
}

impl Fresh {
    /// `there` is what the parent has at the place, if it is as long.
    fn count(&mut self, bytes: usize, packed: u32, there: Option<&Block>) {
        let is_noise = alarm::is_noise(bytes, packed);
        let packed_well = match there {
            Some(Block::Stored { bytes: before, .. }) => {
                self.rewritten += bytes as u64;
                alarm::packs_well(bytes, *before)
            }
            _ => false,
        };
        self.bytes += bytes as u64;
        self.noise += if is_noise { bytes as u64 } else { 0 };
        self.turned += if is_noise && packed_well { bytes as u64 } else { 0 };
    }
}

/// Fills `buffer`, unless the file ends.
fn read_full(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn is_zero(block: &[u8]) -> bool {
    let words = block.chunks_exact(8);
    words.remainder().iter().all(|byte| *byte == 0) && words.into_iter().all(|word| word == [0; 8])
}
