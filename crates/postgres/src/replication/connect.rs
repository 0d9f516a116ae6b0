//! Logging in as a standby does: by TLS where the server has it, with a password by SCRAM.

use super::{READ_BYTES, Replication, refused};
use crate::{
    ADMIN_ROLE, Error, Instance, REPLICATION_ROLE, Result, Upstream, roles::DATABASE,
    tls::Connector,
};
use bytes::BytesMut;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use sempre_wire::pg::{Authentication, Backend, write};
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_postgres::tls::TlsConnect;

/// A connection, whatever it goes over.
pub(super) type Stream = Box<dyn AnyStream>;

pub(super) trait AnyStream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> AnyStream for T {}

/// One address is given up after this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// A log-in takes no longer.
const LOGIN_WITHIN: Duration = Duration::from_secs(10);

impl Instance {
    /// A replication connection to the running server, over its private socket. `name` is its
    /// `application_name`.
    pub async fn replication(&self, admin_password: &str, name: &str) -> Result<Replication> {
        let socket = self.layout.run_dir.join(format!(".s.PGSQL.{}", self.port));
        let at = socket.display().to_string();
        let connected = timeout(CONNECT_WITHIN, UnixStream::connect(&socket)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Error::Connect { at, why: error.to_string() }),
            Err(_) => return Err(Error::TimedOut { what: at, after: CONNECT_WITHIN }),
        };
        let who = Who { role: ADMIN_ROLE, password: admin_password, name };
        log_in(Box::new(stream), at, &who, None).await
    }

    /// The same to another member's server, on the first of its addresses that answers.
    pub async fn remote_replication(&self, upstream: &Upstream, name: &str) -> Result<Replication> {
        let who = Who { role: REPLICATION_ROLE, password: &upstream.password, name };
        let mut failures = Vec::new();
        for host in &upstream.hosts {
            match self.try_host(upstream, host, &who).await {
                Ok(replication) => return Ok(replication),
                Err(error) => failures.push(error),
            }
        }
        Err(failures.pop().unwrap_or_else(|| Error::Connect {
            at: upstream.member.to_string(),
            why: "it has no address".to_owned(),
        }))
    }

    async fn try_host(
        &self,
        upstream: &Upstream,
        host: &str,
        who: &Who<'_>,
    ) -> Result<Replication> {
        let at = format!("{host} port {}", upstream.port);
        let broken = |why: String| Error::Connect { at: at.clone(), why };
        let connected = timeout(CONNECT_WITHIN, TcpStream::connect((host, upstream.port))).await;
        let mut stream = connected
            .map_err(|_| Error::TimedOut { what: at.clone(), after: CONNECT_WITHIN })?
            .map_err(|e| broken(e.to_string()))?;
        stream.set_nodelay(true).map_err(|e| broken(e.to_string()))?;
        if !upstream.encryption.is_on() {
            return log_in(Box::new(stream), at, who, None).await;
        }
        let tls = Connector::new(self, upstream.encryption)?;
        let encrypted = async {
            let mut request = Vec::new();
            write::ssl_request(&mut request);
            stream.write_all(&request).await?;
            match stream.read_u8().await? {
                b'S' => tls.connect(stream).await,
                _ => Err(std::io::Error::other("the server does not speak TLS")),
            }
        };
        let encrypted = timeout(LOGIN_WITHIN, encrypted).await;
        let encrypted = encrypted
            .map_err(|_| Error::TimedOut { what: at.clone(), after: LOGIN_WITHIN })?
            .map_err(|e| broken(e.to_string()))?;
        // A password never goes to a server without being bound to what it has shown.
        let end_point = encrypted.end_point();
        let end_point =
            end_point.ok_or_else(|| broken("its certificate cannot be bound to".into()))?;
        log_in(Box::new(encrypted), at, who, Some(end_point)).await
    }
}

/// Who logs in.
struct Who<'a> {
    role: &'a str,
    password: &'a str,
    name: &'a str,
}

async fn log_in(
    stream: Stream,
    at: String,
    who: &Who<'_>,
    end_point: Option<Vec<u8>>,
) -> Result<Replication> {
    let mut replication = Replication { stream, input: BytesMut::with_capacity(READ_BYTES), at };
    let done = timeout(LOGIN_WITHIN, replication.log_in(who, end_point)).await;
    match done {
        Ok(done) => done.map(|()| replication),
        Err(_) => Err(Error::TimedOut { what: replication.at, after: LOGIN_WITHIN }),
    }
}

impl Replication {
    async fn log_in(&mut self, who: &Who<'_>, end_point: Option<Vec<u8>>) -> Result<()> {
        let mut out = Vec::new();
        // With a database, such a connection takes ordinary questions, too.
        let parameters: [(&[u8], &[u8]); 4] = [
            (b"user", who.role.as_bytes()),
            (b"database", DATABASE.as_bytes()),
            (b"replication", b"database"),
            (b"application_name", who.name.as_bytes()),
        ];
        write::startup(&mut out, 0, parameters);
        self.write(&out).await?;
        let mut scram: Option<ScramSha256> = None;
        loop {
            let message = self.message_forever().await?;
            let mut answer = Vec::new();
            match message.decode(&self.at)? {
                Backend::Authentication(Authentication::Ok) => {}
                Backend::Authentication(Authentication::Sasl(offered)) => {
                    // Encrypted, it is bound to the certificate, or not done at all.
                    let (mechanism, binding) = match &end_point {
                        Some(hash) => {
                            let binding = ChannelBinding::tls_server_end_point(hash.clone());
                            (SCRAM_SHA_256_PLUS, binding)
                        }
                        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
                    };
                    if !offered.contains(mechanism) {
                        return Err(self.broken(format!("it does not offer {mechanism}")));
                    }
                    let exchange = ScramSha256::new(who.password.as_bytes(), binding);
                    write::sasl_initial_response(&mut answer, mechanism, exchange.message());
                    scram = Some(exchange);
                }
                Backend::Authentication(Authentication::SaslContinue(said)) => {
                    let exchange = scram.as_mut().ok_or_else(|| self.garbled("the log-in"))?;
                    exchange.update(said).map_err(|e| self.broken(e))?;
                    write::sasl_response(&mut answer, exchange.message());
                }
                Backend::Authentication(Authentication::SaslFinal(said)) => {
                    let exchange = scram.as_mut().ok_or_else(|| self.garbled("the log-in"))?;
                    exchange.finish(said).map_err(|e| self.broken(e))?;
                }
                Backend::Authentication(_) => {
                    return Err(self.broken("it asks for a password in a way that is not safe"));
                }
                Backend::ErrorResponse(fields) => return Err(refused(&fields)),
                Backend::ReadyForQuery(_) => return Ok(()),
                _ => {}
            }
            if !answer.is_empty() {
                self.write(&answer).await?;
            }
        }
    }
}
