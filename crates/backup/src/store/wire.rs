//! How a repository's objects are asked of another member: a verb in the path, this in a header, and
//! bytes in the body.

use crate::{Error, Result, store::Listed};
use http::{HeaderName, StatusCode};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What exactly is asked, as JSON.
pub(crate) const ASK: HeaderName = HeaderName::from_static("sempre-ask");
/// The longest key.
pub(crate) const KEY_MAX: usize = 512;

/// What is asked; which of it counts depends on the verb.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// The folder of the repository.
    pub(crate) folder: PathBuf,
    /// The object; of a list, the prefix.
    #[serde(default)]
    pub(crate) key: String,
    /// A part of it: from, to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) range: Option<(u64, u64)>,
    /// Where bytes are appended: the object's length before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<u64>,
    /// How many bytes follow.
    #[serde(default)]
    pub(crate) bytes: u64,
}

/// An object as listed: a line of JSON each.
#[derive(Serialize, Deserialize)]
pub(crate) struct Line(pub(crate) String, pub(crate) u64, pub(crate) u64);

impl From<Listed> for Line {
    fn from(listed: Listed) -> Self {
        Line(listed.key, listed.bytes, listed.written_unix_ms)
    }
}

impl From<Line> for Listed {
    fn from(Line(key, bytes, written_unix_ms): Line) -> Self {
        Listed { key, bytes, written_unix_ms }
    }
}

/// The kind of an answer.
pub(crate) fn status_of(error: &Error) -> StatusCode {
    match error {
        Error::Missing { .. } => StatusCode::NOT_FOUND,
        Error::Exists { .. } => StatusCode::CONFLICT,
        Error::TooEarly { .. } => StatusCode::TOO_EARLY,
        Error::Refused(_) => StatusCode::FORBIDDEN,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Reads an answer that is not the one hoped for.
pub(crate) fn error_of(
    status: StatusCode,
    why: String,
    doing: &'static str,
    key: &str,
    repository: &str,
) -> Error {
    let (key, repository) = (key.to_owned(), repository.to_owned());
    match status {
        StatusCode::NOT_FOUND => Error::Missing { key, repository },
        StatusCode::CONFLICT => Error::Exists { key, repository },
        StatusCode::TOO_EARLY => Error::TooEarly { key, repository, why },
        StatusCode::FORBIDDEN => Error::Refused(format!("{repository}: {why}")),
        _ => Error::Store { doing, key, repository, why },
    }
}

/// Refuses what is no key, and could lead out of the folder.
pub(crate) fn check_key(key: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_word = |word: &str| !word.is_empty() && !word.starts_with('.') && word.bytes().all(fits);
    if key.len() <= KEY_MAX && key.split('/').all(is_word) {
        return Ok(());
    }
    let shown: String = key.chars().take(80).collect();
    Err(Error::Refused(format!("{shown:?} is no name of an object")))
}

/// The same for the beginning of keys.
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    match prefix.strip_suffix('/') {
        None if prefix.is_empty() => Ok(()),
        Some(words) => check_key(words),
        None => check_key(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_leads_out_of_the_folder() {
        for good in ["repository", "packs/20260131T030000Z-0a/00000001", "keys/00000001.ab-C_d"] {
            check_key(good).unwrap();
            check_prefix(&format!("{good}/")).unwrap();
        }
        check_prefix("").unwrap();
        let long = "x".repeat(KEY_MAX + 1);
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            ".ssh/x",
            "a/./b",
            "a b",
            "ü",
            "a\0b",
            &long,
        ] {
            assert!(check_key(bad).is_err(), "{bad}");
            assert!(check_prefix(&format!("{bad}/")).is_err() || bad == "a/", "{bad}");
        }
        assert!(check_prefix("a").is_err() && check_prefix("/").is_err());
    }
}
