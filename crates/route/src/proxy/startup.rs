//! How a client began its session, kept so that the session can be begun again elsewhere.

use super::{negotiate::Certificates, stream::Stream};
use sempre_wire::pg::{Startup, write};

/// The client's start-up message.
#[derive(Clone)]
pub(crate) struct Begun {
    /// Minor version of protocol 3 that the client asked for.
    pub minor: u32,
    /// Options of the protocol itself; none is known here.
    pub options: Vec<Vec<u8>>,
    /// The client came encrypted.
    pub encrypted: bool,
    /// The certificate it was shown, and the one it showed.
    pub shown: Certificates,
    parameters: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Begun {
    pub fn new(startup: &Startup<'_>, client: &Stream, shown: Certificates) -> Self {
        let (options, parameters) = startup
            .parameters()
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .partition::<Vec<_>, _>(|(name, _)| name.starts_with(b"_pq_."));
        let options = options.into_iter().map(|(name, _)| name).collect();
        let encrypted = matches!(client, Stream::Tls(_));
        Self { minor: startup.minor, options, encrypted, shown, parameters }
    }

    pub fn parameter(&self, name: &str) -> Option<&[u8]> {
        let found = self.parameters.iter().find(|(known, _)| known == name.as_bytes());
        found.map(|(_, value)| value.as_slice())
    }

    /// The user's name; empty when there is none, which servers refuse.
    pub fn user(&self) -> &[u8] {
        self.parameter("user").unwrap_or_default()
    }

    /// The database's name; without one, it is the user's.
    pub fn database(&self) -> &[u8] {
        self.parameter("database").filter(|name| !name.is_empty()).unwrap_or(self.user())
    }

    /// The same for another database.
    pub fn for_database(&self, name: &str) -> Self {
        let mut parameters = self.parameters.clone();
        parameters.retain(|(name, _)| name != b"database");
        parameters.push((b"database".to_vec(), name.into()));
        let options = self.options.clone();
        let shown = self.shown.clone();
        Self { minor: self.minor, options, encrypted: self.encrypted, shown, parameters }
    }

    /// What it wants to be called; empty: nothing.
    pub fn application_name(&self) -> &[u8] {
        self.parameter("application_name").unwrap_or_default()
    }

    /// What makes its server connections different from others of the same user and database.
    /// (`application_name` is set on a connection that is taken over.)
    pub fn variant(&self) -> Vec<u8> {
        let apart = [&b"user"[..], b"database", b"application_name"];
        let mut others: Vec<_> =
            self.parameters.iter().filter(|(name, _)| !apart.contains(&&name[..])).collect();
        others.sort();
        let mut out = vec![u8::from(self.encrypted)];
        out.extend_from_slice(self.shown.name.as_deref().unwrap_or_default().as_bytes());
        out.push(0);
        for (name, value) in others {
            out.extend_from_slice(name);
            out.push(0);
            out.extend_from_slice(value);
            out.push(0);
        }
        out
    }

    /// Does it ask for replication? (The values are PostgreSQL's words for a boolean, and `database`.)
    pub fn is_replication(&self) -> bool {
        let Some(value) = self.parameter("replication") else { return false };
        let value = value.to_ascii_lowercase();
        !["false", "off", "no", "0", "f", "n", ""].iter().any(|no| value == no.as_bytes())
    }

    /// The message for a server: protocol 3.0, which all of them speak.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let parameters = self.parameters.iter().map(|(name, value)| (&name[..], &value[..]));
        write::startup(&mut out, 0, parameters);
        out
    }
}
