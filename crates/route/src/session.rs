//! The life of one client connection.

use crate::{
    Mode, connect,
    copy::{Copy, End, Streams},
    farewell,
    first::{self, First, Kind, ReadFirstError},
    hold::{Hold, Led, NotLed, Shared},
    stats::count,
};
use sempre_wire::pg::{ErrorResponse, FirstError, Framer, sqlstate};
use std::{sync::atomic::Ordering::Relaxed, task::Poll, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time,
};

/// How often a client may ask for encryption before it begins: GSSAPI, then TLS, then neither.
const NEGOTIATIONS_MAX: usize = 3;
/// How long a server may take for its first answer. Its own log-in limit is 60 s.
const SERVER_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The part of a server's first answer that is looked at, bytes.
const FIRST_ANSWER: usize = 1024;
/// How long a cancel request may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one client from its first byte to its last.
///
/// `first`: what it said already.
pub(crate) async fn run(mut client: TcpStream, first: Option<First>, shared: &Shared) {
    // Boxed: an idle session should not carry the space that only its beginning needs.
    let begun = {
        let mut closing = shared.closing.clone();
        let begin = Box::pin(begin(&mut client, first, shared));
        tokio::select! {
            begun = begin => begun,
            _ = closing.wait_for(|closing| *closing) => return,
        }
    };
    let Some((mut led, mut streams)) = begun else { return };
    let copy = Copy {
        client: &mut client,
        server: &mut led.server,
        streams: &mut streams,
        counters: &shared.counters,
    };
    let (end, kept) = copy.run(&led.ticket.cut).await;
    let Led { server, ticket, .. } = led;
    // The server's part is over; the client may need a moment for its last message.
    drop((server, ticket));
    let error = match end {
        End::Client => return,
        End::Cut(reason) => {
            count(&shared.counters.cut);
            Some(farewell::cut_error(&reason))
        }
        End::Server if !streams.ended_well() => {
            count(&shared.counters.server_gone);
            Some(farewell::server_gone())
        }
        End::Server | End::Both => None,
    };
    match (streams, error) {
        (Streams::Plain { to_client, .. }, Some(error)) => {
            Box::pin(farewell::say_after(&mut client, &kept, to_client, &error)).await;
        }
        // There is nothing to say, or nothing can be said: inside an encrypted stream.
        (_, _) => Box::pin(farewell::say(&mut client, &kept)).await,
    }
}

/// Up to the point where bytes just flow. None: the connection is over.
async fn begin(
    client: &mut TcpStream,
    first: Option<First>,
    shared: &Shared,
) -> Option<(Led, Streams)> {
    let mut first = match first {
        Some(first) => first,
        None => read_first(client, shared).await?,
    };
    let mut hold = Hold::new(shared);
    let mut negotiations = 0;
    'lead: loop {
        first = without_tls(client, shared, first).await?;
        if first.kind == Kind::Cancel {
            cancel(&first, shared).await;
            return None;
        }
        let mut led = match hold.lead(client).await {
            Ok(led) => led,
            Err(not_led) => return refuse(client, shared, first, not_led).await,
        };
        loop {
            match answered(client, &mut led, &first).await {
                Answered::Flows(streams) => return Some((led, streams)),
                Answered::Broken => {
                    farewell::say(client, &farewell::server_gone().encode()).await;
                    return None;
                }
                Answered::NotYet(why) => {
                    drop(led);
                    match hold.not_yet(client, why).await {
                        Ok(()) => continue 'lead,
                        Err(not_led) => return refuse(client, shared, first, not_led).await,
                    }
                }
                Answered::NotEncrypted => {
                    negotiations += 1;
                    if negotiations > NEGOTIATIONS_MAX {
                        count(&shared.counters.malformed);
                        return None;
                    }
                    first = read_first(client, shared).await?;
                    first = without_tls(client, shared, first).await?;
                    if first.kind == Kind::Cancel {
                        continue 'lead;
                    }
                }
            }
        }
    }
}

/// Answers those who ask for TLS that there is none, where it is not offered: inside of it nothing
/// could be said to them any more. The server is not asked. None: the connection is over.
async fn without_tls(client: &mut TcpStream, shared: &Shared, mut first: First) -> Option<First> {
    for _ in 0..NEGOTIATIONS_MAX {
        match first.kind {
            _ if shared.table.borrow().limits.client_tls => return Some(first),
            Kind::Ssl => {
                client.write_all(b"N").await.ok()?;
                first = read_first(client, shared).await?;
            }
            // It speaks TLS without having asked.
            Kind::DirectTls => return None,
            Kind::GssEnc | Kind::Startup | Kind::Cancel => return Some(first),
        }
    }
    count(&shared.counters.malformed);
    None
}

pub(crate) async fn read_first(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    shared: &Shared,
) -> Option<First> {
    let error = match first::read(client).await {
        Ok(first) => return Some(first),
        Err(error) => error,
    };
    tracing::debug!(%error, "a client that did not begin");
    let code = match &error {
        // Port checks do this all the time.
        ReadFirstError::Closed(_) => return None,
        ReadFirstError::Malformed(FirstError::Protocol(..)) => sqlstate::FEATURE_NOT_SUPPORTED,
        ReadFirstError::Malformed(_) | ReadFirstError::Silent => sqlstate::PROTOCOL_VIOLATION,
    };
    count(&shared.counters.malformed);
    let hint = "This port speaks PostgreSQL's protocol.";
    farewell::say(client, &ErrorResponse::fatal(code, error.to_string(), "", hint).encode()).await;
    None
}

/// What the server made of a client's packet.
enum Answered {
    /// The session goes its way.
    Flows(Streams),
    /// It does not do that encryption; the client knows and goes on.
    NotEncrypted,
    /// It takes no clients at the moment; the client does not know of it.
    NotYet(String),
    /// It does not answer, or the client is gone.
    Broken,
}

/// Passes `first` on and looks at the beginning of the answer. Until then nothing has happened on
/// the server, so that a server which is lost meanwhile is no loss: another one is asked.
async fn answered(client: &mut TcpStream, led: &mut Led, first: &First) -> Answered {
    let cut = led.ticket.cut.clone();
    let cut = std::future::poll_fn(move |context| match cut.poll(context) {
        Some(_) => Poll::Ready(()),
        None => Poll::Pending,
    });
    let answer = async {
        led.server.write_all(&first.bytes).await?;
        let mut answer = [0; FIRST_ANSWER];
        let read = match first.kind {
            Kind::DirectTls | Kind::Cancel => 0,
            // One byte, and not one more: what follows belongs to the encryption.
            Kind::Ssl | Kind::GssEnc => led.server.read(&mut answer[..1]).await?,
            Kind::Startup => led.server.read(&mut answer).await?,
        };
        Ok::<_, std::io::Error>((answer, read))
    };
    let answer = tokio::select! {
        answer = time::timeout(SERVER_ANSWER_TIMEOUT, answer) => answer,
        () = cut => return Answered::NotYet("the server was replaced before it answered".into()),
    };
    let (answer, read) = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Answered::NotYet(format!("the server did not answer: {error}")),
        Err(_) => return Answered::Broken,
    };
    let answer = &answer[..read];
    let mut plain = Framer::new();
    plain.feed(answer);
    let plain = Streams::Plain { to_client: plain, to_server: Framer::new() };
    let next = match (first.kind, answer.first()) {
        (Kind::DirectTls | Kind::Cancel, _) => return Answered::Flows(Streams::Opaque),
        (_, None) => {
            return Answered::NotYet("the server closed the connection without an answer".into());
        }
        (Kind::Startup, Some(b'E')) if is_not_yet(answer) => {
            return Answered::NotYet("the server does not accept connections at the moment".into());
        }
        // Servers answer an error instead of S or N when they cannot go on at all.
        (Kind::Startup, _) | (_, Some(b'E')) => Answered::Flows(plain),
        (Kind::Ssl | Kind::GssEnc, Some(b'N')) => Answered::NotEncrypted,
        (Kind::Ssl | Kind::GssEnc, Some(_)) => Answered::Flows(Streams::Opaque),
    };
    match client.write_all(answer).await {
        Ok(()) => next,
        Err(_) => Answered::Broken,
    }
}

/// "Starting up", "shutting down", "in recovery": the client waits instead, and never knows.
fn is_not_yet(answer: &[u8]) -> bool {
    let code = format!("\0C{}\0", sqlstate::CANNOT_CONNECT_NOW);
    answer.windows(code.len()).any(|window| window == code.as_bytes())
}

/// Says why not, in a way the client shows.
///
/// To SSLRequest an error is a possible answer too, but clients do not show it any more: it is not
/// authenticated. `N` lets those that may go on without TLS (`sslmode=prefer`, the default) read
/// the real error; those that may not say that the server does not do TLS.
async fn refuse<T>(
    client: &mut TcpStream,
    shared: &Shared,
    mut first: First,
    not_led: NotLed,
) -> Option<T> {
    let NotLed::Refused { why, limit } = not_led else { return None };
    count(&shared.counters.refused);
    for _ in 0..NEGOTIATIONS_MAX {
        match first.kind {
            Kind::Ssl | Kind::GssEnc => {
                client.write_all(b"N").await.ok()?;
                first = read_first(client, shared).await?;
            }
            Kind::DirectTls | Kind::Cancel => return None,
            Kind::Startup => break,
        }
    }
    let error = farewell::refused(shared.mode, &why, &limit);
    tracing::info!(mode = ?shared.mode, why, limit, "client refused");
    farewell::say(client, &error.encode()).await;
    None
}

/// Passes a cancel request on to everyone who may run the query. It names a process and its secret,
/// so it does nothing where it does not belong.
async fn cancel(first: &First, shared: &Shared) {
    let table = shared.table.borrow().clone();
    let mut targets: Vec<_> = table.primary.iter().collect();
    if shared.mode == Mode::ReadOnly {
        targets.extend(table.standbys.iter().map(|standby| &standby.target));
    }
    let requests = targets.into_iter().map(|target| async move {
        let (mut server, _) = connect::to_target(target).await.ok()?;
        server.write_all(&first.bytes).await.ok()?;
        // The server closes when it has acted; the client waits for that.
        let _ = server.read(&mut [0; 1]).await;
        Some(())
    });
    let all = futures_util::future::join_all(requests);
    if time::timeout(CANCEL_TIMEOUT, all).await.is_ok() {
        shared.counters.cancels.fetch_add(1, Relaxed);
    }
}
