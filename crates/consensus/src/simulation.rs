//! The seam for simulations (feature `simulation`, never on in the program): the same code on a
//! machine that is made up, so that chance, time, crashes and the disk are in one hand.
//!
//! A member is opened inside [`on`]. From then on each of its tasks is told to the [`Machine`],
//! which can abort them all (a crash), Raft draws its election times from it, and work on the disk
//! is done on its files, in the task itself instead of on a thread. With tokio's paused clock, one
//! thread and its seeded generator a run replays exactly.

use openraft::{AsyncRuntime, TokioRuntime};
use redb::StorageBackend;
use std::{fmt::Debug, future::Future, io, sync::Arc, time::Duration};
use tokio::task::{AbortHandle, JoinHandle};

/// A file of the simulated machine.
pub trait SimulatedFile: Debug + Send + Sync {
    /// Bytes; a file that does not exist has none.
    fn len(&self) -> io::Result<u64>;
    /// Has it none?
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `out` from `offset` on.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Cuts it, or fills it up with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Writes; not on disk before [`SimulatedFile::sync`].
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Forces what was written to disk.
    fn sync(&self) -> io::Result<()>;
}

/// One boot of a simulated machine.
pub trait Machine: Send + Sync + 'static {
    /// 64 random bits.
    fn random(&self) -> u64;
    /// A task of the member was started.
    fn started(&self, task: AbortHandle);
    /// How long the next work on the disk takes, before and after it has its effect.
    fn disk_time(&self) -> (Duration, Duration);
    /// A snapshot is made every so many entries, and so many are kept after one.
    fn snapshots(&self) -> (u64, u64);
    /// The file `record.redb`.
    fn store(&self) -> Arc<dyn SimulatedFile>;
    /// The store that was made has got its name; until now a crash leaves no file.
    fn store_is_made(&self);
    /// The file `record.seal`.
    fn seal(&self) -> Arc<dyn SimulatedFile>;
}

tokio::task_local! {
    static MACHINE: Arc<dyn Machine>;
}

/// Runs `future` on `machine`.
pub async fn on<F: Future>(machine: Arc<dyn Machine>, future: F) -> F::Output {
    MACHINE.scope(machine, future).await
}

/// The machine that this task runs on, if it is a simulated one.
pub(crate) fn machine() -> Option<Arc<dyn Machine>> {
    MACHINE.try_with(Arc::clone).ok()
}

/// Does work on the disk. As on a thread, it is done even if nobody waits for it any more.
pub(crate) fn disk_work<T: Send + 'static>(
    machine: Arc<dyn Machine>,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    Runtime::spawn(async move {
        let (before, after) = machine.disk_time();
        tokio::time::sleep(before).await;
        let done = work();
        tokio::time::sleep(after).await;
        done
    })
}

/// A file as redb wants it.
#[derive(Debug)]
pub(crate) struct Backend(pub Arc<dyn SimulatedFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

impl crate::store::SealFile for Arc<dyn SimulatedFile> {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        SimulatedFile::write(&**self, 0, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        SimulatedFile::sync(&**self)
    }
}

/// Tokio as Raft's runtime, but for the tasks' machine and its chance.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: Send + 'static> = JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + Send> = tokio::time::Timeout<T>;
    type ThreadLocalRng = Dice;
    type OneshotSender<T: Send> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: Send> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        let Some(machine) = machine() else { return tokio::spawn(future) };
        let task = tokio::spawn(on(machine.clone(), future));
        machine.started(task.abort_handle());
        task
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Dice {
        Dice(machine())
    }

    fn oneshot<T: Send>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}

/// The machine's chance; without a machine there is none.
pub struct Dice(Option<Arc<dyn Machine>>);

impl rand_core::RngCore for Dice {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }
    fn next_u64(&mut self) -> u64 {
        self.0.as_ref().map_or(0, |machine| machine.random())
    }
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}
