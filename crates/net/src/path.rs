//! One path to one member: its connection, and what was heard on it.

use crate::{
    connect::{CONNECT_TIMEOUT, Connection, Target, connect},
    identity::Identity,
    rpc::{RpcError, answer, chain, request},
};
use bytes::Bytes;
use rustls::ClientConfig;
use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{Instant as Deadline, timeout_at},
};

/// Weight of the past in the round-trip average: 7 of 8, as TCP does it.
const RTT_KEEP: u64 = 7;

/// What is known of a path.
#[derive(Clone, Debug, Default)]
pub struct PathState {
    /// When an answer last came over it.
    pub last_heard: Option<Instant>,
    /// Round trip, µs, averaged; of calls on exactly this path where there are any.
    pub rtt_us: Option<u64>,
    /// Is a connection open?
    pub connected: bool,
    /// Why the last call on it failed; none once one succeeded.
    pub last_error: Option<String>,
    /// Calls that failed since one succeeded.
    pub failures: u32,
}

/// A call did not succeed on a path.
#[derive(Clone, Debug)]
pub enum PathFailure {
    /// The peer answered with an error.
    Answered(RpcError),
    /// The peer could not be asked: nothing was sent.
    NotSent(String),
    /// It was sent, and no whole answer came: it may have arrived.
    Broken(String),
    /// It was sent, and no answer came in time: it may have arrived.
    TimedOut(String),
}

impl PathFailure {
    /// Why, and whether the call may have arrived.
    pub fn in_words(self) -> (String, bool) {
        match self {
            PathFailure::Answered(error) => (error.to_string(), true),
            PathFailure::NotSent(why) => (why, false),
            PathFailure::Broken(why) | PathFailure::TimedOut(why) => (why, true),
        }
    }
}

/// One call, as every path gets it.
#[derive(Clone)]
pub struct Call {
    pub method: Arc<str>,
    pub body: Bytes,
    pub deadline: Deadline,
    /// Whether its round trip tells of the path: a heartbeat's does, any other call's includes the
    /// work it asks for.
    pub measures: bool,
}

/// A connection and the epoch of the certificate it was opened with.
struct Open {
    connection: Connection,
    epoch: u64,
}

type Opened = Option<Result<Arc<Open>, String>>;

enum Slot {
    Idle,
    /// One attempt at a time; everybody who needs it waits for the same.
    Opening(watch::Receiver<Opened>),
    Open(Arc<Open>),
}

struct Inner {
    slot: Slot,
    state: PathState,
    measured: bool,
}

/// One path to one member.
pub struct PeerPath {
    target: Target,
    identity: Arc<Identity>,
    tls: Arc<ClientConfig>,
    inner: Mutex<Inner>,
}

impl PeerPath {
    pub fn new(target: Target, identity: Arc<Identity>, tls: Arc<ClientConfig>) -> Arc<Self> {
        let inner = Inner { slot: Slot::Idle, state: PathState::default(), measured: false };
        Arc::new(Self { target, identity, tls, inner: Mutex::new(inner) })
    }

    pub fn is_to(&self, host: &str, port: u16) -> bool {
        self.target.host == host && self.target.port == port
    }

    /// `host:port`, for messages.
    pub fn address(&self) -> String {
        format!("{}:{}", self.target.host, self.target.port)
    }

    pub fn state(&self) -> PathState {
        let inner = self.lock();
        let connected = matches!(&inner.slot, Slot::Open(open) if !open.connection.is_closed());
        PathState { connected, ..inner.state.clone() }
    }

    /// Calls over this path and no other.
    pub async fn call(self: &Arc<Self>, call: &Call) -> Result<Bytes, PathFailure> {
        let began = Instant::now();
        let mut used: Option<Arc<Open>> = None;
        let mut sent = false;
        let attempt = self.attempt(call, &mut used, &mut sent);
        let outcome = match timeout_at(call.deadline, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let why = format!("no answer within {} ms", began.elapsed().as_millis());
                Err(if sent { PathFailure::TimedOut(why) } else { PathFailure::NotSent(why) })
            }
        };
        match &outcome {
            Ok(_) | Err(PathFailure::Answered(_)) => {}
            Err(PathFailure::Broken(why) | PathFailure::NotSent(why)) => self.note_failure(why),
            Err(PathFailure::TimedOut(why)) => {
                self.note_failure(why);
                // Other answers meanwhile: the call is slow, not the path.
                if let Some(used) = used.filter(|_| !self.heard_since(began)) {
                    self.retire(&used);
                }
            }
        }
        outcome
    }

    /// An answer came over another path first, and this one has been silent since `began`:
    /// others should not be made to wait for it.
    pub fn overtaken(&self, began: Instant) {
        if !self.heard_since(began) {
            self.note_failure("slower than another path");
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        call: &Call,
        used: &mut Option<Arc<Open>>,
        sent: &mut bool,
    ) -> Result<Bytes, PathFailure> {
        let mut retried = false;
        let broken = |sent, why| match sent {
            true => PathFailure::Broken(why),
            false => PathFailure::NotSent(why),
        };
        loop {
            let (open, fresh) = self.open().await.map_err(|why| broken(*sent, why))?;
            *used = Some(open.clone());
            let request =
                request(&call.method, call.body.clone()).map_err(PathFailure::Answered)?;
            let sent_at = Instant::now();
            let sent_before = std::mem::replace(sent, true);
            let response = open.connection.sender().send_request(request).await;
            let outcome = match response {
                Ok(response) => answer(response).await,
                Err(e) => {
                    // "Canceled": the connection had ended before it came to this request.
                    *sent = sent_before || !e.is_canceled();
                    Err(chain(&e))
                }
            };
            match outcome {
                Ok(answered) => {
                    self.note_answer(sent_at.elapsed(), call.measures);
                    return answered.map_err(PathFailure::Answered);
                }
                Err(why) => {
                    self.retire(&open);
                    // A kept connection may have died while it was idle: that says nothing of a
                    // new one. Calls are idempotent, so a second try does no harm.
                    if fresh || retried {
                        let why = open.connection.ended().unwrap_or(why);
                        return Err(broken(*sent, why));
                    }
                    retried = true;
                }
            }
        }
    }

    /// The open connection, or a new one; true: opened just now.
    async fn open(self: &Arc<Self>) -> Result<(Arc<Open>, bool), String> {
        let mut opening = {
            let mut inner = self.lock();
            match &inner.slot {
                Slot::Open(open)
                    if !open.connection.is_closed() && open.epoch == self.identity.epoch() =>
                {
                    return Ok((open.clone(), false));
                }
                // An attempt whose task died without a word does not count.
                Slot::Opening(attempt)
                    if attempt.borrow().is_none() && attempt.has_changed().is_ok() =>
                {
                    attempt.clone()
                }
                _ => {
                    let (tell, attempt) = watch::channel(None);
                    inner.slot = Slot::Opening(attempt.clone());
                    tokio::spawn(self.clone().connect(tell));
                    attempt
                }
            }
        };
        let opened = opening.wait_for(Option::is_some).await;
        match opened.as_deref() {
            Ok(Some(Ok(open))) => Ok((open.clone(), true)),
            Ok(Some(Err(why))) => Err(why.clone()),
            Ok(None) | Err(_) => Err("connecting was given up".into()),
        }
    }

    /// Runs as a task of its own: it ends by its own deadlines, and who waits for it may go away.
    async fn connect(self: Arc<Self>, tell: watch::Sender<Opened>) {
        let epoch = self.identity.epoch();
        let result = connect(&self.target, self.tls.clone(), CONNECT_TIMEOUT, None)
            .await
            .map(|connection| Arc::new(Open { connection, epoch }));
        self.lock().slot = match &result {
            Ok(open) => Slot::Open(open.clone()),
            Err(_) => Slot::Idle,
        };
        tell.send_replace(Some(result));
    }

    /// The next call opens a new connection; calls still waiting on this one keep it.
    fn retire(&self, open: &Arc<Open>) {
        let mut inner = self.lock();
        if matches!(&inner.slot, Slot::Open(now) if Arc::ptr_eq(now, open)) {
            inner.slot = Slot::Idle;
        }
    }

    fn note_answer(&self, took: Duration, measures: bool) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut inner = self.lock();
        inner.state.last_heard = Some(Instant::now());
        inner.state.last_error = None;
        inner.state.failures = 0;
        if measures && !inner.measured {
            inner.measured = true;
            inner.state.rtt_us = None;
        }
        if measures || !inner.measured {
            inner.state.rtt_us = Some(match inner.state.rtt_us {
                None => took_us,
                Some(old) => (old * RTT_KEEP + took_us) / (RTT_KEEP + 1),
            });
        }
    }

    fn note_failure(&self, why: &str) {
        let mut inner = self.lock();
        inner.state.failures = inner.state.failures.saturating_add(1);
        inner.state.last_error = Some(why.to_owned());
    }

    fn heard_since(&self, moment: Instant) -> bool {
        self.lock().state.last_heard.is_some_and(|heard| heard >= moment)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }
}
