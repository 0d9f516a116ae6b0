//! The admin database: what the pools do, and what they are told to do.
//!
//! It is the router's own, one for each port. Commands are those of PgBouncer's console, with its
//! names where the meaning is the same; simple queries only. Who logs in is decided as for any
//! other database, and must be named in [`crate::ProxySettings::admin_users`].

mod control;
mod show;

use super::{
    Proxy,
    attach::NotAttached,
    login::prove,
    pool::{Asked, goodbye},
    serve::log_in_first,
    startup::Begun,
    stream::Stream,
    talk::{Talk, violation},
};
use crate::farewell;
use sempre_wire::pg::{ErrorResponse, Side, TransactionStatus, md5, sqlstate, write};

/// The database by which a user without a verifier proves to a server who it is.
const MAINTENANCE: &str = "postgres";

/// What a command is answered with.
pub(super) enum Answer {
    Rows {
        columns: &'static [&'static str],
        rows: Vec<Vec<Option<String>>>,
    },
    /// Nothing but its tag.
    Done(&'static str),
}

/// Serves one client of the admin database.
pub(super) async fn run(mut client: Stream, proxy: &Proxy, begun: &Begun) {
    let rest = match authenticate(&mut client, proxy, begun).await {
        Ok(rest) => rest,
        Err(NotAttached::ClientGone) => return,
        Err(NotAttached::Error(error)) => return farewell::say(&mut client, &error.encode()).await,
        Err(NotAttached::Raw(raw)) => return farewell::say(&mut client, &raw).await,
    };
    let user = String::from_utf8_lossy(begun.user());
    if !proxy.settings.admin_users.iter().any(|admin| *admin == user) {
        let message = format!("user \"{user}\" may not use the admin database");
        let hint = "Name it in the settings of routing (admin_users).";
        let error = ErrorResponse::fatal(sqlstate::INVALID_AUTHORIZATION, message, "", hint);
        return farewell::say(&mut client, &error.encode()).await;
    }
    let mut talk = Talk::new(&mut client, Side::Frontend, rest);
    let mut out = Vec::new();
    write::authentication_ok(&mut out);
    let version = concat!(env!("CARGO_PKG_VERSION"), "/sempre");
    for (name, value) in [
        ("server_version", version),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("standard_conforming_strings", "on"),
        ("DateStyle", "ISO"),
        ("TimeZone", "UTC"),
        ("is_superuser", "on"),
    ] {
        write::parameter_status(&mut out, name.as_bytes(), value.as_bytes());
    }
    write::backend_key_data(&mut out, 0, &[0; 4]);
    write::ready_for_query(&mut out, TransactionStatus::Idle);
    let mut skipping = false;
    loop {
        if talk.say(&out).await.is_err() {
            return;
        }
        out.clear();
        let Ok(heard) = talk.hear().await else { return };
        match heard.tag {
            b'X' => return,
            b'S' => {
                skipping = false;
                write::ready_for_query(&mut out, TransactionStatus::Idle);
            }
            _ if skipping => {}
            b'Q' => {
                let text = heard.body.split(|byte| *byte == 0).next().unwrap_or_default();
                answer(proxy, &String::from_utf8_lossy(text), &mut out).await;
                write::ready_for_query(&mut out, TransactionStatus::Idle);
            }
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' | b'F' => {
                skipping = heard.tag != b'F';
                let message = "the admin database takes simple queries only";
                let error = ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, message, "", "");
                out.extend_from_slice(&error.encode());
                if heard.tag == b'F' {
                    write::ready_for_query(&mut out, TransactionStatus::Idle);
                }
            }
            tag => {
                let error = violation(format!("invalid frontend message type {tag}"));
                // The connection ends here anyway.
                let _ = talk.say(&error.encode()).await;
                return;
            }
        }
    }
}

/// Proves who it is. What the client sent behind that is returned.
async fn authenticate(
    client: &mut Stream,
    proxy: &Proxy,
    begun: &Begun,
) -> Result<Vec<u8>, NotAttached> {
    if let Some(credentials) = &proxy.settings.credentials
        && let Ok(Some(stored)) = credentials.verifier(&String::from_utf8_lossy(begun.user())).await
    {
        let asked = if md5::is_stored(&stored) { Asked::Md5 } else { Asked::Scram };
        if let Some((_, rest)) = prove(client, proxy, begun, asked).await? {
            return Ok(rest);
        }
    }
    let begun = begun.for_database(MAINTENANCE);
    let pool = proxy.pools.key(&begun);
    let (logged_in, rest) = log_in_first(client, proxy, &begun, &pool).await?;
    goodbye(logged_in.link);
    Ok(rest)
}

/// Runs what a query says, statement by statement, up to the first error.
async fn answer(proxy: &Proxy, text: &str, out: &mut Vec<u8>) {
    let statements: Vec<_> = text.split(';').map(str::trim).filter(|s| !s.is_empty()).collect();
    if statements.is_empty() {
        write::empty_query_response(out);
    }
    for statement in statements {
        let words: Vec<_> = statement.split_ascii_whitespace().collect();
        let (verb, rest) = words.split_first().map_or(("", &[][..]), |(verb, rest)| (*verb, rest));
        let answered = match (verb.to_ascii_lowercase().as_str(), rest) {
            ("show", [what]) => show::show(proxy, &what.to_ascii_lowercase()),
            // Drivers say this before anything else.
            ("set", _) => Some(Answer::Done("SET")),
            (verb, [] | [_]) => control::run(proxy, verb, rest.first().copied()).await,
            _ => None,
        };
        match answered {
            Some(Answer::Done(tag)) => write::command_complete(out, tag),
            Some(Answer::Rows { columns, rows }) => {
                write::row_description(out, columns);
                for row in rows {
                    let values = row.iter().map(|value| value.as_deref().map(str::as_bytes));
                    write::data_row(out, values);
                }
                write::command_complete(out, "SHOW");
            }
            None => {
                let message = format!("there is no command \"{statement}\" in the admin database");
                let hint = "SHOW HELP lists what there is.";
                let error = ErrorResponse::error("42601", message, "", hint);
                out.extend_from_slice(&error.encode());
                return;
            }
        }
    }
}
