//! Passwords: asked from the client in the servers' way, and shown to servers again and again.
//!
//! With a user's verifier, the client proves to us that it knows the password, and what it reveals
//! by that (SCRAM's client key, or the md5 hash that stands for the password) logs in to every
//! member. The password itself stays unknown.

use super::{
    link::NoLink,
    lost::not_carriable,
    session::Over,
    talk::{Heard, Talk, violation},
};
use crate::Credentials;
use sempre_wire::pg::{
    Authentication, ErrorResponse, SaslInitialResponse, frontend, md5,
    scram::{self, Client, ClientBinding, ClientKey, Server, ServerKey, Verifier},
    sqlstate, write,
};
use std::sync::LazyLock;

/// What made-up verifiers are made of: the same for every user that there is not, as long as we run.
static MOCK: LazyLock<[u8; 32]> = LazyLock::new(rand::random);

/// How to log in again.
#[derive(Clone)]
pub(crate) enum Secret {
    /// The server asked for nothing.
    None,
    /// A password in clear.
    Clear(Vec<u8>),
    /// The hash that stands for it.
    Md5(String),
    /// The keys that stand for it.
    Scram(Box<(ClientKey, ServerKey)>),
    /// The exchange passed through: it cannot be repeated.
    Relayed,
}

/// A client that can be asked, and what its answers are checked with.
pub(crate) struct Asking<'a, 'b> {
    pub talk: &'a mut Talk<'b>,
    pub user: &'a [u8],
    pub credentials: Option<&'a dyn Credentials>,
    /// The binding of our certificate, where the client came by TLS.
    pub end_point: Option<&'a [u8]>,
}

fn refused(user: &[u8]) -> NoLink {
    let user = String::from_utf8_lossy(user);
    let message = format!("password authentication failed for user \"{user}\"");
    NoLink::Error(ErrorResponse::fatal(sqlstate::INVALID_PASSWORD, message, "", ""))
}

impl Asking<'_, '_> {
    /// Asks the client what the server asks for, if there is something to check the answer with.
    pub async fn secret(&mut self, request: &Authentication<'_>) -> Result<Option<Secret>, NoLink> {
        let Some(credentials) = self.credentials else { return Ok(None) };
        if !matches!(request, Authentication::Sasl(_) | Authentication::Md5Password { .. }) {
            return Ok(None);
        }
        let user = String::from_utf8_lossy(self.user).into_owned();
        let stored = credentials.verifier(&user).await.map_err(|why| {
            NoLink::NotYet(format!("the password of {user} cannot be checked: {why}"))
        })?;
        match request {
            Authentication::Sasl(_) => {
                let verifier = stored.and_then(|stored| stored.parse().ok());
                let verifier = verifier.unwrap_or_else(|| Verifier::mock(self.user, &*MOCK));
                self.scram(verifier).await.map(Some)
            }
            _ => self.md5(stored.filter(|stored| md5::is_stored(stored))).await.map(Some),
        }
    }

    async fn hear(&mut self) -> Result<Heard, NoLink> {
        let heard = self.talk.hear().await.map_err(|_| NoLink::ClientGone)?;
        match heard.tag {
            b'p' => Ok(heard),
            tag => Err(NoLink::Error(violation(format!(
                "expected password response, got message type {tag}"
            )))),
        }
    }

    async fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), NoLink> {
        let mut out = Vec::new();
        write(&mut out);
        self.talk.say(&out).await.map_err(|_| NoLink::ClientGone)
    }

    async fn scram(&mut self, verifier: Verifier) -> Result<Secret, NoLink> {
        let server_key = verifier.server_key().clone();
        let end_point = self.end_point;
        self.say(|out| write::authentication_sasl(out, Server::mechanisms(end_point))).await?;
        let heard = self.hear().await?;
        let malformed = |_| NoLink::Error(violation("malformed SCRAM message"));
        let initial = SaslInitialResponse::decode(&heard.body).map_err(malformed)?;
        let mechanism = initial.mechanism.to_vec();
        let first = match initial.response {
            Some(response) => response.to_vec(),
            None => {
                self.say(|out| write::authentication_sasl_continue(out, b"")).await?;
                self.hear().await?.body
            }
        };
        let user = self.user;
        let failed = |error: scram::ScramError| match error {
            scram::ScramError::Refused => refused(user),
            scram::ScramError::Binding(_) => NoLink::Error(ErrorResponse::fatal(
                sqlstate::INVALID_AUTHORIZATION,
                error.to_string(),
                "",
                "",
            )),
            _ => NoLink::Error(violation(error)),
        };
        let (server, answer) =
            Server::first(verifier, &mechanism, &first, rand::random(), end_point)
                .map_err(failed)?;
        self.say(|out| write::authentication_sasl_continue(out, &answer)).await?;
        let last = self.hear().await?;
        let accepted = server.last(&last.body).map_err(failed)?;
        self.say(|out| write::authentication_sasl_final(out, &accepted.server_final)).await?;
        Ok(Secret::Scram(Box::new((accepted.client_key, server_key))))
    }

    async fn md5(&mut self, stored: Option<String>) -> Result<Secret, NoLink> {
        let salt: [u8; 4] = rand::random();
        self.say(|out| write::authentication_md5(out, salt)).await?;
        let heard = self.hear().await?;
        let given =
            frontend::password(&heard.body).map_err(|error| NoLink::Error(violation(error)))?;
        match stored {
            Some(stored) if md5::check(&stored, salt, given) => Ok(Secret::Md5(stored)),
            _ => Err(refused(self.user)),
        }
    }
}

/// A log-in to a server with a secret.
#[derive(Default)]
pub(crate) struct Showing {
    scram: Option<Client>,
}

impl Showing {
    /// The answer to a server's question; none: it wants none.
    pub fn answer(
        &mut self,
        secret: &Secret,
        user: &[u8],
        request: &Authentication<'_>,
    ) -> Result<Option<Vec<u8>>, NoLink> {
        let mut out = Vec::new();
        let unknown = |why: &str| match not_carriable(why) {
            Over::Error(error) => NoLink::Error(error),
            Over::Silent | Over::Raw(_) => NoLink::ClientGone,
        };
        match (request, secret) {
            (Authentication::CleartextPassword, Secret::Clear(password)) => {
                write::password(&mut out, password);
            }
            (Authentication::Md5Password { salt }, Secret::Clear(password)) => {
                let answer = md5::answer(&md5::stored(user, password), *salt);
                write::password(&mut out, answer.as_bytes());
            }
            (Authentication::Md5Password { salt }, Secret::Md5(stored)) => {
                write::password(&mut out, md5::answer(stored, *salt).as_bytes());
            }
            (Authentication::Sasl(names), Secret::Clear(_) | Secret::Scram(_))
                if names.contains(scram::MECHANISM) =>
            {
                let client = Client::new(rand::random(), ClientBinding::None);
                write::sasl_initial_response(&mut out, client.mechanism(), client.first());
                self.scram = Some(client);
            }
            (Authentication::SaslContinue(first), _) => {
                let client =
                    self.scram.as_mut().ok_or_else(|| unknown("The server is out of step."))?;
                let secret = match secret {
                    Secret::Clear(password) => scram::Secret::Password(password),
                    Secret::Scram(keys) => {
                        scram::Secret::Keys { client: &keys.0, server: Some(&keys.1) }
                    }
                    _ => {
                        return Err(unknown(
                            "The server asks for a password that is not known here.",
                        ));
                    }
                };
                let answer = client.answer(first, secret);
                let answer = answer.map_err(|error| NoLink::NotYet(error.to_string()))?;
                write::sasl_response(&mut out, &answer);
            }
            (Authentication::SaslFinal(last), _) => {
                let client =
                    self.scram.as_mut().ok_or_else(|| unknown("The server is out of step."))?;
                client.finish(last).map_err(|error| NoLink::NotYet(error.to_string()))?;
                return Ok(None);
            }
            _ => {
                return Err(unknown("The new primary asks for a password that is not known here."));
            }
        }
        Ok(Some(out))
    }
}
