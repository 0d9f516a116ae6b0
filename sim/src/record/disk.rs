//! A disk: what was written and not synced may be lost, in part and in any order.

use crate::rng::Rng;
use sempre_consensus::simulation::SimulatedFile;
use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// What reaches the disk or not as one. Smaller than redb's pages, so these can be torn.
const SECTOR: u64 = 512;

/// A member's file, as programs see it and as it is on disk.
#[derive(Debug, Default)]
struct Content {
    seen: Vec<u8>,
    kept: Vec<u8>,
    /// Sectors written since the last sync.
    unsynced: BTreeSet<u64>,
}

impl Content {
    fn keep(&mut self, sector: u64) {
        let from = (sector * SECTOR) as usize;
        let to = (from + SECTOR as usize).min(self.seen.len());
        if self.kept.len() < to {
            self.kept.resize(to, 0);
        }
        if from < to {
            self.kept[from..to].copy_from_slice(&self.seen[from..to]);
        }
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.unsynced) {
            self.keep(sector);
        }
        self.kept.resize(self.seen.len(), 0);
    }

    /// Each sector has reached the disk, or not; so has a new length.
    fn sync_partly(&mut self, rng: &mut Rng) {
        let share = [0, 100, 500, 900][rng.index(4)];
        for sector in std::mem::take(&mut self.unsynced) {
            if rng.chance(share) {
                self.keep(sector);
            }
        }
        if rng.chance(500) {
            self.kept.resize(self.seen.len(), 0);
        }
    }
}

/// How the disk behaves at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Well,
    /// Work takes up to so many ms.
    Slow(u64),
    /// Writes are refused, as on a full or read-only disk.
    Refuses,
    /// Every sync fails. What was not synced may have reached the disk or not.
    FailsToSync,
}

/// When the process dies by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Death {
    /// After so many more writes and syncs.
    after: u64,
    /// With it, the power is gone.
    power: bool,
}

#[derive(Debug)]
struct State {
    store: Content,
    seal: Content,
    /// The store has its name; before, a crash leaves none.
    named: bool,
    mood: Mood,
    death: Option<Death>,
    /// It died that way, with the power.
    power_lost: bool,
    rng: Rng,
}

/// A machine's disk; outlives its boots.
#[derive(Debug)]
pub struct Disk {
    state: Mutex<State>,
    /// A bug put in: syncs do nothing.
    lies: bool,
}

/// Which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `record.redb`.
    Store,
    /// `record.seal`.
    Seal,
}

impl Disk {
    /// An empty one. `lies`: what is synced is not (a bug put in).
    pub fn new(seed: u64, lies: bool) -> Self {
        let state = State {
            store: Content::default(),
            seal: Content::default(),
            named: false,
            mood: Mood::Well,
            death: None,
            power_lost: false,
            rng: Rng::new(seed),
        };
        Self { state: Mutex::new(state), lies }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it behaves from now on.
    pub fn set_mood(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// The process dies at the disk, after so many more writes and syncs.
    pub fn set_death(&self, after: u64, power: bool) {
        self.state().death = Some(Death { after, power });
    }

    /// The store has got its name.
    pub fn name_store(&self) {
        let mut state = self.state();
        state.named = true;
        // The rename is followed by a sync of its folder.
        state.store.sync();
    }

    /// The process is gone: what it wrote is still seen. With `power`, only what the disk kept.
    pub fn crash(&self, power: bool) {
        let state = &mut *self.state();
        state.death = None;
        let power = std::mem::take(&mut state.power_lost) || power;
        if power {
            for file in [&mut state.store, &mut state.seal] {
                file.sync_partly(&mut state.rng);
                file.seen = file.kept.clone();
            }
        }
        if !state.named {
            state.store = Content::default();
        }
    }

    /// How long the next work takes, before and after it has its effect.
    pub fn time(&self) -> (Duration, Duration) {
        let state = &mut *self.state();
        let most = match state.mood {
            Mood::Slow(ms) if state.rng.chance(400) => ms * 1_000,
            _ => 3_000,
        };
        let micros = |rng: &mut Rng| Duration::from_micros(rng.range(50, most));
        (micros(&mut state.rng), micros(&mut state.rng))
    }
}

/// An open file. It works only as long as its process lives.
#[derive(Debug)]
pub struct OpenFile {
    /// On this disk.
    pub disk: Arc<Disk>,
    /// Which.
    pub which: Which,
    /// The process is dead.
    pub dead: Arc<AtomicBool>,
}

fn refused(why: &str) -> io::Error {
    io::Error::other(why)
}

impl OpenFile {
    fn with<T>(
        &self,
        changes: bool,
        work: impl FnOnce(&mut Content, &mut Rng, Mood) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(refused("the process is dead"));
        }
        let state = &mut *self.disk.state();
        if changes && let Some(death) = &mut state.death {
            if death.after == 0 {
                self.dead.store(true, Ordering::SeqCst);
                state.power_lost = death.power;
                return Err(refused("the process dies"));
            }
            death.after -= 1;
        }
        let content = match self.which {
            Which::Store => &mut state.store,
            Which::Seal => &mut state.seal,
        };
        work(content, &mut state.rng, state.mood)
    }
}

impl SimulatedFile for OpenFile {
    fn len(&self) -> io::Result<u64> {
        self.with(false, |content, _, _| Ok(content.seen.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(false, |content, _, _| {
            let from = offset as usize;
            let bytes = content.seen.get(from..from + out.len());
            out.copy_from_slice(bytes.ok_or_else(|| refused("read past the end"))?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(true, |content, _, mood| {
            if mood == Mood::Refuses {
                return Err(io::ErrorKind::StorageFull.into());
            }
            content.seen.resize(len as usize, 0);
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(true, |content, _, mood| {
            if mood == Mood::Refuses {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let (from, to) = (offset as usize, offset as usize + data.len());
            if content.seen.len() < to {
                content.seen.resize(to, 0);
            }
            content.seen[from..to].copy_from_slice(data);
            let last = (to.max(1) - 1) as u64 / SECTOR;
            content.unsynced.extend(offset / SECTOR..=last);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        let lies = self.disk.lies;
        self.with(true, |content, rng, mood| {
            match mood {
                Mood::FailsToSync => {
                    // Some sectors have arrived, the others will be written again by a later
                    // sync: a system that forgets them is beyond what any file can survive.
                    let again = content.unsynced.clone();
                    content.sync_partly(rng);
                    content.unsynced = again;
                    return Err(refused("sync failed"));
                }
                _ if lies => {}
                _ => content.sync(),
            }
            Ok(())
        })
    }
}
