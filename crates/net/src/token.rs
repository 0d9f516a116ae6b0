//! Join tokens: all a newcomer needs to find the cluster, to know it is the right one, and to be
//! let in once.

use crate::authority::hex;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// Says what the string is, and in which version.
const PREFIX: &str = "sempre-join-1.";
/// Leading bytes of the payload's SHA-256, so that a slip in copying is told apart from a refusal.
const CHECK_LEN: usize = 4;
/// More addresses than members times paths of any sensible cluster.
const ADDRESSES_MAX: usize = 64;
/// Longer text cannot be a token.
const TEXT_MAX: usize = 16 * 1024;

/// What a join token carries.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// `host:port` of members' peer ports, any of which will do.
    #[serde(rename = "a")]
    pub addresses: Vec<String>,
    /// SHA-256 of the authority's certificate, hexadecimal.
    #[serde(rename = "f")]
    pub ca_fingerprint: String,
    /// The one-time secret.
    #[serde(rename = "s")]
    pub secret: String,
}

/// Text that is not a usable join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Not a token at all.
    #[error(
        "this is not a join token: it does not begin with `{PREFIX}`; `sempre token` makes one"
    )]
    NotAToken,
    /// Part of it is missing or changed.
    #[error("this join token is damaged ({0}): copy all of it, in one piece")]
    Damaged(&'static str),
    /// Made by something else, or by a newer version.
    #[error("this join token cannot be used: {0}")]
    Unusable(String),
}

impl JoinToken {
    /// A new token with a fresh secret.
    pub fn new(addresses: Vec<String>, ca_fingerprint: &str) -> Self {
        let secret = hex(&rand::random::<[u8; 32]>());
        Self { addresses, ca_fingerprint: ca_fingerprint.to_owned(), secret }
    }

    /// What the record keeps of the secret.
    pub fn secret_hash(&self) -> String {
        hash_secret(&self.secret)
    }

    /// The addresses as host and port.
    pub fn hosts(&self) -> Vec<(String, u16)> {
        self.addresses.iter().filter_map(|address| split(address)).collect()
    }
}

/// SHA-256 of a token's secret, hexadecimal.
pub fn hash_secret(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        let check = Sha256::digest(&bytes);
        bytes.extend_from_slice(&check[..CHECK_LEN]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({:?}, {}, ..)", self.addresses, self.ca_fingerprint)
    }
}

impl FromStr for JoinToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).ok_or(BadToken::NotAToken)?;
        if text.len() > TEXT_MAX {
            return Err(BadToken::Damaged("too long"));
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| BadToken::Damaged("a character is wrong or missing"))?;
        let (payload, check) = bytes
            .len()
            .checked_sub(CHECK_LEN)
            .map(|at| bytes.split_at(at))
            .ok_or(BadToken::Damaged("too short"))?;
        if Sha256::digest(payload)[..CHECK_LEN] != *check {
            return Err(BadToken::Damaged("its check sum does not match"));
        }
        let token: Self = serde_json::from_slice(payload)
            .map_err(|e| BadToken::Unusable(format!("unexpected contents: {e}")))?;
        let is_hash = |t: &str| t.len() == 64 && t.bytes().all(|b| b.is_ascii_hexdigit());
        if token.addresses.is_empty() || token.addresses.len() > ADDRESSES_MAX {
            let why = format!("it has {} addresses, not 1 to 64", token.addresses.len());
            return Err(BadToken::Unusable(why));
        }
        if let Some(bad) = token.addresses.iter().find(|a| split(a).is_none()) {
            return Err(BadToken::Unusable(format!("`{bad}` is not host:port")));
        }
        if !is_hash(&token.ca_fingerprint) {
            return Err(BadToken::Unusable("its CA fingerprint is not a SHA-256".into()));
        }
        if token.secret.is_empty() {
            return Err(BadToken::Unusable("it has no secret".into()));
        }
        Ok(token)
    }
}

/// `host:port`, `1.2.3.4:port` or `[::1]:port`.
fn split(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let fits = !bare.is_empty() && !bare.chars().any(|c| c.is_whitespace() || c.is_control());
    fits.then(|| (bare.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::new(
            vec!["10.0.0.1:8009".into(), "[fd00::1]:8009".into(), "db1:8009".into()],
            &"ab".repeat(32),
        )
    }

    #[test]
    fn a_token_reads_back_what_it_shows() {
        let token = token();
        let text = format!("  {token}\n");
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(token.hosts()[1], ("fd00::1".to_owned(), 8009));
        assert_eq!(token.secret_hash().len(), 64);
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn damaged_tokens_are_told_apart() {
        let text = token().to_string();
        assert_eq!("".parse::<JoinToken>(), Err(BadToken::NotAToken));
        assert_eq!("hello".parse::<JoinToken>(), Err(BadToken::NotAToken));
        assert_eq!(PREFIX.parse::<JoinToken>(), Err(BadToken::Damaged("too short")));
        for cut in PREFIX.len()..text.len() {
            let cut = text[..cut].parse::<JoinToken>();
            assert!(matches!(cut, Err(BadToken::Damaged(_))), "{cut:?}");
        }
        let mut slip = text.into_bytes();
        slip[40] = if slip[40] == b'A' { b'B' } else { b'A' };
        let slip = String::from_utf8(slip).unwrap().parse::<JoinToken>();
        assert_eq!(slip, Err(BadToken::Damaged("its check sum does not match")));
    }

    #[test]
    fn useless_contents_are_named() {
        let with = |change: fn(&mut JoinToken)| {
            let mut token = token();
            change(&mut token);
            token.to_string().parse::<JoinToken>().unwrap_err().to_string()
        };
        assert!(with(|t| t.addresses.clear()).contains("0 addresses"));
        assert!(with(|t| t.addresses[0] = "nowhere".into()).contains("`nowhere` is not host:port"));
        assert!(with(|t| t.addresses[0] = "h:0".into()).contains("`h:0`"));
        assert!(with(|t| t.ca_fingerprint.truncate(3)).contains("fingerprint"));
        assert!(with(|t| t.secret.clear()).contains("no secret"));
    }
}
