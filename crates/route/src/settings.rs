//! How a router treats its clients: just led, or carried.

use crate::{PoolSettings, SplitSettings};
use std::{fmt, sync::Arc};

/// The name under which clients reach the router itself.
pub const ADMIN_DATABASE: &str = "sempre";

/// What a router does between a client and a server.
#[derive(Clone, Debug, Default)]
pub enum Style {
    /// Bytes pass as they are. A session lives as long as its server connection; TLS is between
    /// client and server.
    #[default]
    Pass,
    /// The protocol is spoken on both sides: a session outlives its server connection.
    Proxy(ProxySettings),
}

/// Settings of [`Style::Proxy`].
#[derive(Clone)]
pub struct ProxySettings {
    /// TLS to clients that ask for it. None: where [`crate::Limits::client_tls`] offers it, it is
    /// between client and server, and such a session is not carried.
    pub client_tls: Option<ClientTls>,
    /// TLS to servers.
    pub server_tls: ServerTls,
    /// Shows servers whose certificate a client showed. None: they get to know nothing of it.
    pub vouching: Option<Arc<dyn Vouching>>,
    /// Where password verifiers come from. Without, passwords pass as they are where that is
    /// possible, and such a session ends with its server connection.
    pub credentials: Option<Arc<dyn Credentials>>,
    /// Learn a transaction's id before its COMMIT, so that the outcome of one whose answer is
    /// lost can be found out.
    pub resolve_commit: bool,
    /// The same for statements outside a transaction block that write: each of them takes one
    /// more exchange with the server.
    pub resolve_autocommit: bool,
    /// How server connections are shared.
    pub pool: PoolSettings,
    /// Which transactions standbys serve (on a read-write port only).
    pub split: SplitSettings,
    /// Who may use the admin database, [`ADMIN_DATABASE`]. Nobody: there is none.
    pub admin_users: Vec<String>,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            client_tls: None,
            server_tls: ServerTls::Off,
            vouching: None,
            credentials: None,
            resolve_commit: true,
            resolve_autocommit: false,
            pool: PoolSettings::default(),
            split: SplitSettings::default(),
            admin_users: Vec::new(),
        }
    }
}

impl fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxySettings")
            .field("client_tls", &self.client_tls.is_some())
            .field("server_tls", &self.server_tls)
            .field("vouching", &self.vouching.is_some())
            .field("credentials", &self.credentials.is_some())
            .field("resolve_commit", &self.resolve_commit)
            .field("resolve_autocommit", &self.resolve_autocommit)
            .field("pool", &self.pool)
            .field("split", &self.split)
            .field("admin_users", &self.admin_users)
            .finish()
    }
}

/// TLS to clients.
#[derive(Clone)]
pub struct ClientTls {
    /// Certificate, key, and which certificates clients may show. (Whose it is, is not compared
    /// with the user's name: servers do that, see [`Vouching`].)
    pub config: Arc<rustls::ServerConfig>,
    /// Offer it whatever the table says, and also where the databases have a certificate of the
    /// administrator's. Otherwise it is offered as [`crate::Limits::client_tls`] says, and what
    /// [`crate::Limits::database_tls`] concerns passes through.
    pub always: bool,
    /// Refuse clients that do not encrypt.
    pub required: bool,
}

/// TLS to servers.
#[derive(Clone, Default)]
pub enum ServerTls {
    /// None.
    #[default]
    Off,
    /// For clients that came encrypted, always; for others, never. So a client gets what it asked
    /// for all the way, and lines of `pg_hba.conf` for `hostssl` mean what they say.
    AsClient(Arc<rustls::ClientConfig>),
    /// When the server does it; not otherwise.
    Prefer(Arc<rustls::ClientConfig>),
    /// Always. Whose certificate is taken is the configuration's business; the name to check is
    /// the host the connection was made to.
    Require(Arc<rustls::ClientConfig>),
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServerTls::Off => "Off",
            ServerTls::AsClient(_) => "AsClient",
            ServerTls::Prefer(_) => "Prefer",
            ServerTls::Require(_) => "Require",
        })
    }
}

/// Shows servers whose certificate a client showed, so that methods `cert` and options `clientcert`
/// in `pg_hba.conf` mean what they say.
pub trait Vouching: Send + Sync {
    /// The common name in a certificate (DER) that was checked.
    fn name(&self, certificate: &[u8]) -> Option<String>;

    /// TLS to a server for a client of that name. None: the servers would not believe it.
    fn client_config(&self, name: &str) -> Option<Arc<rustls::ClientConfig>>;
}

/// What the servers know of users' passwords.
#[async_trait::async_trait]
pub trait Credentials: Send + Sync {
    /// The user's entry as in `pg_authid.rolpassword`: `SCRAM-SHA-256$...` or `md5...`. None: there
    /// is no such user, or it has no password. An error: it cannot be found out at the moment.
    async fn verifier(&self, user: &str) -> Result<Option<String>, String>;
}
