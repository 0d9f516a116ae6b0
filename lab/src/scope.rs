//! Running a lab so that a signal cleans up as well as its end does.

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Runs `lab` to its end, or until SIGINT, SIGTERM or SIGHUP: then it is dropped, which removes all it made.
pub fn run<T>(lab: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::select! {
            result = lab => result,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("told to stop"),
            _ = hangup.recv() => bail!("the terminal went away"),
        }
    })
}
