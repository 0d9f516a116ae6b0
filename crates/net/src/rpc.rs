//! What a call is: `POST /<method>` with a body of bytes, answered with bytes or an error whose
//! kind is the HTTP status and whose text is the body.

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use sempre_model::MemberId;
use std::{io, net::SocketAddr, sync::Arc};

/// Largest body of a request or an answer, bytes. Raft snapshots, the largest, are far below.
pub const BODY_MAX: usize = 16 * 1024 * 1024;
/// The one method a stranger may call unless the handler says otherwise.
pub const METHOD_JOIN: &str = "join";
/// Longest method name.
const METHOD_MAX: usize = 64;

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A member, proven by its certificate.
    Member(MemberId),
    /// Somebody without a certificate, at this address.
    Stranger(SocketAddr),
}

/// Answers calls. A call that was begun is carried on even when its caller has gone away, so a
/// handler is never cut off half-way; a call may arrive twice.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one call.
    async fn handle(&self, from: Caller, method: &str, body: Bytes) -> Result<Bytes, RpcError>;

    /// Serves requests below [`STREAMED`] of one connection of a member; none: there are no such.
    fn streamed(&self) -> Option<Arc<dyn Streamed>> {
        None
    }

    /// May somebody without a certificate call this? Everything else is refused before
    /// [`Handler::handle`] is asked.
    fn allows_stranger(&self, method: &str) -> bool {
        method == METHOD_JOIN
    }
}

/// Requests whose path begins like this have bodies of any length, and so have their answers.
pub const STREAMED: &str = "repository/";

/// The body of a streamed answer.
pub type StreamedBody = UnsyncBoxBody<Bytes, io::Error>;

/// Serves streamed requests: one for each connection, and gone with it. A request that its caller
/// gives up is dropped where it is.
#[async_trait]
pub trait Streamed: Send + Sync + 'static {
    /// Serves one.
    async fn serve(
        &self,
        from: &MemberId,
        request: http::Request<Incoming>,
    ) -> http::Response<StreamedBody>;
}

/// An answer that is not the one hoped for. The path worked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// The peer is of another version, perhaps.
    #[error("unknown method: {0}")]
    UnknownMethod(String),
    /// The caller may not do this.
    #[error("refused: {0}")]
    Refused(String),
    /// The request makes no sense.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// Request or answer is larger than [`BODY_MAX`].
    #[error("too large: {0}")]
    TooLarge(String),
    /// Too many calls at once; try again later.
    #[error("busy: {0}")]
    Busy(String),
    /// It was tried and did not work.
    #[error("failed: {0}")]
    Failed(String),
}

impl RpcError {
    /// The HTTP status it travels as, and its text.
    pub(crate) fn into_parts(self) -> (StatusCode, String) {
        match self {
            RpcError::UnknownMethod(text) => (StatusCode::NOT_FOUND, text),
            RpcError::Refused(text) => (StatusCode::FORBIDDEN, text),
            RpcError::BadRequest(text) => (StatusCode::BAD_REQUEST, text),
            RpcError::TooLarge(text) => (StatusCode::PAYLOAD_TOO_LARGE, text),
            RpcError::Busy(text) => (StatusCode::SERVICE_UNAVAILABLE, text),
            RpcError::Failed(text) => (StatusCode::INTERNAL_SERVER_ERROR, text),
        }
    }

    fn from_parts(status: StatusCode, text: String) -> Self {
        match status {
            StatusCode::NOT_FOUND => RpcError::UnknownMethod(text),
            StatusCode::FORBIDDEN => RpcError::Refused(text),
            StatusCode::BAD_REQUEST => RpcError::BadRequest(text),
            StatusCode::PAYLOAD_TOO_LARGE => RpcError::TooLarge(text),
            StatusCode::SERVICE_UNAVAILABLE => RpcError::Busy(text),
            StatusCode::INTERNAL_SERVER_ERROR => RpcError::Failed(text),
            other => RpcError::Failed(format!("status {other}: {text}")),
        }
    }
}

/// Is this a method's name? It becomes part of a URI.
pub(crate) fn is_method(method: &str) -> bool {
    (1..=METHOD_MAX).contains(&method.len())
        && method
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
}

/// A request as HTTP. The host in its URI means nothing: the certificate says who answers.
pub(crate) fn request(method: &str, body: Bytes) -> Result<http::Request<Full<Bytes>>, RpcError> {
    if !is_method(method) {
        return Err(RpcError::BadRequest(format!("`{method}` is not a method's name")));
    }
    if body.len() > BODY_MAX {
        let text = format!("a request of {} bytes; the most is {BODY_MAX}", body.len());
        return Err(RpcError::TooLarge(text));
    }
    http::Request::post(format!("https://member/{method}"))
        .body(Full::new(body))
        .map_err(|e| RpcError::BadRequest(e.to_string()))
}

/// Why a body could not be had.
pub(crate) enum BodyError {
    /// Larger than allowed.
    TooLarge,
    /// The connection.
    Broken(String),
}

/// All of a body, up to `max` bytes.
pub(crate) async fn collect(body: Incoming, max: usize) -> Result<Bytes, BodyError> {
    use hyper::body::Body;
    if body.size_hint().lower() > max as u64 {
        return Err(BodyError::TooLarge);
    }
    match Limited::new(body, max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(BodyError::TooLarge),
        Err(e) => Err(BodyError::Broken(chain(e.as_ref()))),
    }
}

/// What an HTTP answer says. The outer error: no (whole) answer came.
pub(crate) async fn answer(
    response: http::Response<Incoming>,
) -> Result<Result<Bytes, RpcError>, String> {
    let (head, body) = response.into_parts();
    match collect(body, BODY_MAX).await {
        Ok(bytes) if head.status == StatusCode::OK => Ok(Ok(bytes)),
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Ok(Err(RpcError::from_parts(head.status, text)))
        }
        Err(BodyError::TooLarge) => {
            Ok(Err(RpcError::TooLarge(format!("an answer of more than {BODY_MAX} bytes"))))
        }
        Err(BodyError::Broken(why)) => Err(why),
    }
}

/// An error and its sources in one line: HTTP libraries keep the cause (a TLS alert, a reset) deep.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(deeper) = source {
        let deeper_text = deeper.to_string();
        if !text.contains(&deeper_text) {
            text = format!("{text}: {deeper_text}");
        }
        source = deeper.source();
    }
    text
}
