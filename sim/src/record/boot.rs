//! One boot of a member's process, from its start to its death.

use super::disk::{Disk, OpenFile, Which};
use crate::rng::Rng;
use sempre_consensus::simulation::{self, Machine, SimulatedFile};
use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::{AbortHandle, JoinHandle};

/// Handles of tasks that have ended are thrown away from this many on.
const TASKS_KEPT: usize = 256;

/// The process.
pub struct Boot {
    disk: Arc<Disk>,
    dead: Arc<AtomicBool>,
    tasks: Mutex<Vec<AbortHandle>>,
    rng: Mutex<Rng>,
    snapshots: (u64, u64),
}

impl Boot {
    /// A process on `disk`.
    pub fn new(disk: Arc<Disk>, seed: u64, snapshots: (u64, u64)) -> Arc<Self> {
        Arc::new(Self {
            disk,
            dead: Arc::default(),
            tasks: Mutex::default(),
            rng: Mutex::new(Rng::new(seed)),
            snapshots,
        })
    }

    /// It does nothing any more, and says nothing.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Ends it here and now. With `power`, the disk loses what was not synced.
    pub fn kill(&self, power: bool) {
        self.dead.store(true, Ordering::SeqCst);
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        self.disk.crash(power);
    }

    /// Runs something in this process: it ends with it.
    pub fn spawn<F>(self: &Arc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = tokio::spawn(simulation::on(self.clone(), future));
        self.started(task.abort_handle());
        task
    }

    fn open(&self, which: Which) -> Arc<dyn SimulatedFile> {
        Arc::new(OpenFile { disk: self.disk.clone(), which, dead: self.dead.clone() })
    }
}

impl Machine for Boot {
    fn random(&self) -> u64 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).draw()
    }

    fn started(&self, task: AbortHandle) {
        if self.is_dead() {
            task.abort();
            return;
        }
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.len() >= TASKS_KEPT {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task);
    }

    fn disk_time(&self) -> (Duration, Duration) {
        self.disk.time()
    }

    fn snapshots(&self) -> (u64, u64) {
        self.snapshots
    }

    fn store(&self) -> Arc<dyn SimulatedFile> {
        self.open(Which::Store)
    }

    fn store_is_made(&self) {
        self.disk.name_store();
    }

    fn seal(&self) -> Arc<dyn SimulatedFile> {
        self.open(Which::Seal)
    }
}
