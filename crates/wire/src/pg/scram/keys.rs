//! The keys, and how they come from each other.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Bytes of every key.
pub(super) const KEY_BYTES: usize = 32;
pub(super) type Key = [u8; KEY_BYTES];

/// With this one logs in. As good as the password wherever the same verifier is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKey(pub Key);

/// With this a server proves that it knows the verifier.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerKey(pub Key);

// Keys do not belong in logs.
impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKey(..)")
    }
}

impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerKey(..)")
    }
}

impl ClientKey {
    /// What the verifier keeps of it.
    pub(super) fn stored(&self) -> Key {
        Sha256::digest(self.0).into()
    }

    /// Hides the key behind a signature that only someone with the stored key can make; done
    /// twice, it comes out again.
    pub(super) fn masked(&self, stored: &Key, auth_message: &[&[u8]]) -> Self {
        let signature = hmac(stored, auth_message);
        Self(std::array::from_fn(|at| self.0[at] ^ signature[at]))
    }
}

impl ServerKey {
    pub(super) fn sign(&self, auth_message: &[&[u8]]) -> Key {
        hmac(&self.0, auth_message)
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// HMAC-SHA-256 over all of `parts`.
pub(super) fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = keyed(key);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Are they the same? Takes as long either way.
pub(super) fn same(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}

/// The two keys that a password makes with a salt.
pub(super) fn derive(password: &[u8], salt: &[u8], iterations: u32) -> (ClientKey, ServerKey) {
    let salted = salted(&normalized(password), salt, iterations);
    (ClientKey(hmac(&salted, &[b"Client Key"])), ServerKey(hmac(&salted, &[b"Server Key"])))
}

/// PBKDF2 with one block.
fn salted(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let keyed = keyed(password);
    let step = |parts: &[&[u8]]| -> Key {
        let mut mac = keyed.clone();
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    };
    let mut last = step(&[salt, &1_u32.to_be_bytes()]);
    let mut salted = last;
    for _round in 1..iterations {
        last = step(&[&last]);
        for (byte, more) in salted.iter_mut().zip(last) {
            *byte ^= more;
        }
    }
    salted
}

/// SASLprep; a password it does not take is used as it is, as PostgreSQL does.
fn normalized(password: &[u8]) -> Vec<u8> {
    std::str::from_utf8(password)
        .ok()
        .and_then(|text| stringprep::saslprep(text).ok())
        .map_or_else(|| password.to_vec(), |text| text.into_owned().into_bytes())
}
