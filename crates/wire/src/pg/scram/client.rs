//! The client's end of an exchange.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::keys::{ClientKey, ServerKey, derive, same};
use super::message::{Attributes, BOUND_HEADER, nonce, text};
use super::{ITERATIONS_MAX, MECHANISM, MECHANISM_PLUS, NONCE_BYTES, ScramError};

/// What the client knows.
#[derive(Clone, Copy)]
pub enum Secret<'a> {
    /// The password.
    Password(&'a [u8]),
    /// The keys: from [`super::Accepted`] and from the verifier it was checked with.
    Keys {
        /// Logs in.
        client: &'a ClientKey,
        /// Checks the server; `None`: the server is not checked.
        server: Option<&'a ServerKey>,
    },
}

/// What the client says about channel binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientBinding<'a> {
    /// It cannot (no TLS).
    None,
    /// It could, but the server does not offer it.
    NotOffered,
    /// To this certificate, see [`super::end_point`].
    EndPoint(&'a [u8]),
}

/// The client's end.
#[derive(Clone, Debug)]
pub struct Client {
    mechanism: &'static str,
    /// What `c=` says, before base64.
    binding: Vec<u8>,
    nonce: String,
    first: String,
    bare_at: usize,
    /// What the server has to sign with: known once it was answered.
    expected: Option<[u8; 32]>,
    /// The keys of the password, for another exchange with the same verifier.
    keys: Option<(ClientKey, ServerKey)>,
}

impl Client {
    /// Begins an exchange.
    pub fn new(random: [u8; NONCE_BYTES], binding: ClientBinding) -> Self {
        let (mechanism, header, hash) = match binding {
            ClientBinding::None => (MECHANISM, "n,,", &[][..]),
            ClientBinding::NotOffered => (MECHANISM, "y,,", &[][..]),
            ClientBinding::EndPoint(hash) => (MECHANISM_PLUS, BOUND_HEADER, hash),
        };
        let nonce = STANDARD.encode(random);
        // The user is empty: PostgreSQL takes the one of the start-up message.
        let first = format!("{header}n=,r={nonce}");
        Self {
            mechanism,
            binding: [header.as_bytes(), hash].concat(),
            nonce,
            first,
            bare_at: header.len(),
            expected: None,
            keys: None,
        }
    }

    /// The mechanism for SASLInitialResponse.
    pub fn mechanism(&self) -> &'static str {
        self.mechanism
    }

    /// The message for SASLInitialResponse.
    pub fn first(&self) -> &[u8] {
        self.first.as_bytes()
    }

    /// Takes what came in AuthenticationSASLContinue; gives the SASLResponse.
    ///
    /// With a password it costs as many hashes as the server says.
    pub fn answer(&mut self, server_first: &[u8], secret: Secret) -> Result<Vec<u8>, ScramError> {
        let server_first = text(server_first)?;
        let mut attributes = Attributes::new(server_first);
        let nonce = nonce(attributes.expect('r', "a nonce is expected first")?)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Malformed("nonce does not match"));
        }
        let salt = attributes.expect('s', "a salt is expected second")?;
        let salt = STANDARD.decode(salt).map_err(|_| ScramError::Malformed("malformed salt"))?;
        let iterations: u32 = attributes
            .expect('i', "a number of iterations is expected third")?
            .parse()
            .ok()
            .filter(|number| *number > 0)
            .ok_or(ScramError::Malformed("malformed number of iterations"))?;
        let derived;
        let (client, server) = match secret {
            Secret::Password(_) if iterations > ITERATIONS_MAX => {
                return Err(ScramError::Iterations(iterations));
            }
            Secret::Password(password) => {
                derived = derive(password, &salt, iterations);
                self.keys = Some(derived.clone());
                (&derived.0, Some(&derived.1))
            }
            Secret::Keys { client, server } => (client, server),
        };
        let without_proof = format!("c={},r={nonce}", STANDARD.encode(&self.binding));
        let auth_message = [
            &self.first.as_bytes()[self.bare_at..],
            b",",
            server_first.as_bytes(),
            b",",
            without_proof.as_bytes(),
        ];
        self.expected = server.map(|key| key.sign(&auth_message));
        let proof = client.masked(&client.stored(), &auth_message);
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof.0)).into_bytes())
    }

    /// Takes what came in AuthenticationSASLFinal.
    pub fn finish(&self, server_final: &[u8]) -> Result<(), ScramError> {
        match Attributes::new(text(server_final)?).next() {
            Some(('v', signature)) => {
                let Some(expected) = &self.expected else { return Ok(()) };
                let signature = STANDARD
                    .decode(signature)
                    .map_err(|_| ScramError::Malformed("malformed server signature"))?;
                if same(&signature, expected) { Ok(()) } else { Err(ScramError::Impostor) }
            }
            Some(('e', _)) => Err(ScramError::Refused),
            _ => Err(ScramError::Malformed("a signature or an error is expected")),
        }
    }

    /// The keys that came out of the password, for logging in where the same verifier is kept;
    /// `None` before [`Client::answer`] and without a password.
    pub fn keys(&self) -> Option<&(ClientKey, ServerKey)> {
        self.keys.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677.
    fn exchange() -> Client {
        Client {
            mechanism: MECHANISM,
            binding: b"n,,".to_vec(),
            nonce: "rOprNGfwEbeRWgbNEkqO".into(),
            first: "n,,n=user,r=rOprNGfwEbeRWgbNEkqO".into(),
            bare_at: 3,
            expected: None,
            keys: None,
        }
    }

    const SERVER_FIRST: &[u8] =
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const SERVER_FINAL: &[u8] = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    #[test]
    fn it_says_what_the_rfc_says() {
        let mut client = exchange();
        let answer = client.answer(SERVER_FIRST, Secret::Password(b"pencil")).unwrap();
        assert_eq!(
            answer,
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
              p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(client.finish(SERVER_FINAL), Ok(()));
        assert_eq!(
            client.finish(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="),
            Err(ScramError::Impostor)
        );
        assert_eq!(client.finish(b"e=other-error"), Err(ScramError::Refused));
        // The keys do as well as the password.
        let (key, server) = client.keys().cloned().unwrap();
        let mut again = exchange();
        let secret = Secret::Keys { client: &key, server: Some(&server) };
        assert_eq!(again.answer(SERVER_FIRST, secret), Ok(answer));
        assert_eq!(again.finish(SERVER_FINAL), Ok(()));
    }

    #[test]
    fn a_strange_server_is_left() {
        for (message, error) in [
            (&b"r=other,s=AA==,i=1"[..], ScramError::Malformed("nonce does not match")),
            (b"r=rOprNGfwEbeRWgbNEkqO,s=AA==,i=1", ScramError::Malformed("nonce does not match")),
            (b"r=rOprNGfwEbeRWgbNEkqOx,s=!,i=1", ScramError::Malformed("malformed salt")),
            (b"r=rOprNGfwEbeRWgbNEkqOx,s=AA==,i=2000000000", ScramError::Iterations(2_000_000_000)),
            (
                b"r=rOprNGfwEbeRWgbNEkqOx,s=AA==,i=0",
                ScramError::Malformed("malformed number of iterations"),
            ),
            (b"", ScramError::Malformed("a nonce is expected first")),
            (b"\xff", ScramError::Malformed("it is not text")),
        ] {
            assert_eq!(exchange().answer(message, Secret::Password(b"x")), Err(error));
        }
    }
}
