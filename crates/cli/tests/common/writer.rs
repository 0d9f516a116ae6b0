//! An application that writes a row every few milliseconds, and remembers which were
//! acknowledged.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio_postgres::NoTls;

/// Between two rows.
const PAUSE: Duration = Duration::from_millis(10);
/// An application that gets no answer for so long connects anew.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Shared {
    acknowledged: Mutex<Vec<i64>>,
    stop: AtomicBool,
}

/// The application; stopped when dropped.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Writes to table `w` through this address, beginning with row `first`.
    pub fn start(dsn: &str, first: i64) -> Self {
        let shared = Arc::new(Shared::default());
        let (dsn, seen) = (dsn.to_owned(), shared.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(write(&dsn, first, &seen));
        });
        let writer = Self { shared, thread: Some(thread) };
        writer.goes_on();
        writer
    }

    /// Rows acknowledged so far.
    pub fn count(&self) -> usize {
        self.shared.acknowledged.lock().unwrap().len()
    }

    /// Waits until more is acknowledged.
    pub fn goes_on(&self) {
        let before = self.count();
        super::until("writes go on", || (self.count() > before + 2).then_some(()));
    }

    /// Ends it. The acknowledged rows.
    pub fn stop(mut self) -> Vec<i64> {
        self.end();
        std::mem::take(&mut self.shared.acknowledged.lock().unwrap())
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

async fn write(dsn: &str, first: i64, shared: &Shared) {
    let mut row = first;
    while !shared.stop.load(Ordering::Relaxed) {
        let connected = tokio::time::timeout(PATIENCE, tokio_postgres::connect(dsn, NoTls)).await;
        let Ok(Ok((client, connection))) = connected else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let connection = tokio::spawn(connection);
        while !shared.stop.load(Ordering::Relaxed) {
            // Never the same row again: what became of one without an answer is not known.
            row += 1;
            let insert = async { client.execute("insert into w values ($1)", &[&row]).await };
            match tokio::time::timeout(PATIENCE, insert).await {
                Ok(Ok(_)) => shared.acknowledged.lock().unwrap().push(row),
                _ => break,
            }
            tokio::time::sleep(PAUSE).await;
        }
        connection.abort();
    }
}
