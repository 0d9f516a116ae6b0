//! How the CLI talks to the members: HTTP/1.1, one request a connection, one member after the
//! other until one answers.

use crate::{
    action::{Action, Done},
    backup::BackupRequest,
    codes::{self, ActionError},
    status::Status,
};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use sempre_model::record::{Event, HistoryEntry};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The longest a connection may take to come about. A member that is up answers at once.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// The longest an answer that changes nothing may take.
const READ_TIME: Duration = Duration::from_secs(5);
/// The longest an action may take; the server's limit is a little shorter.
const ACT_TIME: Duration = Duration::from_secs(95);
/// The largest answer, bytes.
const ANSWER_MAX: usize = 64 << 20;

/// Why a member gave no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// A member answered: no.
    #[error(transparent)]
    Refused(#[from] ActionError),
    /// Nobody answered.
    #[error("no member answers ({code}): {tried}. {next}", code = codes::UNREACHABLE, next = codes::UNREACHABLE.entry().next)]
    Unreachable {
        /// Who was tried, and what happened.
        tried: String,
    },
    /// What answered cannot be understood.
    #[error("the answer of {url} cannot be read: {why} ({code}). {next}", code = codes::BAD_ANSWER, next = codes::BAD_ANSWER.entry().next)]
    BadAnswer {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
    /// An address that is not `http://host:port`.
    #[error("`{0}` is not an address such as http://10.0.0.1:8008")]
    BadAddress(String),
    /// There is nothing usable to check members by.
    #[error("members cannot be checked, so the token is not sent: {0}")]
    Untrusted(String),
}

impl ClientError {
    /// Its code.
    pub fn code(&self) -> codes::Code {
        match self {
            ClientError::Refused(error) => error.code,
            ClientError::Unreachable { .. } => codes::UNREACHABLE,
            ClientError::BadAnswer { .. } => codes::BAD_ANSWER,
            ClientError::BadAddress(_) | ClientError::Untrusted(_) => codes::CONFIG_FILE,
        }
    }
}

/// Some events, and the number to ask after next.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Events {
    /// Oldest first.
    pub events: Vec<Event>,
    /// The newest number there is.
    pub last: u64,
}

#[derive(Deserialize)]
struct History {
    history: Vec<HistoryEntry>,
}

#[derive(Deserialize)]
struct Failure {
    error: ActionError,
}

/// A client of one cluster.
#[derive(Clone)]
pub struct Client {
    /// In the order they are tried.
    places: Vec<Place>,
    token: Option<String>,
    tls: Option<Arc<ClientConfig>>,
}

/// Where a member answers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// `host:port`.
    authority: String,
    /// `http://` or `https://` was said; without, by TLS if this client can.
    tls: Option<bool>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("places", &self.places).finish_non_exhaustive()
    }
}

/// An answer that came, of whatever status.
struct Answer {
    url: String,
    status: u16,
    body: Bytes,
}

impl Client {
    /// Talks to these members, `host:port` each, in this order, in clear; with `https://` before
    /// it, by TLS only. The token is needed by what changes something.
    pub fn new(
        base_urls: impl IntoIterator<Item = impl AsRef<str>>,
        token: Option<String>,
    ) -> Result<Self, ClientError> {
        let places =
            base_urls.into_iter().map(|url| place(url.as_ref())).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { places, token, tls: None })
    }

    /// Talks by TLS to every member whose address does not say `http://`. There is no way back to
    /// clear text: whoever is in between could ask for it.
    pub fn with_tls(self, tls: Arc<ClientConfig>) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// `/v1/status`.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status", READ_TIME).await
    }

    /// `/v1/history`, oldest first.
    pub async fn history(&self) -> Result<Vec<HistoryEntry>, ClientError> {
        Ok(self.get::<History>("/v1/history", READ_TIME).await?.history)
    }

    /// Events after a number, waiting up to `wait` for one. To follow: ask again after
    /// [`Events::last`].
    pub async fn events(&self, after: u64, wait: Duration) -> Result<Events, ClientError> {
        let path = format!("/v1/events?after={after}&wait_ms={}", wait.as_millis());
        self.get(&path, READ_TIME + wait).await
    }

    /// `/v1/config`: policy, parameters, hba, pending restarts.
    pub async fn config(&self) -> Result<Value, ClientError> {
        self.get("/v1/config", READ_TIME).await
    }

    /// Any page, as JSON.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        within: Duration,
    ) -> Result<T, ClientError> {
        read(&self.send(Method::GET, path, &Value::Null, within).await?)
    }

    /// Asks for something to be done.
    ///
    /// It is passed to the next member only if nothing was sent to the one before, so that
    /// nothing is done twice.
    pub async fn act(&self, action: &Action) -> Result<Done, ClientError> {
        let (method, path, body) = action.to_request();
        let method = method.parse().unwrap_or(Method::POST);
        let answer = self.send(method, path, &body, ACT_TIME).await?;
        if path == "/v1/config" {
            // The answer is the new configuration.
            let config: Value = read(&answer)?;
            return Ok(Done {
                message: "the configuration is changed".into(),
                version: config["record_version"].as_u64().unwrap_or(0),
                data: config,
            });
        }
        read(&answer)
    }

    /// Asks about backups, or for one.
    pub async fn backups<T: DeserializeOwned>(
        &self,
        request: &BackupRequest,
        within: Duration,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_value(request).unwrap_or_default();
        read(&self.send(Method::POST, "/v1/backups", &body, within).await?)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        within: Duration,
    ) -> Result<Answer, ClientError> {
        let mut tried = Vec::new();
        for place in &self.places {
            match self.send_to(place, &method, path, body, within).await {
                Ok(answer) => return Ok(answer),
                Err(Failed { why, sent }) => {
                    tried.push(format!("{}: {why}", place.authority));
                    if sent && method != Method::GET {
                        break;
                    }
                }
            }
        }
        let tried = if tried.is_empty() { "no address is known".into() } else { tried.join("; ") };
        Err(ClientError::Unreachable { tried })
    }

    async fn send_to(
        &self,
        place: &Place,
        method: &Method,
        path: &str,
        body: &Value,
        within: Duration,
    ) -> Result<Answer, Failed> {
        let unsent = |why: String| Failed { why, sent: false };
        let authority = place.authority.as_str();
        let stream = tokio::time::timeout(CONNECT_TIME, TcpStream::connect(authority))
            .await
            .map_err(|_| unsent("it cannot be connected to in time".into()))?
            .map_err(|error| unsent(error.to_string()))?;
        let encrypted = place.tls.unwrap_or(self.tls.is_some());
        let scheme = if encrypted { "https" } else { "http" };
        let (mut sender, driver) = match encrypted {
            false => speak(stream).await.map_err(unsent)?,
            true => speak(self.encrypt(authority, stream).await.map_err(unsent)?)
                .await
                .map_err(unsent)?,
        };
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| unsent(error.to_string()))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        let result = tokio::time::timeout(within, exchange).await;
        driver.abort();
        match result {
            Ok(Ok((status, body))) => {
                Ok(Answer { url: format!("{scheme}://{authority}{path}"), status, body })
            }
            Ok(Err(why)) => Err(Failed { why, sent: true }),
            Err(_) => Err(Failed { why: "it does not answer in time".into(), sent: true }),
        }
    }
}

impl Client {
    async fn encrypt(
        &self,
        authority: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let Some(tls) = &self.tls else { return Err("no CA is known to check it by".into()) };
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let connecting = TlsConnector::from(tls.clone()).connect(name, stream);
        match tokio::time::timeout(CONNECT_TIME, connecting).await {
            Ok(connected) => connected.map_err(|error| match error.kind() {
                // Who does not speak TLS just closes.
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                    "it does not speak TLS; is `[rest] tls` off there?".into()
                }
                _ => format!("TLS: {error}"),
            }),
            Err(_) => Err("it does not shake hands in time".into()),
        }
    }
}

type Body = Full<Bytes>;

/// Begins HTTP on a connection.
async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(SendRequest<Body>, JoinHandle<hyper::Result<()>>), String> {
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|error| error.to_string())?;
    Ok((sender, tokio::spawn(connection)))
}

struct Failed {
    why: String,
    /// The request may have arrived.
    sent: bool,
}

fn place(url: &str) -> Result<Place, ClientError> {
    let bad = || ClientError::BadAddress(url.chars().take(100).collect());
    let schemes = [("http://", false), ("https://", true)];
    let said = schemes.iter().find_map(|(s, tls)| Some((url.strip_prefix(s)?, Some(*tls))));
    let (rest, tls) = said.unwrap_or((url, None));
    let rest = rest.trim_end_matches('/');
    let authority: http::uri::Authority = rest.parse().map_err(|_| bad())?;
    if authority.port_u16().is_none() || authority.host().is_empty() || rest.contains('@') {
        return Err(bad());
    }
    Ok(Place { authority: rest.to_owned(), tls })
}

fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, ClientError> {
    let bad = |why: String| ClientError::BadAnswer { url: answer.url.clone(), why };
    if answer.status >= 400 {
        return Err(match serde_json::from_slice::<Failure>(&answer.body) {
            Ok(failure) => failure.error.into(),
            Err(_) => bad(format!("HTTP status {}", answer.status)),
        });
    }
    serde_json::from_slice(&answer.body).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for good in ["http://10.0.0.1:8008", "https://a:1", "http://[::1]:8008/", "db1:8008"] {
            assert!(place(good).is_ok(), "{good}");
        }
        assert_eq!(
            place("https://a:1").unwrap(),
            Place { authority: "a:1".into(), tls: Some(true) }
        );
        assert_eq!(place("a:1").unwrap().tls, None);
        for bad in ["", "http://", "ftp://a:1", "a", "http://a", "a:b", "x@y:1", "a b:1"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
