//! The server's end of an exchange.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::keys::{ClientKey, Key, same};
use super::message::{Attributes, BOUND_HEADER, nonce, text};
use super::{MECHANISM, MECHANISM_PLUS, NONCE_BYTES, ScramError, Verifier};

/// The server's end, after the client's first message.
#[derive(Clone, Debug)]
pub struct Server {
    verifier: Verifier,
    /// What `c=` has to be.
    binding: String,
    client_first_bare: String,
    server_first: String,
    nonce: String,
}

/// The client is who it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// For AuthenticationSASLFinal.
    pub server_final: Vec<u8>,
    /// With this one logs in as that client elsewhere.
    pub client_key: ClientKey,
}

impl Server {
    /// The mechanisms to offer, `end_point` being the binding of our certificate, where the
    /// client came by TLS and it has one.
    pub fn mechanisms(end_point: Option<&[u8]>) -> &'static [&'static str] {
        if end_point.is_some() { &[MECHANISM_PLUS, MECHANISM] } else { &[MECHANISM] }
    }

    /// Takes the client's first message; gives what goes into AuthenticationSASLContinue.
    ///
    /// A missing initial response is answered with an empty AuthenticationSASLContinue by the
    /// caller; the message comes then as a SASLResponse.
    pub fn first(
        verifier: Verifier,
        mechanism: &[u8],
        client_first: &[u8],
        random: [u8; NONCE_BYTES],
        end_point: Option<&[u8]>,
    ) -> Result<(Self, Vec<u8>), ScramError> {
        let bound = match (mechanism, end_point) {
            (mechanism, Some(hash)) if mechanism == MECHANISM_PLUS.as_bytes() => Some(hash),
            (mechanism, _) if mechanism == MECHANISM.as_bytes() => None,
            _ => return Err(ScramError::Malformed("client selected an invalid SASL mechanism")),
        };
        let message = text(client_first)?;
        let (flag, behind) = message
            .split_once(',')
            .ok_or(ScramError::Malformed("it has no channel binding flag"))?;
        let binding = match (flag, bound) {
            ("n", None) => STANDARD.encode("n,,"),
            // The client could bind and believes that we cannot.
            ("y", None) if end_point.is_some() => {
                return Err(ScramError::Binding(
                    "the client supports SCRAM channel binding but thinks the server does not, \
                     which does",
                ));
            }
            ("y", None) => STANDARD.encode("y,,"),
            ("p=tls-server-end-point", Some(hash)) => {
                STANDARD.encode([BOUND_HEADER.as_bytes(), hash].concat())
            }
            ("n" | "y", Some(_)) => {
                return Err(ScramError::Malformed(
                    "the client selected SCRAM-SHA-256-PLUS without channel binding data",
                ));
            }
            (_, None) if flag.starts_with("p=") => {
                return Err(ScramError::Malformed(
                    "the client selected SCRAM-SHA-256 with channel binding data",
                ));
            }
            _ => return Err(ScramError::Malformed("unsupported channel binding type")),
        };
        let bare = behind
            .strip_prefix(',')
            .ok_or(ScramError::Malformed("authorization identities are not supported"))?;
        let mut attributes = Attributes::new(bare);
        // PostgreSQL takes the user of the start-up message and lets this one say what it likes.
        attributes.expect('n', "a user name is expected first (or an extension is required)")?;
        let client_nonce = nonce(attributes.expect('r', "a nonce is expected second")?)?;
        let nonce = format!("{client_nonce}{}", STANDARD.encode(random));
        let server_first =
            format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let answer = server_first.clone().into_bytes();
        let client_first_bare = bare.to_owned();
        Ok((Self { verifier, binding, client_first_bare, server_first, nonce }, answer))
    }

    /// Takes the client's last message.
    pub fn last(self, client_final: &[u8]) -> Result<Accepted, ScramError> {
        let message = text(client_final)?;
        let (without_proof, proof) =
            message.rsplit_once(",p=").ok_or(ScramError::Malformed("a proof is expected last"))?;
        let mut attributes = Attributes::new(without_proof);
        let binding = attributes.expect('c', "channel binding data is expected first")?;
        let nonce = attributes.expect('r', "the nonce is expected second")?;
        if !same(binding.as_bytes(), self.binding.as_bytes()) {
            return Err(ScramError::Binding("the channel binding data does not match"));
        }
        if !same(nonce.as_bytes(), self.nonce.as_bytes()) {
            return Err(ScramError::Malformed("nonce does not match"));
        }
        let proof = STANDARD
            .decode(proof)
            .ok()
            .and_then(|proof| Key::try_from(proof).ok())
            .ok_or(ScramError::Malformed("malformed proof"))?;
        let auth_message = [
            self.client_first_bare.as_bytes(),
            b",",
            self.server_first.as_bytes(),
            b",",
            without_proof.as_bytes(),
        ];
        let client_key = ClientKey(proof).masked(&self.verifier.stored, &auth_message);
        if !self.verifier.fits(&client_key) {
            return Err(ScramError::Refused);
        }
        let signature = self.verifier.server.sign(&auth_message);
        let server_final = format!("v={}", STANDARD.encode(signature)).into_bytes();
        Ok(Accepted { server_final, client_key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOM: [u8; NONCE_BYTES] = [7; NONCE_BYTES];

    fn verifier() -> Verifier {
        Verifier::of_password(
            b"pencil",
            &STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(),
            4096,
        )
    }

    #[test]
    fn it_accepts_the_client_of_the_rfc() {
        let server = Server {
            verifier: verifier(),
            binding: "biws".into(),
            client_first_bare: "n=user,r=rOprNGfwEbeRWgbNEkqO".into(),
            server_first: "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                           s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
                .into(),
            nonce: "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".into(),
        };
        let accepted = server
            .clone()
            .last(
                b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                  p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            )
            .unwrap();
        assert_eq!(accepted.server_final, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert!(verifier().fits(&accepted.client_key));
        assert_eq!(verifier().check(b"pencil"), Some(accepted.client_key));
        assert_eq!(verifier().check(b"pencils"), None);
        assert_eq!(
            server.last(
                b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                  p=eHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            ),
            Err(ScramError::Refused)
        );
    }

    #[test]
    fn a_verifier_comes_back_from_its_text() {
        let text = verifier().to_string();
        assert_eq!(text.parse(), Ok(verifier()));
        assert!(!format!("{:?}", verifier()).contains(&text[20..30]));
        for bad in [
            "",
            "md5",
            "SCRAM-SHA-256$4096:x",
            "SCRAM-SHA-256$0:AA==$AA==:AA==",
            &text.replace("4096", "-1"),
            &text.replace('$', ""),
            &format!("{text}$"),
            &text[..text.len() - 5],
        ] {
            assert!(bad.parse::<Verifier>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_message_is_checked() {
        let first = |mechanism: &str, message: &str, end_point: Option<&[u8]>| {
            Server::first(verifier(), mechanism.as_bytes(), message.as_bytes(), RANDOM, end_point)
                .map(|(_, answer)| String::from_utf8(answer).unwrap())
        };
        assert_eq!(
            first(MECHANISM, "n,,n=,r=abc", None).unwrap(),
            format!("r=abc{},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", STANDARD.encode(RANDOM))
        );
        assert!(first(MECHANISM, "y,,n=,r=abc", None).is_ok());
        assert!(first(MECHANISM, "n,,n=,r=abc", Some(b"hash")).is_ok());
        assert!(first(MECHANISM_PLUS, "p=tls-server-end-point,,n=,r=abc", Some(b"hash")).is_ok());
        assert!(matches!(
            first(MECHANISM, "y,,n=,r=abc", Some(b"hash")),
            Err(ScramError::Binding(_))
        ));
        for (mechanism, message, end_point) in [
            ("SCRAM-SHA-1", "n,,n=,r=abc", None),
            (MECHANISM_PLUS, "p=tls-server-end-point,,n=,r=abc", None),
            (MECHANISM_PLUS, "n,,n=,r=abc", Some(&b"hash"[..])),
            (MECHANISM_PLUS, "p=tls-unique,,n=,r=abc", Some(b"hash")),
            (MECHANISM, "p=tls-server-end-point,,n=,r=abc", Some(b"hash")),
            (MECHANISM, "n,a=ann,n=,r=abc", None),
            (MECHANISM, "n,,m=x,n=,r=abc", None),
            (MECHANISM, "n,,n=,r=", None),
            (MECHANISM, "n,,n=,r=a\u{7f}b", None),
            (MECHANISM, "n,,r=abc", None),
            (MECHANISM, "", None),
            (MECHANISM, "n", None),
        ] {
            let got = first(mechanism, message, end_point);
            assert!(matches!(got, Err(ScramError::Malformed(_))), "{message}: {got:?}");
        }
    }

    #[test]
    fn both_ends_agree_with_and_without_binding() {
        use crate::pg::scram::{Client, ClientBinding, Secret};
        for (binding, end_point) in [
            (ClientBinding::None, None),
            (ClientBinding::NotOffered, None),
            (ClientBinding::None, Some(&b"hash"[..])),
            (ClientBinding::EndPoint(b"hash"), Some(b"hash")),
        ] {
            for password in ["pencil", "crayon"] {
                let mut client = Client::new([3; NONCE_BYTES], binding);
                let mechanism = client.mechanism().as_bytes();
                let (server, answer) =
                    Server::first(verifier(), mechanism, client.first(), RANDOM, end_point)
                        .unwrap();
                let last = client.answer(&answer, Secret::Password(password.as_bytes())).unwrap();
                match server.last(&last) {
                    Ok(accepted) => {
                        assert_eq!(password, "pencil");
                        assert_eq!(client.finish(&accepted.server_final), Ok(()));
                        assert_eq!(client.keys().unwrap().0, accepted.client_key);
                    }
                    Err(error) => assert_eq!((password, error), ("crayon", ScramError::Refused)),
                }
            }
        }
        // Bound to another certificate: someone stands in between.
        let mut client = Client::new([3; NONCE_BYTES], ClientBinding::EndPoint(b"other"));
        let mechanism = client.mechanism().as_bytes();
        let (server, answer) =
            Server::first(verifier(), mechanism, client.first(), RANDOM, Some(b"hash")).unwrap();
        let last = client.answer(&answer, Secret::Password(b"pencil")).unwrap();
        assert!(matches!(server.last(&last), Err(ScramError::Binding(_))));
    }

    #[test]
    fn a_user_that_is_not_looks_like_one_and_is_refused() {
        let mock = Verifier::mock(b"nobody", b"secret");
        assert_eq!(mock, Verifier::mock(b"nobody", b"secret"));
        assert_ne!(mock.salt, Verifier::mock(b"nobody2", b"secret").salt);
        let (server, answer) =
            Server::first(mock.clone(), b"SCRAM-SHA-256", b"n,,n=,r=abc", RANDOM, None).unwrap();
        assert!(String::from_utf8(answer).unwrap().ends_with(",i=4096"));
        let nonce = format!("abc{}", STANDARD.encode(RANDOM));
        let proof = STANDARD.encode([0; 32]);
        let last = format!("c=biws,r={nonce},p={proof}");
        assert_eq!(server.last(last.as_bytes()), Err(ScramError::Refused));
        assert_eq!(mock.check(b""), None);
    }
}
