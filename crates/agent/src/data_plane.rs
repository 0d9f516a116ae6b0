//! The threads that routing runs on: as nice as everybody, unlike the agent's own.
//!
//! On threads that come before others, routing would take the processor away from the database and
//! from clients at every message (its slowest answers took twice as long), and it could hold up
//! heartbeats.

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

/// Threads at most: each passes some ten thousands of queries a second.
const THREADS_MAX: usize = 8;

/// See the module.
pub struct DataPlane(Option<Runtime>);

impl DataPlane {
    /// Starts the threads.
    pub fn start() -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.min(THREADS_MAX))
            .thread_name("routing")
            .on_thread_start(be_ordinary)
            .enable_all()
            .build()
            .context("the threads of routing")?;
        Ok(Self(Some(runtime)))
    }

    /// Does something whose tasks are to run there.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entered = self.0.as_ref().map(Runtime::enter);
        work()
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        // Sessions were ended before; nothing here is worth waiting for.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Of the calling thread: a thread begins with what its maker has.
fn be_ordinary() {
    // SAFETY: plain system calls on numbers.
    unsafe {
        if nix::libc::getpriority(nix::libc::PRIO_PROCESS, 0) < 0 {
            nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, 0);
        }
    }
}
