//! A connection to a server, logged in as the client's user.

use super::{
    Proxy,
    auth::{Asking, Secret, Showing},
    pool::{NewServer, Place, PoolKey, ServerEntry},
    prepared::Known,
    session::Parameter,
    startup::Begun,
    stream::Stream,
    talk::{Heard, Talk, TalkError, texts},
};
use crate::{Role, ServerTls, hold::Led, sessions::Ticket};
use sempre_model::{Generation, MemberId};
use sempre_wire::pg::{Authentication, Backend, ErrorResponse, Scanner, Side, sqlstate, write};
use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

/// Messages of a client during one log-in; SCRAM has two.
const ROUNDS_MAX: usize = 8;

/// A server that is logged in to.
pub(crate) struct Link {
    pub stream: Stream,
    pub ticket: Ticket,
    pub member: MemberId,
    pub generation: Generation,
    /// Where to send a cancel request, and what it must say.
    pub address: Option<SocketAddr>,
    pub process: u32,
    pub key: Vec<u8>,
    /// For the server, and not yet taken by it: `out[sent..]`.
    pub out: Vec<u8>,
    pub sent: usize,
    pub flush: bool,
    /// Of the server: the beginning of a message.
    pub kept: Vec<u8>,
    pub down: Scanner,
    /// Our own statements are prepared on it.
    pub xid_prepared: bool,
    pub state_prepared: bool,
    /// It said that it ends the session.
    pub farewell: Farewell,
    pub role: Role,
    /// Its user's right to use it; none while it is idle.
    pub place: Option<Place>,
    /// See [`PoolKey::variant`].
    pub variant: Arc<[u8]>,
    /// See [`super::pool::Pool::epoch`].
    pub epoch: u64,
    pub born: Instant,
    /// As the server reported them last.
    pub parameters: Vec<Parameter>,
    pub info: ServerEntry,
    /// Cancel requests that are on their way to it.
    pub cancelling: Arc<AtomicUsize>,
    /// Statements of all clients (transaction pooling).
    pub known: Known,
}

impl Link {
    /// The server reported a parameter.
    pub fn reported(&mut self, name: &[u8], value: &[u8]) {
        match self.parameters.iter_mut().find(|(known, _)| &known[..] == name) {
            Some((_, known)) if &known[..] == value => {}
            Some((_, known)) => *known = value.into(),
            None => self.parameters.push((name.into(), value.into())),
        }
    }

    /// The value of a parameter that is reported.
    pub fn parameter(&self, name: &[u8]) -> Option<&[u8]> {
        let found = self.parameters.iter().find(|(known, _)| &known[..] == name);
        found.map(|(_, value)| &value[..])
    }

    /// What was prepared on it may be gone.
    pub fn forget_statements(&mut self) {
        (self.xid_prepared, self.state_prepared) = (false, false);
        self.known.clear();
    }
}

/// The last words of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// None so far.
    None,
    /// FATAL 57P01 before anything else was answered: what ran is rolled back.
    Shutdown,
    /// It crashes, or says so to be safe: nothing is known.
    Crash,
    /// The session itself is at fault; the client was told.
    Told,
}

/// Why there is no link.
pub(crate) enum NoLink {
    /// Not now: wait and try again.
    NotYet(String),
    /// The server refused: its message for the client.
    Refused(Vec<u8>),
    /// Something else, for the client.
    Error(ErrorResponse),
    /// The client is gone.
    ClientGone,
}

/// What came with a log-in.
pub(crate) struct LoggedIn {
    pub link: Link,
    pub secret: Secret,
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
    /// Notices for the client.
    pub notices: Vec<u8>,
}

/// Who answers the server's questions.
pub(crate) enum Answerer<'a, 'b, 'c> {
    /// The client, for the first time. What it revealed is kept in the second.
    Client(&'a mut Asking<'b, 'c>, &'a mut Option<Secret>),
    /// We, again.
    Us(&'a Secret),
}

/// Logs in on a new connection.
pub(crate) async fn log_in(
    led: Led,
    proxy: &Proxy,
    pool: &PoolKey,
    begun: &Begun,
    mut answerer: Answerer<'_, '_, '_>,
) -> Result<LoggedIn, NoLink> {
    let Led { server, ticket, candidate, host } = led;
    let (member, role) = (candidate.target.member, candidate.role);
    let generation = candidate.generation;
    let epoch = pool.pool.epoch();
    let address = server.peer_addr().ok();
    let mut stream = encrypted(server, proxy, begun, &host).await?;
    let mut asked = false;
    let gone = |error: TalkError, asked: bool| match asked {
        // The client's answer is spent: it cannot be given to another server.
        true => NoLink::Error(crate::farewell::server_gone()),
        false => NoLink::NotYet(format!("{member} did not answer: {error}")),
    };
    let mut talk = Talk::new(&mut stream, Side::Backend, Vec::new());
    talk.say(&begun.encode()).await.map_err(|error| gone(error, asked))?;
    let mut secret = Secret::None;
    let (mut rounds, mut showing) = (0, Showing::default());
    let (mut parameters, mut notices) = (Vec::new(), Vec::new());
    let (mut process, mut key) = (0, Vec::new());
    loop {
        let heard = talk.hear().await.map_err(|error| gone(error, asked))?;
        let message =
            Backend::decode(heard.tag, &heard.body).map_err(|error| gone(error.into(), asked))?;
        match message {
            Backend::Authentication(Authentication::Ok) => {}
            Backend::Authentication(request) => {
                rounds += 1;
                if rounds > ROUNDS_MAX {
                    return Err(NoLink::NotYet("the log-in does not come to an end".into()));
                }
                if let Answerer::Client(client, known) = &mut answerer
                    && known.is_none()
                {
                    **known = client.secret(&request).await?;
                }
                let known = match &answerer {
                    Answerer::Us(known) => Some((*known).clone()),
                    Answerer::Client(_, known) => (*known).clone(),
                };
                match (&mut answerer, known) {
                    (_, Some(known)) => {
                        let answer = showing.answer(&known, begun.user(), &request)?;
                        if let Some(answer) = answer {
                            talk.say(&answer).await.map_err(|error| gone(error, asked))?;
                        }
                    }
                    (Answerer::Us(_), None) => {}
                    (Answerer::Client(client, _), None) => {
                        asked = true;
                        let clear = request == Authentication::CleartextPassword;
                        let client = &mut client.talk;
                        client.say(&relayed(&heard, &request)).await.map_err(client_gone)?;
                        if matches!(request, Authentication::SaslFinal(_)) {
                            continue;
                        }
                        let answer = client.hear().await.map_err(client_gone)?;
                        if answer.tag != b'p' {
                            return Err(NoLink::Error(super::talk::violation(format!(
                                "expected password response, got message type {}",
                                answer.tag
                            ))));
                        }
                        secret = match sempre_wire::pg::frontend::password(&answer.body) {
                            Ok(password) if clear => Secret::Clear(password.to_vec()),
                            _ => Secret::Relayed,
                        };
                        talk.say(&answer.raw()).await.map_err(|error| gone(error, asked))?;
                    }
                }
            }
            Backend::ParameterStatus { name, value } => {
                parameters.push((name.to_vec(), value.to_vec()));
            }
            Backend::BackendKeyData { process: id, key: secret } => {
                (process, key) = (id, secret.to_vec());
            }
            Backend::NoticeResponse(_) => notices.extend_from_slice(&heard.raw()),
            Backend::ErrorResponse(fields) => {
                let (code, text) = texts(&fields);
                // Its limit counts what is idle in pools too: without that there may be room.
                let freed = code == sqlstate::TOO_MANY_CONNECTIONS
                    && role != Role::Warm
                    && proxy.pools.close_idle();
                let not_yet = code == sqlstate::CANNOT_CONNECT_NOW
                    || (code == sqlstate::ADMIN_SHUTDOWN)
                    || (code == sqlstate::TOO_MANY_CONNECTIONS
                        && (freed || matches!(answerer, Answerer::Us(_))));
                return Err(match not_yet && !asked {
                    true => NoLink::NotYet(format!("{member} says: {text}")),
                    false => NoLink::Refused(heard.raw()),
                });
            }
            Backend::ReadyForQuery(_) => break,
            _ => {}
        }
    }
    let kept = talk.rest();
    let info = proxy.pools.new_server(NewServer {
        user: begun.user().to_vec(),
        database: begun.database().to_vec(),
        member: member.to_string(),
        address,
        local: stream.tcp().local_addr().ok(),
        process,
        tls: stream.buffers(),
        cut: ticket.cut.clone(),
    });
    let mut link = Link {
        stream,
        ticket,
        member,
        generation,
        address,
        process,
        key,
        out: Vec::new(),
        sent: 0,
        flush: false,
        kept,
        down: Scanner::new(Side::Backend),
        xid_prepared: false,
        state_prepared: false,
        farewell: Farewell::None,
        role,
        place: None,
        variant: pool.variant.clone(),
        epoch,
        born: Instant::now(),
        parameters: Vec::new(),
        info,
        cancelling: Arc::default(),
        known: Known::default(),
    };
    for (name, value) in &parameters {
        link.reported(name, value);
    }
    let secret = match answerer {
        Answerer::Us(known) => known.clone(),
        Answerer::Client(_, known) => known.clone().unwrap_or(secret),
    };
    Ok(LoggedIn { link, secret, parameters, notices })
}

fn client_gone(_: TalkError) -> NoLink {
    NoLink::ClientGone
}

/// The server's question as the client gets it. Channel binding would bind the client to the
/// server's certificate, which it does not see.
fn relayed(heard: &Heard, request: &Authentication<'_>) -> Vec<u8> {
    match request {
        Authentication::Sasl(mechanisms) => {
            let mut out = Vec::new();
            let names: Vec<_> = mechanisms
                .iter()
                .filter(|name| !name.ends_with(b"-PLUS"))
                .filter_map(|name| std::str::from_utf8(name).ok())
                .collect();
            write::authentication_sasl(&mut out, &names);
            out
        }
        _ => heard.raw(),
    }
}

/// Encrypts the connection as the settings want.
async fn encrypted(
    mut server: tokio::net::TcpStream,
    proxy: &Proxy,
    begun: &Begun,
    host: &str,
) -> Result<Stream, NoLink> {
    let (config, required) = match &proxy.settings.server_tls {
        ServerTls::AsClient(config) if begun.encrypted => (config, true),
        ServerTls::Off | ServerTls::AsClient(_) => return Ok(Stream::Plain(server)),
        ServerTls::Prefer(config) => (config, false),
        ServerTls::Require(config) => (config, true),
    };
    let not_yet = |why: String| NoLink::NotYet(why);
    let mut request = Vec::new();
    write::ssl_request(&mut request);
    let mut answer = [0];
    let asked = async {
        server.write_all(&request).await?;
        server.read_exact(&mut answer).await
    };
    asked.await.map_err(|error| not_yet(format!("the server did not answer: {error}")))?;
    match answer[0] {
        b'S' => {}
        b'N' if !required => return Ok(Stream::Plain(server)),
        _ => return Err(not_yet("the server does not do TLS, which is required".into())),
    }
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())
        .map_err(|error| not_yet(format!("{host} is no name for TLS: {error}")))?;
    let vouched = match (&proxy.settings.vouching, &begun.shown.name) {
        (Some(vouching), Some(name)) => vouching.client_config(name),
        _ => None,
    };
    let stream = tokio_rustls::TlsConnector::from(vouched.unwrap_or_else(|| config.clone()))
        .connect(name, server)
        .await
        .map_err(|error| not_yet(format!("TLS with {host} failed: {error}")))?;
    Ok(Stream::Tls(Box::new(stream.into())))
}
