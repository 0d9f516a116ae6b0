//! A thread inside a host's network namespace, to run our own tasks there.
//!
//! A network namespace belongs to a thread, and a socket to the namespace it was made in. So a
//! thread that enters the namespace and drives a runtime of its own is enough: no further process
//! is needed, and everything measured is on one clock.

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fs::File,
    future::Future,
    os::fd::AsFd,
    path::Path,
    sync::mpsc,
    thread::{self, JoinHandle},
};
use tokio::{runtime, sync::oneshot, task};

/// Runs tasks in one namespace until dropped.
#[derive(Debug)]
pub struct Station {
    handle: runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A task in a station; dropping it stops the task.
#[derive(Debug)]
pub struct Task<T>(task::JoinHandle<T>);

impl<T> Task<T> {
    /// Its result.
    pub async fn join(mut self) -> Result<T> {
        (&mut self.0).await.context("a task of the lab was stopped, or panicked")
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Station {
    /// Starts the thread, in the namespace mounted at `namespace`.
    pub(crate) fn open(namespace: &Path) -> Result<Self> {
        let file = File::open(namespace)
            .with_context(|| format!("no namespace at {}", namespace.display()))?;
        let (ready, is_ready) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("station".into()).spawn(move || {
            match enter(&file) {
                Ok(runtime) => {
                    let _ = ready.send(Ok(runtime.handle().clone()));
                    // Ends when told to, and as well when the station was forgotten.
                    let _ = runtime.block_on(stopped);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let handle = is_ready.recv().map_err(|_| anyhow!("the station's thread died"))??;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Starts a task there.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        Task(self.handle.spawn(task))
    }

    /// Runs a task there to its end.
    pub async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.spawn(task).join().await?
    }
}

fn enter(namespace: &File) -> Result<runtime::Runtime> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("could not enter the namespace; are we root?")?;
    Ok(runtime::Builder::new_current_thread().enable_all().build()?)
}

impl Drop for Station {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
