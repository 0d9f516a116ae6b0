//! What a server keeps of a password.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::keys::{ClientKey, Key, ServerKey, derive, same};

/// Bytes of salt that PostgreSQL makes.
const SALT_BYTES: usize = 16;
/// PostgreSQL's default, bounded by nothing but patience.
const MOCK_ITERATIONS: u32 = 4_096;
/// The longest salt taken, bytes; it has to fit a SASL message.
const SALT_MAX: usize = 512;

/// What a server keeps of a password: `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, as in
/// `pg_authid.rolpassword`. It checks a password, but does not log in elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub(super) iterations: u32,
    pub(super) salt: Vec<u8>,
    pub(super) stored: Key,
    pub(super) server: ServerKey,
    /// There is no such user: whatever comes, it is refused.
    pub(super) mock: bool,
}

/// A text that is no verifier. Says nothing of the text, which is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a SCRAM-SHA-256 verifier: {0}")]
pub struct VerifierError(&'static str);

impl Verifier {
    /// The one that PostgreSQL would make of this password. Costs `iterations` hashes.
    pub fn of_password(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let (client, server) = derive(password, salt, iterations.max(1));
        Self {
            iterations: iterations.max(1),
            salt: salt.to_vec(),
            stored: client.stored(),
            server,
            mock: false,
        }
    }

    /// For a user that there is not, or that has no such password: an exchange looks as with any
    /// other, the same salt every time, and ends in a refusal.
    ///
    /// `secret`: random bytes that stay the same for as long as clients may compare, and that
    /// nobody else knows.
    pub fn mock(user: &[u8], secret: &[u8]) -> Self {
        let salt = Sha256::new().chain_update(user).chain_update(secret).finalize();
        Self {
            iterations: MOCK_ITERATIONS,
            salt: salt[..SALT_BYTES].to_vec(),
            stored: Key::default(),
            server: ServerKey(Key::default()),
            mock: true,
        }
    }

    /// The key of this password, if it is the right one. Costs the iterations' hashes.
    pub fn check(&self, password: &[u8]) -> Option<ClientKey> {
        let (client, _server) = derive(password, &self.salt, self.iterations);
        (same(&client.stored(), &self.stored) && !self.mock).then_some(client)
    }

    /// Is this key the one of the verifier? So a key kept since an earlier log-in is known to be
    /// out of date without asking a server.
    pub fn fits(&self, key: &ClientKey) -> bool {
        same(&key.stored(), &self.stored) && !self.mock
    }

    /// With this a server proves that it knows the verifier.
    pub fn server_key(&self) -> &ServerKey {
        &self.server
    }
}

impl FromStr for Verifier {
    type Err = VerifierError;

    fn from_str(text: &str) -> Result<Self, VerifierError> {
        let bad = VerifierError;
        let mut parts = text.trim_end().split('$');
        if parts.next() != Some(super::MECHANISM) {
            return Err(bad("it does not begin with SCRAM-SHA-256$"));
        }
        let (Some(cost), Some(keys), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad("it does not have three parts"));
        };
        let (iterations, salt) = cost.split_once(':').ok_or(bad("it has no salt"))?;
        let (stored, server) = keys.split_once(':').ok_or(bad("it has one key, not two"))?;
        let iterations = iterations
            .parse()
            .ok()
            .filter(|number| (1..=i32::MAX as u32).contains(number))
            .ok_or(bad("its number of iterations is none"))?;
        let key = |text: &str| {
            STANDARD
                .decode(text)
                .ok()
                .and_then(|key| Key::try_from(key).ok())
                .ok_or(bad("a key is not 32 bytes in base64"))
        };
        let salt = STANDARD
            .decode(salt)
            .ok()
            .filter(|salt| salt.len() <= SALT_MAX)
            .ok_or(bad("its salt is not base64, or too long"))?;
        Ok(Self {
            iterations,
            salt,
            stored: key(stored)?,
            server: ServerKey(key(server)?),
            mock: false,
        })
    }
}

/// As PostgreSQL keeps it. A secret.
impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored, server] =
            [&self.salt[..], &self.stored, &self.server.0].map(|bytes| STANDARD.encode(bytes));
        write!(f, "{}${}:{salt}${stored}:{server}", super::MECHANISM, self.iterations)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}
