//! Which blocks of which packs are used.

use super::{Harm, Run};
use crate::{
    Backup, Result,
    manifest::{Block, PackRef, What},
    names,
};
use std::collections::BTreeMap;

/// Where blocks must be, by offset and length, and which ones: one, unless two backups disagree.
pub(super) type Places = BTreeMap<(u64, u32), Vec<[u8; 32]>>;

#[derive(Default)]
pub(super) struct References {
    pub(super) places: BTreeMap<PackRef, Places>,
    /// There were too many: the first pack that is yet to be looked at.
    pub(super) next: Option<PackRef>,
    count: usize,
}

impl References {
    /// Reads the lists of `backups`; keeps the places of packs from `from` on, of as many packs as
    /// there are at most `places_max` places in (and of one pack in any case).
    pub(super) async fn gather(
        run: &mut Run,
        backups: &[Backup],
        from: Option<PackRef>,
        places_max: usize,
    ) -> Result<Self> {
        let mut references = Self::default();
        for backup in backups {
            for number in 0..backup.sorted_segments + backup.late_segments {
                run.progress.check()?;
                let key = names::segment(&backup.id, number);
                let segment = match run.repository.segment_at(&key).await {
                    Ok(segment) => segment,
                    Err(error) => {
                        let error = run.count_failure(error)?;
                        let harm = Harm { backup: backup.id.clone(), files: None };
                        run.damaged(&key, &error, vec![harm]);
                        continue;
                    }
                };
                if from.is_none() {
                    run.count(0);
                }
                for entry in segment.entries {
                    let What::File { blocks, .. } = entry.what else { continue };
                    for block in blocks {
                        references.add(block, from.as_ref(), places_max);
                    }
                }
            }
        }
        Ok(references)
    }

    fn add(&mut self, block: Block, from: Option<&PackRef>, places_max: usize) {
        let Block::Stored { id, pack, offset, bytes } = block else { return };
        let before = from.is_some_and(|from| pack < *from);
        if before || self.next.as_ref().is_some_and(|next| pack >= *next) {
            return;
        }
        let ids = self.places.entry(pack).or_default().entry((offset, bytes)).or_default();
        if ids.contains(&id) {
            return;
        }
        ids.push(id);
        self.count += 1;
        while self.count > places_max && self.places.len() > 1 {
            let Some((pack, places)) = self.places.pop_last() else { break };
            self.count -= places.values().map(Vec::len).sum::<usize>();
            self.next = Some(pack);
        }
    }
}
