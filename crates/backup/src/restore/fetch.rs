//! Blocks of packs, read in long runs.

use crate::{
    Error, Repository, Result,
    manifest::{Block, PackRef},
    seal::{HEADER_BYTES, Kind, Opener, Unpacker},
};
use bytes::Bytes;
use std::collections::HashMap;
use tokio::runtime::Handle;

/// The most that is read at once: it is in memory.
const RUN_BYTES: u64 = 8 << 20;
/// Unwanted bytes that are read rather than asking twice.
const GAP_BYTES: u64 = 64 << 10;
/// Packs whose keys are kept at hand.
const OPENERS_MAX: usize = 256;

/// Reads blocks, one thread's.
pub struct Fetcher {
    repository: Repository,
    runtime: Handle,
    openers: HashMap<PackRef, Opener>,
    run: Option<(PackRef, u64, Bytes)>,
    unpacker: Unpacker,
    /// Bytes read from the store.
    pub(crate) read_bytes: u64,
}

impl Fetcher {
    /// Of this repository. The thread that uses it must not be one that drives `runtime`.
    pub fn new(repository: Repository, runtime: Handle) -> Self {
        let (openers, unpacker) = (HashMap::new(), Unpacker::new());
        Self { repository, runtime, openers, run: None, unpacker, read_bytes: 0 }
    }

    /// The content of `blocks[at]`, which is a stored one. Reads ahead for those that follow.
    pub fn block(&mut self, blocks: &[Block], at: usize) -> Result<&[u8]> {
        let Block::Stored { id, pack, offset, bytes } = &blocks[at] else { return Ok(&[]) };
        if !self.has(pack, *offset, *bytes) {
            let end = run_end(&blocks[at..]);
            let store = self.repository.store.clone();
            let name = pack.name();
            let run = self.runtime.block_on(store.get_range(&name, *offset..end))?;
            self.read_bytes += run.len() as u64;
            self.run = Some((pack.clone(), *offset, run));
        }
        self.prepare_opener(pack)?;
        let (Some(opener), Some((_, begin, run))) = (self.openers.get(pack), &self.run) else {
            unreachable!("both were just made");
        };
        let from = usize::try_from(offset - begin).unwrap_or(usize::MAX);
        let frame = run.get(from..from + *bytes as usize);
        let frame = frame.ok_or_else(|| Error::damaged(&pack.name(), "it is cut short"))?;
        let opened = opener.open_with(*offset, frame, &mut self.unpacker)?;
        match opened.map(|_| self.unpacker.content()) {
            Some(content) if self.repository.block_id(content) == *id => Ok(content),
            _ => Err(Error::damaged(&pack.name(), "a block is not the one that was stored")),
        }
    }

    fn has(&self, pack: &PackRef, offset: u64, bytes: u32) -> bool {
        self.run.as_ref().is_some_and(|(have, begin, run)| {
            have == pack
                && *begin <= offset
                && offset + u64::from(bytes) <= begin + run.len() as u64
        })
    }

    fn prepare_opener(&mut self, pack: &PackRef) -> Result<()> {
        if self.openers.contains_key(pack) {
            return Ok(());
        }
        if self.openers.len() >= OPENERS_MAX {
            self.openers.clear();
        }
        let name = pack.name();
        let store = self.repository.store.clone();
        let header = self.runtime.block_on(store.get_range(&name, 0..HEADER_BYTES as u64))?;
        let opener = Opener::new(&self.repository.keys, Kind::Pack, &name, &header)?;
        self.openers.insert(pack.clone(), opener);
        Ok(())
    }
}

/// Where a read that begins with the first block may end: as long as they follow each other in
/// the same pack.
fn run_end(blocks: &[Block]) -> u64 {
    let mut run = blocks.iter().filter_map(|block| match block {
        Block::Stored { pack, offset, bytes, .. } => Some((pack, *offset, u64::from(*bytes))),
        Block::Zero => None,
    });
    let Some((first, begin, bytes)) = run.next() else { return 0 };
    let mut end = begin + bytes;
    for (pack, offset, bytes) in run {
        let follows = pack == first && (end..=end + GAP_BYTES).contains(&offset);
        if !follows || offset + bytes - begin > RUN_BYTES {
            break;
        }
        end = offset + bytes;
    }
    end
}
