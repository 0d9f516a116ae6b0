//! The life of one client connection, from its first byte to its last.

use super::{
    Proxy, admin,
    attach::{NotAttached, held_in_vain, not_encrypted, with_server},
    auth::Asking,
    link::{Answerer, LoggedIn, NoLink, log_in},
    login::{Welcome, log_in_pooled},
    negotiate::{Negotiated, negotiate},
    pool::{ClientState, PoolKey, goodbye},
    pump::Event,
    replication,
    session::{Over, Session},
    startup::Begun,
    stream::Stream,
    talk::Talk,
};
use crate::{ADMIN_DATABASE, CutReason, farewell, hold::Hold, session as pass, stats::count};
use sempre_wire::pg::{ErrorResponse, FirstPacket, Side, TransactionStatus, sqlstate, write};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Serves one client.
pub(crate) async fn run(client: TcpStream, proxy: &Proxy) {
    let mut closing = proxy.shared.closing.clone();
    // Boxed: an idle session should not carry the space that only its beginning needs.
    let begun = {
        let begin = Box::pin(begin(client, proxy));
        tokio::select! {
            begun = begin => begun,
            _ = closing.wait_for(|closing| *closing) => return,
        }
    };
    let Some(mut session) = begun else { return };
    let over = loop {
        let event = if session.link.is_some() {
            session.pump().await
        } else {
            let next = async {
                if session.carried.listens() {
                    // It waits for notifications: it needs a server though it says nothing.
                    return Event::NeedServer;
                }
                session.pump().await
            };
            tokio::select! {
                event = next => event,
                _ = closing.wait_for(|closing| *closing) => break shutdown(),
            }
        };
        if matches!(event, Event::Shared) {
            continue;
        }
        // Boxed, as it is rare and large.
        let handle = Box::pin(handle(&mut session, event));
        tokio::select! {
            handled = handle => if let Err(over) = handled {
                break over;
            },
            _ = closing.wait_for(|closing| *closing) => break shutdown(),
        }
    };
    Box::pin(end(*session, over)).await;
}

fn shutdown() -> Over {
    Over::Error(farewell::cut_error(&CutReason::Shutdown))
}

async fn handle(session: &mut Session<'_>, event: Event) -> Result<(), Over> {
    match event {
        Event::Shared => Ok(()),
        Event::ClientGone => Err(Over::Silent),
        Event::NeedServer => {
            session.flush().await.map_err(|_| Over::Silent)?;
            Ok(session.attach().await?)
        }
        Event::Split => {
            session.flush().await.map_err(|_| Over::Silent)?;
            session.split().await
        }
        Event::Locate => session.locate().await,
        Event::SplitEnds => match session.end_split() {
            Some(Event::Fatal(error)) => Err(Over::Error(error)),
            _ => Ok(()),
        },
        Event::Lost(loss) => session.lost(loss).await,
        Event::Fatal(error) => Err(Over::Error(error)),
        Event::Drain if session.is_asked_to_leave() => {
            session.give_back();
            Ok(())
        }
        Event::Drain => {
            session.leave();
            match session.carried.stuck(session.tracker.statements()) {
                Some(stuck) => Err(super::lost::not_carriable(&format!("It has {stuck}."))),
                None => Ok(()),
            }
        }
    }
}

impl Session<'_> {
    /// Leaves the server, in peace.
    fn leave(&mut self) {
        self.abandon_split();
        self.key.runs(None);
        self.entry.info.is(ClientState::Idle);
        if let Some(link) = self.link.take() {
            goodbye(link);
        }
    }
}

/// Says the last words.
async fn end(mut session: Session<'_>, over: Over) {
    session.drop_warm();
    let speakable = session.link.as_ref().is_none_or(|link| link.down.at_boundary());
    match over {
        Over::Silent => session.give_back(),
        _ => session.leave(),
    }
    let mut last_words = session.to_client.split_off(session.given);
    match over {
        Over::Error(error) if speakable => last_words.extend_from_slice(&error.encode()),
        Over::Raw(raw) if speakable => last_words.extend_from_slice(&raw),
        _ => {}
    }
    farewell::say(&mut session.client, &last_words).await;
}

/// Up to the point where the client is logged in. None: it was told why not, or is gone.
async fn begin<'a>(client: TcpStream, proxy: &'a Proxy) -> Option<Box<Session<'a>>> {
    let (mut client, first, shown) = match negotiate(client, proxy).await? {
        Negotiated::Ours(client, first, shown) => (client, first, shown),
        Negotiated::Passes(client, first) => {
            Box::pin(pass::run(client, Some(first), &proxy.shared)).await;
            return None;
        }
    };
    let begun = match FirstPacket::parse(&first.bytes) {
        Ok(FirstPacket::Startup(startup)) => Begun::new(&startup, &client, shown),
        Ok(FirstPacket::CancelRequest { process, key }) => {
            if proxy.cancels.cancel(process, key).await {
                count(&proxy.shared.counters.cancels);
            }
            return None;
        }
        _ => return None,
    };
    let refuse = async |client: &mut Stream, error: ErrorResponse| {
        farewell::say(client, &error.encode()).await;
        None
    };
    if proxy.settings.client_tls.as_ref().is_some_and(|tls| tls.required)
        && matches!(client, Stream::Plain(_))
    {
        return refuse(&mut client, not_encrypted()).await;
    }
    if begun.is_replication()
        && let Stream::Plain(client) = client
    {
        Box::pin(pass::run(client, Some(first), &proxy.shared)).await;
        return None;
    }
    if begun.user().is_empty() {
        let error = ErrorResponse::fatal(
            sqlstate::INVALID_AUTHORIZATION,
            "no PostgreSQL user name specified in startup packet",
            "",
            "",
        );
        return refuse(&mut client, error).await;
    }
    if begun.minor > 0 || !begun.options.is_empty() {
        let mut answer = Vec::new();
        let options: Vec<_> = begun.options.iter().map(Vec::as_slice).collect();
        write::negotiate_protocol_version(&mut answer, 0, &options);
        client.write_all(&answer).await.ok()?;
    }
    if begun.is_replication() {
        let over = Box::pin(replication::run(&mut client, proxy, &begun)).await;
        return not_in(&mut client, over.err()?).await;
    }
    if begun.database() == ADMIN_DATABASE.as_bytes() && !proxy.settings.admin_users.is_empty() {
        Box::pin(admin::run(client, proxy, &begun)).await;
        return None;
    }
    let pool = proxy.pools.key(&begun);
    match log_in_pooled(&mut client, proxy, &begun, &pool).await {
        Ok((welcome, from_client)) => {
            let mut session = Box::new(Session::new(proxy, client, begun, pool, from_client));
            session.welcome(welcome);
            Some(session)
        }
        Err(not) => not_in(&mut client, not).await,
    }
}

/// Tells a client why it is not let in.
async fn not_in<T>(client: &mut Stream, not: NotAttached) -> Option<T> {
    match not {
        NotAttached::ClientGone => {}
        NotAttached::Error(error) => farewell::say(client, &error.encode()).await,
        NotAttached::Raw(raw) => farewell::say(client, &raw).await,
    }
    None
}

impl Session<'_> {
    /// Tells the client that it is in.
    fn welcome(&mut self, welcome: Welcome) {
        let Welcome { link, secret, parameters, notices } = welcome;
        self.secret = secret;
        let out = &mut self.to_client;
        write::authentication_ok(out);
        out.extend_from_slice(&notices);
        for (name, value) in parameters {
            write::parameter_status(&mut self.to_client, &name, &value);
            self.reported(&name, &value);
        }
        let secret = self.key.secret.to_be_bytes();
        write::backend_key_data(&mut self.to_client, self.key.process, &secret);
        write::ready_for_query(&mut self.to_client, TransactionStatus::Idle);
        if let Some(link) = link {
            self.set_link(link);
        }
    }
}

/// The first log-in: the server asks, the client answers.
pub(super) async fn log_in_first(
    client: &mut Stream,
    proxy: &Proxy,
    begun: &Begun,
    pool: &PoolKey,
) -> Result<(LoggedIn, Vec<u8>), NotAttached> {
    let mut hold = Hold::new(&proxy.shared);
    let mut known = None;
    loop {
        let led = hold.lead(client.tcp()).await.map_err(|n| held_in_vain(proxy, n))?;
        let mut talk = Talk::new(client, Side::Frontend, Vec::new());
        let mut asking = Asking {
            talk: &mut talk,
            user: begun.user(),
            credentials: proxy.settings.credentials.as_deref(),
            end_point: begun.shown.end_point.as_deref(),
        };
        let logged_in = with_server(led, async |led| {
            // What the client has revealed need not be asked for again.
            let answerer = match &known {
                Some(known) => Answerer::Us(known),
                None => Answerer::Client(&mut asking, &mut known),
            };
            log_in(led, proxy, pool, begun, answerer).await
        });
        let why = match logged_in.await {
            Ok(logged_in) => return Ok((logged_in, talk.rest())),
            Err(NoLink::NotYet(why)) => why,
            Err(NoLink::ClientGone) => return Err(NotAttached::ClientGone),
            Err(NoLink::Error(error)) => return Err(NotAttached::Error(error)),
            Err(NoLink::Refused(raw)) => return Err(NotAttached::Raw(raw)),
        };
        hold.not_yet(client.tcp(), why).await.map_err(|n| held_in_vain(proxy, n))?;
    }
}
