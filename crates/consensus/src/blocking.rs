//! Work on the store blocks on the disk, so it is done off the async threads.

use std::io;

/// Runs blocking work; a panic in it is an error.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, io::Error> {
    #[cfg(feature = "simulation")]
    if let Some(machine) = crate::simulation::machine() {
        return crate::simulation::disk_work(machine, work).await.map_err(io::Error::other);
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
