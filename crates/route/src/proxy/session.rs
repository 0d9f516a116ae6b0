//! A client's session: everything that outlives the server connection it has at the moment.

use super::{
    Proxy,
    auth::Secret,
    autocommit::Converted,
    cancel::CancelKey,
    carry::{Carried, Snapshot},
    link::Link,
    pool::{ClientEntry, Meter, NewClient, PoolKey},
    prepared::Names,
    split::Apart,
    startup::Begun,
    stream::Stream,
    warm::Warm,
};
use sempre_wire::pg::{
    ErrorResponse, Scanner, Side,
    track::{Hints, Pending, Tracker, Whose},
};

/// What is known of the transaction block the client is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Xid {
    /// Nothing, or it had no id when it was asked for.
    #[default]
    Unknown,
    /// The question is on its way.
    Asked,
    /// The answer: there is none so far; nothing to lose.
    None,
    /// The answer.
    Known(Box<Identity>),
}

/// A transaction of a certain server, recognizable on another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub xid: String,
    /// The position of a record that carries the id.
    pub lsn: String,
    /// What that server had replayed itself; empty: nothing.
    pub replayed: String,
}

/// Answers that the client must not get yet: a commit whose wait for the standbys was cancelled is
/// among them.
#[derive(Default)]
pub(crate) struct Withheld {
    pub bytes: Vec<u8>,
    /// ReadyForQuery messages in `bytes`.
    pub cycles: usize,
    /// The transaction that is in doubt.
    pub xid: Xid,
    /// A barrier is on its way.
    pub asked: bool,
    /// The barrier's own wait was cancelled.
    pub again: bool,
    pub attempts: u32,
}

/// A reported parameter: name and value.
pub(crate) type Parameter = (Box<[u8]>, Box<[u8]>);

/// See the module.
pub(crate) struct Session<'a> {
    pub proxy: &'a Proxy,
    pub client: Stream,
    /// For the client, and not yet taken by it: `to_client[given..]`.
    pub to_client: Vec<u8>,
    pub given: usize,
    pub client_flush: bool,
    /// Of the client: read, and not yet passed on.
    pub from_client: Vec<u8>,
    /// `from_client` is the beginning of a message, not one that has to wait.
    pub wants_more: bool,
    /// The client has ended its side, or said so.
    pub client_ended: bool,
    pub up: Scanner,
    /// The rest of the client's message is not passed on.
    pub dropping: bool,
    /// The client broke the protocol, or left in the middle of something. What it says goes to
    /// the server as it is, which ends the connection, and says why as only it can.
    pub broken: bool,
    /// Extended messages were sent since the last Sync.
    pub open: bool,
    pub tracker: Tracker,
    pub link: Option<Link>,
    pub begun: Begun,
    pub secret: Secret,
    /// As the client knows them.
    pub parameters: Vec<Parameter>,
    pub carried: Carried,
    /// What statements that are answered may have changed, since the state was asked for.
    pub touched: Hints,
    pub xid: Xid,
    /// Something was sent behind the question for the id.
    pub xid_stale: bool,
    pub withheld: Option<Box<Withheld>>,
    /// The statement under way is to be found out about, and came as a simple query.
    pub converted: Option<Box<Converted>>,
    /// The state is being asked for; the client waits for its ReadyForQuery.
    pub asking: Option<Box<Snapshot>>,
    pub key: CancelKey,
    pub pool: PoolKey,
    /// What others may see of it.
    pub entry: ClientEntry,
    pub meter: Meter,
    /// It has state of its own, and keeps its server connection (transaction pooling).
    pub pinned: bool,
    /// The same, whatever the server says.
    pub pinned_for_good: bool,
    pub names: Names,
    /// Counts the connections it got.
    pub attached: u64,
    /// Its read-only transaction may run on a standby.
    pub apart: Apart,
    /// The connection that it will need after a switchover.
    pub warm: Option<Box<Warm<'a>>>,
}

impl<'a> Session<'a> {
    pub fn new(
        proxy: &'a Proxy,
        client: Stream,
        begun: Begun,
        pool: PoolKey,
        from_client: Vec<u8>,
    ) -> Self {
        let entry = proxy.pools.new_client(NewClient {
            user: begun.user().to_vec(),
            database: begun.database().to_vec(),
            application_name: begun.application_name().to_vec(),
            address: client.tcp().peer_addr().ok(),
            local: client.tcp().local_addr().ok(),
            tls: client.buffers(),
        });
        Self {
            proxy,
            client,
            to_client: Vec::new(),
            given: 0,
            client_flush: false,
            from_client,
            wants_more: false,
            client_ended: false,
            up: Scanner::new(Side::Frontend),
            dropping: false,
            broken: false,
            open: false,
            tracker: Tracker::new(),
            link: None,
            begun,
            secret: Secret::None,
            parameters: Vec::new(),
            carried: Carried::default(),
            touched: Hints::NONE,
            xid: Xid::Unknown,
            xid_stale: false,
            withheld: None,
            converted: None,
            asking: None,
            key: proxy.cancels.enter(),
            pool,
            entry,
            meter: Meter::default(),
            pinned: false,
            pinned_for_good: false,
            names: Names::default(),
            attached: 0,
            apart: Apart::default(),
            warm: None,
        }
    }

    /// The server reported a parameter. True: the client does not know it yet.
    pub fn reported(&mut self, name: &[u8], value: &[u8]) -> bool {
        match self.parameters.iter_mut().find(|(known, _)| &known[..] == name) {
            Some((_, known)) if &known[..] == value => false,
            Some((_, known)) => {
                *known = value.into();
                true
            }
            None => {
                self.parameters.push((name.into(), value.into()));
                true
            }
        }
    }

    /// The value of a reported parameter, as the client knows it.
    pub fn parameter(&self, name: &[u8]) -> Option<&[u8]> {
        let found = self.parameters.iter().find(|(known, _)| &known[..] == name);
        found.map(|(_, value)| &value[..])
    }

    /// Does the server wait for more from the client, or does it work for it? A server that is not
    /// told when such a client leaves waits forever, inside a COPY say, and keeps its locks.
    pub fn is_in_the_middle(&self) -> bool {
        let theirs = |pending: &Pending| pending.whose == Whose::Client;
        self.link.is_some() && (self.open || self.tracker.pending().any(theirs))
    }

    /// May the server be left for another one? Only between two transactions.
    pub fn is_idle(&self) -> bool {
        self.tracker.is_idle()
            && !self.open
            && !self.broken
            && self.up.at_boundary()
            && self.withheld.is_none()
            && self.asking.is_none()
    }
}

/// Why a session ends.
pub(crate) enum Over {
    /// The client is gone, or everything was said.
    Silent,
    /// This is to be said.
    Error(ErrorResponse),
    /// This was said by the server.
    Raw(Vec<u8>),
}
