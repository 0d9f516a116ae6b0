//! Sessions that outlive their server connection.
//!
//! One task a client. It speaks PostgreSQL's protocol with the client and with the server, passes
//! bytes on as they come ([`pump`]), and knows from looking at them ([`up`], [`down`]):
//! what was asked and not yet answered, what belongs to the session ([`carry`]), which transaction
//! runs. When the server is lost ([`lost`]), the client is told what became of what was under way,
//! and the session goes on on the next one ([`attach`]).
//!
//! # What a client sees when the primary changes
//!
//! | it was | it sees |
//! |---|---|
//! | idle | nothing |
//! | in a transaction | ERROR 40001; ROLLBACK works |
//! | waiting for the answer to COMMIT | what really happened: COMMIT or 40001 ([`resolve`]) |
//! | running a statement outside a transaction | 40001 if it was certainly rolled back, else 08007 ([`autocommit`]: as of a COMMIT) |
//! | holding temporary tables, held cursors, advisory locks | FATAL that names them |
//!
//! What is split off to standbys: [`split`].
//!
//! # Limits and known gaps
//!
//! - Notifications sent while a session had no server are lost to it.
//! - Functions that change settings inside themselves are noticed only where the text of the
//!   statement says `set_config`, `do` or `call`, or the setting is one that servers report.
//! - `replication` connections pass through as in [`crate::Style::Pass`]: they are not carried.
//! - A statement on its way is taken for sent as soon as it was given to the operating system, and
//!   also when that refused it.
//! - A cancel request may reach a statement outside a transaction that waits for the standbys, as
//!   nobody can tell from outside when a statement begins to wait. Its client gets no answer before
//!   the standbys have it, or 08007 where the primary is lost; but other sessions may see what it
//!   did before that.
//! - `pg_terminate_backend` ends the server connection, not the session.

mod admin;
mod attach;
mod auth;
mod autocommit;
mod cancel;
mod carry;
mod down;
mod link;
mod login;
mod lost;
mod names;
mod negotiate;
mod own;
mod pool;
mod prepared;
mod pump;
mod replication;
mod resolve;
mod serve;
mod session;
mod share;
mod shown;
mod split;
mod startup;
mod stream;
mod talk;
mod up;
mod warm;

use crate::{ProxySettings, hold::Shared};
use std::sync::Arc;

pub use pool::PoolInfo;
pub(crate) use serve::run;
pub(crate) use warm::Campaigns;

/// Connections to standbys are numbered from here, so that no two have the same number.
const STANDBYS_FROM: u64 = 1 << 40;

/// What all sessions of a router share.
pub(crate) struct Proxy {
    pub shared: Arc<Shared>,
    pub settings: ProxySettings,
    pub cancels: Arc<cancel::Cancels>,
    pub pools: Arc<pool::Pools>,
    pub campaigns: Campaigns,
    /// Who serves read-only transactions; none: nothing is split.
    pub standbys: Option<Box<split::Standbys>>,
}

impl Proxy {
    pub fn new(shared: Arc<Shared>, settings: ProxySettings) -> Self {
        let cancels = Arc::default();
        let splits = split::is_wanted(settings.split.split, shared.mode);
        let standbys = splits.then(|| Box::new(split::Standbys::new(&shared, &settings, &cancels)));
        let pools = Arc::new(pool::Pools::new(settings.pool.clone(), shared.clone(), 1));
        Self { shared, settings, cancels, pools, campaigns: Campaigns::default(), standbys }
    }

    /// One that only has connections to standbys, for the sessions of another one.
    fn of_standbys(
        shared: Arc<Shared>,
        settings: ProxySettings,
        cancels: Arc<cancel::Cancels>,
    ) -> Self {
        let pools = pool::Pools::new(settings.pool.clone(), shared.clone(), STANDBYS_FROM);
        let (pools, campaigns) = (Arc::new(pools), Campaigns::default());
        Self { shared, settings, cancels, pools, campaigns, standbys: None }
    }

    /// Its pools, and those of connections to standbys.
    pub fn all_pools(&self) -> impl Iterator<Item = &Arc<pool::Pools>> {
        let standbys = self.standbys.iter().map(|standbys| &standbys.proxy.pools);
        std::iter::once(&self.pools).chain(standbys)
    }

    /// Closes idle connections that nobody should get any more.
    pub fn tidy(&self) {
        self.all_pools().for_each(|pools| pools.tidy());
    }
}
