//! One file.

use super::{Shared, fetch::Fetcher};
use crate::{
    Entry, Error, Result,
    manifest::{Block, What},
    write::BLOCK_BYTES,
};
use std::{
    fs::{OpenOptions, Permissions},
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    sync::PoisonError,
};

impl Shared {
    pub(super) fn restore_file(&self, entry: &Entry, fetcher: &mut Fetcher) -> Result<()> {
        let What::File { bytes, blocks, .. } = &entry.what else { return Ok(()) };
        let at = self.target.join(&entry.path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(!self.options.delta);
        let file = options.mode(entry.mode).open(&at).map_err(Error::io("make", &at))?;
        let permissions = Permissions::from_mode(entry.mode);
        file.set_permissions(permissions).map_err(Error::io("set the permissions of", &at))?;
        let there = file.metadata().map_err(Error::io("look at", &at))?.len();
        file.set_len(*bytes).map_err(Error::io("set the length of", &at))?;
        let block_bytes = u64::from(BLOCK_BYTES);
        let mut fetched = 0;
        let mut old = vec![0; if there > 0 { BLOCK_BYTES as usize } else { 0 }];
        for (number, block) in blocks.iter().enumerate() {
            let offset = number as u64 * block_bytes;
            let length = bytes.saturating_sub(offset).min(block_bytes) as usize;
            if offset < there {
                let old = &mut old[..length];
                file.read_exact_at(old, offset).map_err(Error::io("read", &at))?;
                let right = match block {
                    Block::Zero => old.iter().all(|byte| *byte == 0),
                    Block::Stored { id, .. } => self.repository.block_id(old) == *id,
                };
                if right {
                    self.progress.advance(length as u64);
                    continue;
                }
            }
            let content = match block {
                // A new file is zero where nothing was written.
                Block::Zero if offset >= there => None,
                Block::Zero => Some(vec![0; length]),
                Block::Stored { .. } => Some(fetcher.block(blocks, number)?),
            };
            if let Some(content) = content {
                if content.len() != length {
                    return Err(Error::damaged(
                        &entry.path,
                        "a block has not the length it must have",
                    ));
                }
                fetched += length as u64;
                file.write_all_at(&content, offset).map_err(Error::io("write", &at))?;
            }
            self.progress.advance(length as u64);
        }
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.files += 1;
        done.bytes += bytes;
        done.fetched_bytes += fetched;
        Ok(())
    }
}
