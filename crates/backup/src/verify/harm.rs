//! Whom damaged packs harm.

use super::{Bad, Damage, Harm, Run};
use crate::{
    Backup, Result,
    manifest::{Block, What},
    names,
};
use std::collections::{BTreeMap, BTreeSet};

impl Run {
    /// Reads the lists again, if there is damage, and counts the files with a block that is bad.
    pub(super) async fn look_up_harm(
        &mut self,
        backups: &[Backup],
        bad: BTreeMap<String, Bad>,
    ) -> Result<()> {
        if bad.is_empty() {
            return Ok(());
        }
        let mut harmed: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
        for backup in backups {
            for number in 0..backup.sorted_segments + backup.late_segments {
                let key = names::segment(&backup.id, number);
                // One that cannot be read has been reported.
                let Ok(segment) = self.repository.segment_at(&key).await else { continue };
                for entry in segment.entries {
                    let What::File { blocks, .. } = entry.what else { continue };
                    for key in packs_harming(&blocks, &bad) {
                        *harmed.entry(key).or_default().entry(&backup.id).or_default() += 1;
                    }
                }
            }
        }
        for (key, Bad { why, .. }) in &bad {
            let harms = harmed.get(key.as_str()).into_iter().flatten();
            let harms =
                harms.map(|(id, files)| Harm { backup: (*id).to_owned(), files: Some(*files) });
            let (key, why) = (key.clone(), why.clone());
            self.found.damages.push(Damage { key, why, harms: harms.collect() });
        }
        Ok(())
    }
}

fn packs_harming<'a>(blocks: &[Block], bad: &'a BTreeMap<String, Bad>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    for block in blocks {
        let Block::Stored { pack, offset, .. } = block else { continue };
        if let Some((key, Bad { places, .. })) = bad.get_key_value(&pack.name())
            && places.as_ref().is_none_or(|places| places.contains(offset))
        {
            found.insert(key.as_str());
        }
    }
    found
}
