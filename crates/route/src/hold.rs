//! Finds a member for a client, and holds the client while there is none.

use crate::{
    Mode, Role, Table,
    choose::Candidate,
    connect,
    gate::Gate,
    sessions::{Sessions, Ticket},
    stats::{Counters, Gauge, count},
};
use sempre_model::MemberId;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::watch,
    time::{self, Instant},
};

/// Held clients try again after this, even without news: the table may be right and the member
/// just not reachable yet.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// The pause grows to this.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// What all sessions of a router share.
pub(crate) struct Shared {
    pub mode: Mode,
    pub table: watch::Receiver<Arc<Table>>,
    pub gate: Gate,
    pub sessions: Arc<Sessions>,
    pub counters: Arc<Counters>,
    /// True: the router stops.
    pub closing: watch::Receiver<bool>,
}

/// A client's server.
pub(crate) struct Led {
    pub server: TcpStream,
    pub ticket: Ticket,
    /// Who it is.
    pub candidate: Candidate,
    /// The address it is connected by.
    pub host: String,
}

/// Why a client was not led anywhere.
pub(crate) enum NotLed {
    /// It went away.
    ClientGone,
    /// A limit was reached; what to say.
    Refused { why: String, limit: String },
}

/// A client that wants in. It may be led more than once, all within one time limit.
pub(crate) struct Hold<'a> {
    shared: &'a Shared,
    since: Instant,
    table: watch::Receiver<Arc<Table>>,
    retry: Duration,
    held: Option<Gauge<'a>>,
    /// It had to wait before.
    waited: bool,
    why: String,
}

impl<'a> Hold<'a> {
    pub fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            since: Instant::now(),
            table: shared.table.clone(),
            retry: RETRY_MIN,
            held: None,
            waited: false,
            why: String::new(),
        }
    }

    /// Leads the client, as soon as that is possible.
    pub async fn lead(&mut self, client: &TcpStream) -> Result<Led, NotLed> {
        loop {
            let table = self.table.borrow_and_update().clone();
            self.why.clone_from(&table.why_no_primary);
            for candidate in self.shared.sessions.candidates(&table, self.shared.mode) {
                match self.attempt(&candidate).await {
                    Ok(led) => {
                        count(&self.shared.counters.led);
                        self.held = None;
                        return Ok(led);
                    }
                    Err(why) => {
                        tracing::debug!(member = %candidate.target.member, why, "not led there");
                        self.shared.sessions.failed(&candidate.target.member);
                        self.why = why;
                    }
                }
            }
            self.wait(client, &table).await?;
        }
    }

    /// Leads the client to where `ticket`'s connection is, as soon as that is the primary: it was
    /// made before that is verified, as any other. False: it is of no use.
    pub async fn lead_warm(
        &mut self,
        client: &TcpStream,
        ticket: &Ticket,
        member: &MemberId,
    ) -> Result<Option<Candidate>, NotLed> {
        let shared = self.shared;
        loop {
            let table = self.table.borrow_and_update().clone();
            self.why.clone_from(&table.why_no_primary);
            if ticket.cut.reason().is_some() {
                return Ok(None);
            }
            let candidate = shared.sessions.candidates(&table, shared.mode).into_iter().next();
            if let Some(candidate) = candidate {
                if candidate.target.member != *member {
                    return Ok(None);
                }
                if shared.gate.verify(member, candidate.generation).await {
                    self.held = None;
                    let leads = ticket.leads(&candidate);
                    count(&shared.counters.led);
                    return Ok(leads.then_some(candidate));
                }
                count(&shared.counters.unverified);
                self.why = format!(
                    "{member} does not confirm that it is the primary of generation {}",
                    candidate.generation
                );
            }
            self.wait(client, &table).await?;
        }
    }

    /// The server could not go on with the client after all (it is starting, or stopping).
    pub async fn not_yet(&mut self, client: &TcpStream, why: String) -> Result<(), NotLed> {
        let table = self.table.borrow_and_update().clone();
        self.why = why;
        self.wait(client, &table).await
    }

    /// Connects first and verifies then: see [`crate::Verifier`].
    pub async fn attempt(&mut self, candidate: &Candidate) -> Result<Led, String> {
        let (shared, waited) = (self.shared, self.waited);
        let member = &candidate.target.member;
        let ticket = shared
            .sessions
            .enter(candidate)
            .ok_or_else(|| format!("generation {} is over", candidate.generation))?;
        let led = async {
            let verified = async || {
                if candidate.role != Role::Primary
                    || shared.gate.verify(member, candidate.generation).await
                {
                    return Ok(());
                }
                count(&shared.counters.unverified);
                Err(format!(
                    "{member} does not confirm that it is the primary of generation {} and admits clients",
                    candidate.generation
                ))
            };
            if waited {
                // Thousands of held clients must not make the server fork for each of their
                // attempts while it admits nobody. This answer lets nobody in: see below.
                verified().await?;
            }
            let (server, host) = connect::to_target(&candidate.target).await.inspect_err(|_| {
                count(&shared.counters.unreachable);
            })?;
            ticket.over(host);
            verified().await?;
            match ticket.cut.reason() {
                None => {
                    let host = host.to_owned();
                    Ok(Led { server, ticket, candidate: candidate.clone(), host })
                }
                Some(_) => Err(format!("{member} was replaced or its path lost meanwhile")),
            }
        };
        let overtaken = async {
            // Ends when the table leads elsewhere: no use to go on with a dead address then.
            let stale = |table: &Arc<Table>| !candidate.stands_in(table);
            if self.table.wait_for(stale).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            led = led => led,
            () = overtaken => {
                // Seen by `wait_for`, but not yet acted on.
                self.table.mark_changed();
                Err(format!("{member} was replaced meanwhile"))
            }
        }
    }

    /// Waits for news, or a moment, within the limits.
    async fn wait(&mut self, client: &TcpStream, table: &Table) -> Result<(), NotLed> {
        let limits = &table.limits;
        let counters = &self.shared.counters;
        if self.held.is_none() {
            let gauge = Gauge::up(&counters.held);
            if gauge.before() >= limits.hold_max as u64 {
                return Err(self.refused(format!(
                    "{} connections are waiting already (route_hold_max)",
                    limits.hold_max
                )));
            }
            self.held = Some(gauge);
        }
        let deadline = self.since + Duration::from_millis(limits.hold_timeout_ms);
        if Instant::now() >= deadline {
            return Err(self.refused(format!(
                "the connection waited {} ms (route_hold_timeout_ms)",
                limits.hold_timeout_ms
            )));
        }
        self.waited = true;
        let retry = Instant::now() + self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
        let news = async {
            if self.table.changed().await.is_err() {
                // The source is gone. What it said last still counts, once verified.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = news => self.retry = RETRY_MIN,
            () = time::sleep_until(retry.min(deadline)) => {}
            () = gone(client) => return Err(NotLed::ClientGone),
        }
        Ok(())
    }

    fn refused(&mut self, limit: String) -> NotLed {
        self.held = None;
        NotLed::Refused { why: self.why.clone(), limit }
    }
}

/// Ends when the client has closed the connection. A client that sent more already (which none
/// does before it is answered) is not watched.
pub(crate) async fn gone(client: &TcpStream) {
    match client.ready(Interest::READABLE).await {
        Ok(ready) if !ready.is_read_closed() => std::future::pending().await,
        Ok(_) | Err(_) => {}
    }
}
