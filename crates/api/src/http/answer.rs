//! Requests' bodies and queries in, answers out.

use super::{BODY_MAX, BODY_TIME};
use crate::codes::{self, ActionError};
use axum::body::Body;
use http::{StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde_json::Value;

pub(crate) type Response = axum::response::Response;

/// JSON with a status.
pub(crate) fn json(status: u16, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => with_type(status, "application/json", bytes),
        Err(why) => error(&codes::INTERNAL.error("the answer cannot be written", why.to_string())),
    }
}

/// Plain text with a status.
pub(crate) fn text(status: u16, text: impl Into<String>) -> Response {
    with_type(status, "text/plain; charset=utf-8", text.into().into_bytes())
}

/// A status alone.
pub(crate) fn code(status: u16) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status_code(status);
    response
}

/// `{"error": {...}}` with the status of its code.
pub(crate) fn error(error: &ActionError) -> Response {
    let status = error.code.entry().http;
    let mut response = json(status, &serde_json::json!({ "error": error }));
    if status == 401 {
        let value = header::HeaderValue::from_static("Bearer realm=\"sempre\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

/// A body of any type with a status.
pub(crate) fn with_type(status: u16, content_type: &'static str, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status_code(status);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    // Every answer is of this moment.
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The body as JSON, whatever its content type; null when there is none.
pub(crate) async fn read_json(body: Body) -> Result<Value, ActionError> {
    let limited = Limited::new(body, BODY_MAX).collect();
    let bytes = match tokio::time::timeout(BODY_TIME, limited).await {
        Err(_) => {
            return Err(
                codes::TIMED_OUT.error("the request was dropped", "its body did not arrive")
            );
        }
        Ok(Err(why)) if why.downcast_ref::<LengthLimitError>().is_some() => {
            return Err(codes::BODY_TOO_LARGE.error(
                "the request was dropped",
                format!("its body has more than {BODY_MAX} bytes"),
            ));
        }
        Ok(Err(why)) => {
            return Err(codes::BAD_REQUEST.error("the body cannot be read", why.to_string()));
        }
        Ok(Ok(collected)) => collected.to_bytes(),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes)
        .map_err(|why| codes::BAD_REQUEST.error("the body is not JSON", why.to_string()))
}

/// The pairs of a query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(pub Vec<(String, String)>);

impl Query {
    /// Of a URI. What cannot be decoded counts as no query, as Patroni has it.
    pub fn of(uri: &http::Uri) -> Self {
        let query = axum::extract::Query::try_from_uri(uri);
        Self(query.map(|axum::extract::Query(pairs)| pairs).unwrap_or_default())
    }

    /// The first value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// A number; `default` when it is absent.
    pub fn number(&self, key: &str, default: u64) -> Result<u64, ActionError> {
        let Some(text) = self.get(key) else { return Ok(default) };
        text.parse().map_err(|_| {
            codes::BAD_REQUEST.error(format!("`{key}` cannot be read"), "it is not a whole number")
        })
    }
}
