//! The little HTTP/1.1 that the follower needs.

use crate::connect;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, client::conn::http1::SendRequest, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time,
};
use tokio_rustls::TlsConnector;

/// How long a member may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer that is read, bytes. A table of a hundred members has less than a tenth.
const BODY_MAX: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("no answer in time")]
    Timeout,
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("no TLS: {0}")]
    Tls(#[from] std::io::Error),
    #[error("{0}")]
    Protocol(#[from] hyper::Error),
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
    #[error("the answer cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// A connection to one member's REST endpoint, made when needed and kept.
pub(crate) struct Client {
    host: String,
    port: u16,
    /// None: in clear.
    tls: Option<Arc<ClientConfig>>,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl Client {
    pub fn new(host: impl Into<String>, port: u16, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { host: host.into(), port, tls, sender: None }
    }

    /// Gets `path`, within `timeout`.
    pub async fn get(
        &mut self,
        path: &str,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        // Taken out: an answer that did not arrive whole spoils the connection.
        let kept = self.sender.take().filter(|sender| sender.is_ready());
        let exchange = async {
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            let host = match self.host.contains(':') {
                true => format!("[{}]:{}", self.host, self.port),
                false => format!("{}:{}", self.host, self.port),
            };
            let request =
                Request::get(path).header(header::HOST, host).body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_MAX);
            let body = body.collect().await.map_err(HttpError::Body)?.to_bytes();
            Ok((sender, status, body))
        };
        let (sender, status, body) =
            time::timeout(timeout, exchange).await.unwrap_or(Err(HttpError::Timeout))?;
        self.sender = Some(sender);
        Ok((status, body))
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, HttpError> {
        let connecting = connect::to_any(std::slice::from_ref(&self.host), self.port);
        let (stream, _) = time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| HttpError::Timeout)?
            .map_err(HttpError::Connect)?;
        let Some(tls) = &self.tls else { return speak(stream).await };
        let name = ServerName::try_from(self.host.clone()).map_err(std::io::Error::other)?;
        let connecting = TlsConnector::from(tls.clone()).connect(name, stream);
        let stream = time::timeout(CONNECT_TIMEOUT, connecting).await;
        speak(stream.map_err(|_| HttpError::Timeout)??).await
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Empty<Bytes>>, HttpError> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender, or when the member closes.
    tokio::spawn(connection);
    Ok(sender)
}
