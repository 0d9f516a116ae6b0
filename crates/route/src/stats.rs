//! What a router counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What a router has counted since it started (and, where it says so, at the moment).
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct RouteStats { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub $name: AtomicU64,)* }

        impl Counters {
            pub fn read(&self) -> RouteStats {
                RouteStats { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Client connections open at the moment, held ones included.
    open,
    /// Client connections held at the moment: there is nothing to lead them to.
    held,
    /// Client connections accepted.
    total,
    /// Connections led to a member.
    led,
    /// Connections answered with an error because holding them reached a limit.
    refused,
    /// Connections that did not speak the protocol, or did not speak in time.
    malformed,
    /// Sessions ended because of a role change or a stop.
    cut,
    /// Sessions whose server went away by itself.
    server_gone,
    /// Times that a member did not confirm to be the primary.
    unverified,
    /// Times that a member could not be connected to.
    unreachable,
    /// Cancel requests passed on.
    cancels,
    /// Read-only transactions that a standby served (read/write split).
    split_to_standby,
    /// Read-only transactions that the primary served, as no standby fitted.
    split_to_primary,
    /// Of both, those that waited for a standby to replay what the session had written.
    split_waited,
    /// Connections made to the target of a switchover ahead of it.
    warm_made,
    /// Of these, those that a session went on with.
    warm_used,
    /// Bytes from clients to servers.
    bytes_to_server,
    /// Bytes from servers to clients.
    bytes_to_client,
}

/// Adds 1 while it lives.
pub(crate) struct Gauge<'a>(&'a AtomicU64, u64);

impl<'a> Gauge<'a> {
    pub fn up(counter: &'a AtomicU64) -> Self {
        Self(counter, counter.fetch_add(1, Relaxed))
    }

    /// What the counter was before.
    pub fn before(&self) -> u64 {
        self.1
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
