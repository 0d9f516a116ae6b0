//! A process that works for a member (or a command on its machine) asks another one for what has
//! bodies of any length. It shows the member's own certificate, as the files have it at the time.
//!
//! One connection for all requests, opened when it is needed. A peer that is stopped, and whose
//! kernel still takes what is sent, is noticed by its silence.

use crate::{
    connect::{Connection, Pings, Target, connect},
    identity::Identity,
    names::server_name,
    rpc::{STREAMED, chain},
    tls,
};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use sempre_model::MemberId;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

/// One request, beside what its bytes take: a busy disk may need a while to be in order.
const ASK_WITHIN: Duration = Duration::from_secs(60);
/// The slowest that bytes may come or go and still be waited for, bytes a second.
const SLOWEST: u64 = 256 << 10;
/// What is asked for stands in this header, as JSON.
const ASK: HeaderName = HeaderName::from_static("sempre-ask");

/// It was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct LinkError {
    /// By way of which address, and what went wrong.
    pub why: String,
    /// It was sent, so it may have been done.
    pub sent: bool,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its kind.
    pub status: StatusCode,
    /// All of its body.
    pub body: Bytes,
}

/// A way to one member.
pub struct Link {
    member: MemberId,
    hosts: Vec<String>,
    port: u16,
    tls: PathBuf,
    connect_timeout: Duration,
    silence: Duration,
    open: tokio::sync::Mutex<Option<Linked>>,
}

/// One connection: what was begun on it can be carried on as long as it lives.
#[derive(Clone)]
pub struct Linked(Arc<Open>);

struct Open {
    connection: Connection,
    address: String,
    /// It was of no use once.
    broken: Mutex<bool>,
}

impl Linked {
    fn is_usable(&self) -> bool {
        !self.0.connection.is_closed()
            && !*self.0.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks `verb`, with `ask` (JSON) for what exactly. An answer of up to `expected` bytes is
    /// waited for accordingly longer.
    pub async fn ask(
        &self,
        verb: &str,
        ask: &str,
        body: Bytes,
        expected: u64,
    ) -> Result<Answer, LinkError> {
        let within = ASK_WITHIN + Duration::from_secs((body.len() as u64 + expected) / SLOWEST);
        let asked = match timeout(within, self.exchange(verb, ask, body)).await {
            Ok(asked) => asked,
            Err(_) => Err((format!("no answer within {} s", within.as_secs()), true)),
        };
        asked.map_err(|(why, sent)| {
            *self.0.broken.lock().unwrap_or_else(PoisonError::into_inner) = true;
            let why = self.0.connection.ended().unwrap_or(why);
            LinkError { why: format!("{}: {why}", self.0.address), sent }
        })
    }

    async fn exchange(&self, verb: &str, ask: &str, body: Bytes) -> Result<Answer, (String, bool)> {
        let ask = HeaderValue::from_bytes(ask.as_bytes()).map_err(|e| (e.to_string(), false))?;
        let request = Request::post(format!("https://member/{STREAMED}{verb}"))
            .header(ASK, ask)
            .body(Full::new(body))
            .map_err(|e| (e.to_string(), false))?;
        let response = self.0.connection.sender().send_request(request).await;
        let response = response.map_err(|e| (chain(&e), !e.is_canceled()))?;
        let (head, mut body) = response.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| (chain(&e), true))?;
            if let Ok(data) = frame.into_data() {
                bytes.extend_from_slice(&data);
            }
        }
        Ok(Answer { status: head.status, body: bytes.freeze() })
    }
}

impl Link {
    /// To this member, at these addresses, with the certificate in the folder `tls`.
    pub fn new(member: MemberId, hosts: Vec<String>, port: u16, tls: PathBuf) -> Self {
        let (connect_timeout, silence) = (Duration::from_secs(3), Duration::from_secs(20));
        let open = tokio::sync::Mutex::default();
        Self { member, hosts, port, tls, connect_timeout, silence, open }
    }

    /// So long it is waited for TCP, on each address; and for a sign of life, while an answer is owed.
    #[must_use]
    pub fn with_patience(self, connect_timeout: Duration, silence: Duration) -> Self {
        Self { connect_timeout, silence, ..self }
    }

    /// The connection, or a new one by the first address that works.
    pub async fn connection(&self) -> Result<Linked, LinkError> {
        let mut open = self.open.lock().await;
        if let Some(known) = open.as_ref().filter(|known| known.is_usable()) {
            return Ok(known.clone());
        }
        *open = None;
        let linked = self.connect().await.map_err(|why| LinkError { why, sent: false })?;
        *open = Some(linked.clone());
        Ok(linked)
    }

    async fn connect(&self) -> Result<Linked, String> {
        // Read again for each connection: it may have been renewed.
        let identity = Identity::load(&self.tls)
            .map_err(|e| format!("{} has no certificate to show: {e}", self.tls.display()))?;
        let name = server_name(&self.member, identity.cluster_id()).map_err(|e| e.to_string())?;
        let tls = tls::client_config(Arc::new(identity)).map_err(|e| e.to_string())?;
        let tls = Arc::new(tls);
        let mut tried = Vec::new();
        for host in &self.hosts {
            let (host, port, name) = (host.clone(), self.port, name.clone());
            let target = Target { host, port, from: None, name };
            let address = format!("{}:{}", target.host, target.port);
            let every = self.silence / 4;
            let pings = Pings { every, within: self.silence - every };
            match connect(&target, tls.clone(), self.connect_timeout, Some(pings)).await {
                Ok(connection) => {
                    let open = Open { connection, address, broken: Mutex::default() };
                    return Ok(Linked(Arc::new(open)));
                }
                Err(why) => tried.push(format!("{address}: {why}")),
            }
        }
        if tried.is_empty() {
            tried.push(format!("no address of {} is known", self.member));
        }
        Err(tried.join("; "))
    }
}
