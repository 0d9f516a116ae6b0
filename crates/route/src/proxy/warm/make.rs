//! A session makes its warm connection, beside what it does for its client.

use super::{
    MAKE_WITHIN,
    campaign::{AtWork, Bytes, Campaign},
    locate::catch_up,
};
use crate::{
    connect,
    hold::Led,
    proxy::{
        Proxy,
        attach::with_server,
        auth::Secret,
        carry::Ahead,
        link::{Answerer, Link, LoggedIn, NoLink, log_in},
        pool::{PoolKey, goodbye, is_silent},
        pump::Event,
        session::Session,
        startup::Begun,
    },
    stats::count,
};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};
use tokio::time;

/// A connection to a standby, in a session's state as far as that could be.
pub(crate) struct Made {
    pub link: Link,
    /// What was restored on it.
    pub ahead: Ahead,
    _bytes: Option<Bytes>,
}

impl Made {
    /// Is it still worth keeping?
    pub fn is_there(&mut self) -> bool {
        self.link.ticket.cut.reason().is_none() && is_silent(&mut self.link)
    }
}

type Making<'a> = Pin<Box<dyn Future<Output = Option<Made>> + Send + 'a>>;

/// What a session has of it.
pub(crate) enum Warm<'a> {
    /// It is on its way. (The lock is never waited for: it makes it `Sync`.)
    Making(Mutex<Making<'a>>),
    /// It is there.
    Made(Box<Made>),
}

/// All that one log-in needs.
struct Recipe {
    begun: Begun,
    secret: Secret,
    pool: PoolKey,
    ahead: Ahead,
    bytes: Option<Bytes>,
}

impl Session<'_> {
    /// Makes its warm connection, when it is called to.
    pub(in crate::proxy) fn warm_up(&mut self, context: &mut Context<'_>) {
        if self.link.as_ref().is_some_and(|link| link.ticket.cut.is_called()) {
            self.answer_call();
        }
        match self.warm.as_deref_mut() {
            None => {}
            Some(Warm::Making(making)) => {
                let making = making.get_mut().unwrap_or_else(|error| error.into_inner());
                let Poll::Ready(made) = making.as_mut().poll(context) else { return };
                self.warm = None;
                let Some(mut made) = made else { return };
                count(&self.proxy.shared.counters.warm_made);
                if made.link.ticket.cut.poll(context).is_some() {
                    goodbye(made.link);
                } else if self.lends() {
                    self.proxy.pools.put_warm(&self.pool, made);
                } else {
                    made.link.kept.shrink_to_fit();
                    self.warm = Some(Box::new(Warm::Made(Box::new(made))));
                }
            }
            Some(Warm::Made(made)) if made.link.ticket.cut.poll(context).is_some() => {
                self.drop_warm();
            }
            Some(Warm::Made(_)) => {}
        }
    }

    /// The session may ask the primary where it is, if somebody has to.
    pub(in crate::proxy) fn may_locate(&self) -> Option<Event> {
        self.warm.as_ref()?;
        let campaign = self.proxy.campaigns.now()?;
        let quiet = self.is_idle()
            && !self.apart.on
            && self.given == self.to_client.len()
            && self.from_client.is_empty()
            && self.link.as_ref().is_some_and(|link| {
                link.out.is_empty() && link.kept.is_empty() && link.down.at_boundary()
            });
        (campaign.wants_position() && quiet && campaign.take_position()).then_some(Event::Locate)
    }

    fn answer_call(&mut self) {
        if let Some(link) = &self.link {
            link.ticket.cut.answer_call();
        }
        let Some(campaign) = self.proxy.campaigns.now() else { return };
        let stuck = self.carried.stuck(self.tracker.statements()).is_some();
        if self.warm.is_some() || self.secret_is_spent() || stuck {
            return;
        }
        // Noted before it is counted, so before the primary is asked for its position.
        let whole = !self.lends();
        let statements = (whole && !self.renames()).then(|| self.tracker.statements());
        let mut ahead = match whole {
            true => self.carried.ahead(statements),
            false => Ahead::default(),
        };
        let bytes = campaign.bytes(ahead.bytes());
        if bytes.is_none() {
            ahead.forget_statements();
        }
        let recipe = Recipe {
            begun: self.begun.clone(),
            secret: self.secret.clone(),
            pool: self.pool.clone(),
            ahead,
            bytes,
        };
        let at_work = campaign.begin();
        let making: Making = Box::pin(make(self.proxy, at_work, recipe));
        self.warm = Some(Box::new(Warm::Making(Mutex::new(making))));
    }

    /// It is not wanted any more.
    pub(in crate::proxy) fn drop_warm(&mut self) {
        if let Some(Warm::Made(made)) = self.warm.take().map(|warm| *warm) {
            goodbye(made.link);
        }
    }
}

async fn make(proxy: &Proxy, at_work: AtWork, recipe: Recipe) -> Option<Made> {
    let campaign = at_work.campaign.clone();
    let turn = async {
        let position = campaign.position(at_work.round).await?;
        let place = campaign.places.acquire().await.ok()?;
        campaign.pace().await;
        Some((position, place))
    };
    let (position, _place) = tokio::select! {
        turn = turn => turn?,
        () = campaign.ended() => return None,
    };
    let made = async {
        if campaign.caught_up.load(Relaxed) < u64::from(at_work.round) {
            let _turn = campaign.scout.lock().await;
            if campaign.caught_up.load(Relaxed) < u64::from(at_work.round) {
                // What this log-in has seen may be older: it only looks.
                let mut link = connect(proxy, &campaign, &recipe).await?;
                let caught_up = catch_up(&mut link, position).await;
                goodbye(link);
                if caught_up.is_none() {
                    tracing::info!("the standby is too far behind to be warmed up");
                    campaign.end();
                    return None;
                }
                campaign.caught_up.store(u64::from(at_work.round), Relaxed);
            }
        }
        let mut link = connect(proxy, &campaign, &recipe).await?;
        let Recipe { mut ahead, bytes, .. } = recipe;
        let restored = ahead.restore(&mut link.stream, &mut link.kept).await.ok()?;
        for (name, value) in restored.parameters {
            link.reported(&name, &value);
        }
        Some(Made { link, ahead, _bytes: bytes })
    };
    time::timeout(MAKE_WITHIN, made).await.ok().flatten()
}

/// Logs in on the standby.
async fn connect(proxy: &Proxy, campaign: &Arc<Campaign>, recipe: &Recipe) -> Option<Link> {
    let candidate = campaign.candidate.clone();
    let ticket = proxy.shared.sessions.enter(&candidate)?;
    let (server, host) = connect::to_target(&candidate.target).await.ok()?;
    ticket.over(host);
    let host = host.to_owned();
    let led = Led { server, ticket, candidate: candidate.clone(), host };
    let logged_in = with_server(led, async |led| {
        log_in(led, proxy, &recipe.pool, &recipe.begun, Answerer::Us(&recipe.secret)).await
    });
    match logged_in.await {
        Ok(LoggedIn { link, .. }) => Some(link),
        Err(error) => {
            let why = match error {
                NoLink::NotYet(why) => why,
                NoLink::Error(error) => error.message.to_string(),
                NoLink::Refused(_) | NoLink::ClientGone => "it refuses".into(),
            };
            let member = &candidate.target.member;
            tracing::info!(%member, why, "a session cannot be warmed up");
            campaign.failed();
            None
        }
    }
}
