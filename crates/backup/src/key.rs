//! Keys of a repository.
//!
//! - The *backup key* is what people keep: without it a repository is noise. Every member has it in the
//!   record; `sempre backup key` prints it, to be kept where the machines are not.
//! - *Epoch keys* seal the objects. They lie in the repository, each wrapped by the backup key. Rotating
//!   makes a new epoch for what is written from then on; what was written before stays readable.
//! - Each object is sealed by a key of its own, made of its epoch's key and a random salt in its header
//!   ([`crate::seal`]), so that no two objects ever share a nonce.

use crate::{Error, Result};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{collections::BTreeMap, fmt};

/// In front of a backup key as text, with its version.
const TEXT_PREFIX: &str = "sempre-backup-key-1:";

/// 256 secret bits. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(crate) [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The key that people keep, as text.
    pub fn to_text(&self) -> String {
        format!("{TEXT_PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }

    /// Reads what [`Secret::to_text`] wrote, white space around it allowed.
    pub fn from_text(text: &str) -> Result<Self> {
        let encoded = text.trim().strip_prefix(TEXT_PREFIX).ok_or(Error::BadKey)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Error::BadKey)?;
        bytes.try_into().map(Self).map_err(|_| Error::BadKey)
    }

    /// What a key is called where it must not be shown: 16 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let hash = blake3::derive_key("sempre 2026 backup key fingerprint", &self.0);
        hash[..8].iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// The epoch keys of an open repository.
#[derive(Clone, Debug)]
pub struct Keys {
    pub(crate) epochs: BTreeMap<u32, Secret>,
}

impl Keys {
    /// One epoch, by this key.
    pub(crate) fn single(epoch: u32, key: Secret) -> Self {
        Self { epochs: BTreeMap::from([(epoch, key)]) }
    }

    /// The newest epoch: what is written now belongs to it.
    pub(crate) fn newest(&self) -> (u32, &Secret) {
        self.epochs.last_key_value().map(|(epoch, key)| (*epoch, key)).expect("never empty")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_as_text_and_garbage_is_refused() {
        let key = Secret::random();
        let text = format!(" {}\n", key.to_text());
        assert_eq!(Secret::from_text(&text).unwrap(), key);
        assert_eq!(format!("{key:?}"), "Secret(..)");
        assert_ne!(key.fingerprint(), Secret::random().fingerprint());
        for bad in ["", "sempre-backup-key-1:", "sempre-backup-key-2:AAAA", &text.trim()[..40]] {
            assert!(matches!(Secret::from_text(bad), Err(Error::BadKey)), "{bad}");
        }
    }
}
