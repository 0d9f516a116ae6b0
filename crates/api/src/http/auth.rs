//! Who may change something.

use super::Shared;
use crate::codes::{self, ActionError};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, header};
use sha2::{Digest, Sha256};

/// Checks the token of a request that changes something.
///
/// Beside `Bearer TOKEN`, `Basic` with the token as password is taken (any user), because tools
/// written for Patroni send that.
pub(crate) fn check(shared: &Shared, headers: &HeaderMap) -> Result<(), ActionError> {
    let snapshot = shared.backend.snapshot();
    let Some(cluster) = &snapshot.record.cluster else {
        return Err(
            codes::NOT_INITIALISED.error("nothing was changed", "this member has no record yet")
        );
    };
    let wanted = cluster.secrets.rest.as_str();
    let Some(given) = token(headers) else {
        return Err(
            codes::UNAUTHORISED.error("nothing was changed", "the request carries no token")
        );
    };
    // An empty secret would open the door to everyone.
    if wanted.is_empty() || !same(given.as_bytes(), wanted.as_bytes()) {
        return Err(
            codes::UNAUTHORISED.error("nothing was changed", "the token is not this cluster's")
        );
    }
    Ok(())
}

fn token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
        return pair.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

/// Compares in a time that says nothing of where the two differ, nor of their lengths: what is
/// compared are digests, and all bytes of them.
fn same(given: &[u8], wanted: &[u8]) -> bool {
    let (given, wanted) = (Sha256::digest(given), Sha256::digest(wanted));
    let difference = given.iter().zip(wanted.iter()).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn tokens_are_found() {
        assert_eq!(token(&headers("Bearer  abc ")), Some("abc".into()));
        assert_eq!(token(&headers("bearer abc")), Some("abc".into()));
        assert_eq!(token(&headers("Basic YWRtaW46YTpi")), Some("a:b".into()));
        for bad in ["", "Bearer", "Basic ???", "Basic YWRtaW4=", "Digest abc"] {
            assert_eq!(token(&headers(bad)), None, "{bad}");
        }
    }

    #[test]
    fn only_the_same_is_the_same() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abd", b"abc") && !same(b"", b"abc") && !same(b"abcd", b"abc"));
    }
}
