//! Gives a session a server: found, verified, logged in to, and brought to the session's state.

use super::{
    Proxy,
    carry::RestoreError,
    link::{Answerer, Link, LoggedIn, NoLink, log_in},
    lost::not_carriable,
    pool::ClientState,
    session::{Over, Session},
    share::set_name,
    talk::Answers,
};
use crate::{
    Role, farewell,
    hold::{Hold, Led, NotLed},
    sessions::Cut,
    stats::count,
};
use sempre_wire::pg::{ErrorResponse, sqlstate, track::Statements, write};
use std::{future::poll_fn, sync::atomic::Ordering::Relaxed, task::Poll, time::Duration};
use tokio::time;

/// How long a server may take to log a session in and to restore its state. Its own log-in limit is 60 s.
const LOG_IN_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a session has no server and gets none.
pub(super) enum NotAttached {
    ClientGone,
    Error(ErrorResponse),
    /// A server's own words.
    Raw(Vec<u8>),
}

/// What a client that was held in vain is told.
pub(super) fn held_in_vain(proxy: &Proxy, not_led: NotLed) -> NotAttached {
    match not_led {
        NotLed::ClientGone => NotAttached::ClientGone,
        NotLed::Refused { why, limit } => {
            count(&proxy.shared.counters.refused);
            let mode = proxy.shared.mode;
            tracing::info!(?mode, why, limit, "client refused");
            NotAttached::Error(farewell::refused(mode, &why, &limit))
        }
    }
}

/// Runs what needs a connection until it is done or the connection is cut.
pub(super) async fn until_cut<T>(cut: &Cut, work: impl Future<Output = T>) -> Option<T> {
    let cut = poll_fn(move |context| match cut.poll(context) {
        Some(_) => Poll::Ready(()),
        None => Poll::Pending,
    });
    tokio::select! {
        biased;
        () = cut => None,
        done = work => Some(done),
    }
}

/// The same, unless it takes too long.
pub(super) async fn with_link<T>(cut: &Cut, work: impl Future<Output = Option<T>>) -> Option<T> {
    until_cut(cut, time::timeout(LOG_IN_TIMEOUT, work)).await?.ok().flatten()
}

/// Runs what needs a server until it is done, the table leads elsewhere, or it takes too long.
pub(super) async fn with_server<T>(
    led: Led,
    work: impl AsyncFnOnce(Led) -> Result<T, NoLink>,
) -> Result<T, NoLink> {
    let cut = led.ticket.cut.clone();
    match until_cut(&cut, time::timeout(LOG_IN_TIMEOUT, work(led))).await {
        None => Err(NoLink::NotYet("the server was replaced meanwhile".into())),
        Some(Ok(done)) => done,
        Some(Err(_)) => {
            let limit = LOG_IN_TIMEOUT.as_secs();
            Err(NoLink::NotYet(format!("the server did not answer within {limit} s")))
        }
    }
}

impl Session<'_> {
    /// A server, as soon as there is one.
    pub(super) async fn attach(&mut self) -> Result<(), NotAttached> {
        if self.link.is_some() {
            return Ok(());
        }
        self.entry.info.is(ClientState::Waiting);
        let proxy = self.proxy;
        let entered = proxy.pools.enter(&self.pool, self.client.tcp()).await;
        let mut place = Some(entered.map_err(|not| match not.error() {
            Some(error) => NotAttached::Error(error),
            None => NotAttached::ClientGone,
        })?);
        let mut warm = self.take_warm();
        while warm.is_none()
            && let Some(link) = proxy.pools.take(&self.pool)
        {
            if let Some(mut link) = self.make_own(link).await {
                link.place = place;
                self.set_link(link);
                return Ok(());
            }
        }
        warm = warm.or_else(|| proxy.pools.take_warm(&self.pool));
        if self.secret_is_spent() {
            return Err(match not_carriable("Its password passed through routing unseen.") {
                Over::Error(error) => NotAttached::Error(error),
                Over::Silent | Over::Raw(_) => NotAttached::ClientGone,
            });
        }
        let mut hold = Hold::new(&proxy.shared);
        loop {
            proxy.pools.make_room(&self.pool);
            if let Some(made) = warm.take() {
                let adopted = self.adopt(&mut hold, made).await;
                if let Some(mut link) = adopted.map_err(|n| held_in_vain(proxy, n))? {
                    link.place = place.take();
                    self.set_link(link);
                    return Ok(());
                }
            }
            let led = hold.lead(self.client.tcp()).await.map_err(|n| held_in_vain(proxy, n))?;
            let member = led.candidate.target.member.clone();
            let attached = with_server(led, async |led| self.take_over(led).await).await;
            let why = match attached {
                Ok(mut link) => {
                    link.place = place.take();
                    self.set_link(link);
                    return Ok(());
                }
                Err(NoLink::NotYet(why)) => why,
                Err(NoLink::ClientGone) => return Err(NotAttached::ClientGone),
                Err(NoLink::Error(error)) => return Err(NotAttached::Error(error)),
                Err(NoLink::Refused(raw)) => return Err(NotAttached::Raw(raw)),
            };
            tracing::debug!(why, "a session could not be carried there");
            proxy.shared.sessions.failed(&member);
            hold.not_yet(self.client.tcp(), why).await.map_err(|n| held_in_vain(proxy, n))?;
        }
    }

    /// The session's server from now on.
    pub(super) fn set_link(&mut self, link: Link) {
        self.key.runs(Some(&link));
        self.entry.info.is(ClientState::Active);
        self.entry.info.server.store(link.info.number, Relaxed);
        link.info.used_by(self.entry.info.number);
        link.ticket.cut.hold();
        self.attached += 1;
        self.link = Some(link);
    }

    /// Logs in and restores the session.
    async fn take_over(&mut self, led: Led) -> Result<Link, NoLink> {
        let answerer = Answerer::Us(&self.secret);
        let LoggedIn { mut link, .. } =
            log_in(led, self.proxy, &self.pool, &self.begun, answerer).await?;
        self.restore(&mut link).await?;
        Ok(link)
    }

    /// Brings a connection to the session's state, and tells the client what is different.
    pub(super) async fn restore(&mut self, link: &mut Link) -> Result<(), NoLink> {
        // The one setting that a session may have and still share its connections.
        let name = self.parameter(b"application_name").unwrap_or_default().to_vec();
        if link.parameter(b"application_name").unwrap_or_default() != name {
            let set = set_name(link, &name).await;
            set.ok_or_else(|| NoLink::NotYet("the client's name cannot be set".into()))?;
        }
        // Of one that shares its connections nothing needs to be restored; its prepared
        // statements come when they are used.
        let none = Statements::default();
        let statements = match self.renames() {
            true => &none,
            false => self.tracker.statements(),
        };
        let restored = match self.shares() && !self.pinned {
            true => Ok(Answers::default()),
            false => self.carried.restore(statements, &mut link.stream, &mut link.kept).await,
        };
        let restored = restored.map_err(|error| match error {
            RestoreError::Talk(error) => NoLink::NotYet(error.to_string()),
            RestoreError::Refused(_) => match not_carriable(&format!("{error}.")) {
                Over::Error(error) => NoLink::Error(error),
                Over::Silent | Over::Raw(_) => NoLink::ClientGone,
            },
        })?;
        for (name, value) in restored.parameters {
            link.reported(&name, &value);
        }
        self.to_client.extend_from_slice(&restored.notifications);
        self.tell_parameters(link);
        Ok(())
    }

    /// Tells the client what is different on this connection.
    pub(super) fn tell_parameters(&mut self, link: &Link) {
        // A client of the read-write port is not told of each transaction that a standby serves.
        let split = self.proxy.standbys.is_some() && link.role == Role::Standby;
        for (name, value) in &link.parameters {
            if split && &name[..] == b"in_hot_standby" {
                continue;
            }
            if self.reported(name, value) {
                write::parameter_status(&mut self.to_client, name, value);
            }
        }
    }

    /// The way it logged in cannot be repeated.
    pub(super) fn secret_is_spent(&self) -> bool {
        matches!(self.secret, super::auth::Secret::Relayed)
    }
}

/// A client that does not encrypt where it must.
pub(super) fn not_encrypted() -> ErrorResponse {
    ErrorResponse::fatal(
        sqlstate::INVALID_AUTHORIZATION,
        "this port takes encrypted connections only",
        "",
        "Connect with sslmode=require or better.",
    )
}
