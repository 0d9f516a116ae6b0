//! One thread of a backup.

use super::{
    BLOCK_BYTES, Shared,
    order::{Job, Jobs, Order},
    packer::Packer,
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
            let Some(Job { number, source, before }) = next else { break };
            order.done(number, self.entry(source, before)?)?;
        }
        self.packer.close()
    }

    /// Copies one entry; none if it went away.
    fn entry(&mut self, source: Source, before: Option<Entry>) -> Result<Option<Entry>> {
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
                        let before =
                            before.map(|(bytes, _, blocks)| (bytes, blocks)).unwrap_or_default();
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
                        let (bytes, blocks) = self.file(file, bytes, &before, &from)?;
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
        (before_bytes, before): &(u64, Vec<Block>),
        from: &std::path::Path,
    ) -> Result<(u64, Vec<Block>)> {
        let mut file = file.take(limit);
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
            let id = self.shared.repository.block_id(block);
            let there = before.get(blocks.len());
            let known = there.filter(|known| match known {
                Block::Stored { id: known, .. } => *known == id,
                Block::Zero => false,
            });
            blocks.push(if is_zero(block) {
                Block::Zero
            } else if let Some(known) = known {
                known.clone()
            } else {
                let (pack, offset, packed) = self.packer.push(block)?;
                // The last block of what was before may have been a part of one.
                let there = there.filter(|_| bytes + u64::from(BLOCK_BYTES) <= *before_bytes);
                fresh.count(read, packed, there);
                Block::Stored { id, pack, offset, bytes: packed }
            });
            bytes += read as u64;
            self.shared.progress.advance(read as u64);
            self.throttle(read as u64);
        }
        self.shared.count(|stats| {
            stats.files += 1;
            stats.bytes += bytes;
            stats.read_bytes += bytes;
            stats.new_bytes += fresh.bytes;
            stats.rewritten_bytes += fresh.rewritten;
            stats.noise_bytes += fresh.noise;
            stats.turned_bytes += fresh.turned;
        });
        Ok((bytes, blocks))
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

/// Bytes of new blocks of a file, by what they are.
#[derive(Default)]
struct Fresh {
    bytes: u64,
    rewritten: u64,
    noise: u64,
    turned: u64,
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
