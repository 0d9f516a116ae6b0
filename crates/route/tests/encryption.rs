//! TLS to clients of carried sessions, and on to the servers.

mod common;

use common::{Routed, dsn, moves_to, pair, psql, stderr, stdout, table};
use sempre_route::{ALPN, ClientTls, Mode, ProxySettings, ServerTls, Style};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

const SSL: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
const NAME: &str = "localhost";

/// A certificate for clients, and who trusts it.
fn certificate() -> (rustls::ServerConfig, rustls::RootCertStore) {
    let made = rcgen::generate_simple_self_signed(vec![NAME.into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    (config, roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn trusting(roots: rustls::RootCertStore) -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Whose certificates servers here show is not this test's business.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn as_client() -> ServerTls {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    ServerTls::AsClient(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_gets_what_it_asked_for_all_the_way() {
    let pair = pair();
    let (config, _) = certificate();
    let client_tls = ClientTls { config: Arc::new(config), always: false, required: false };
    let settings = ProxySettings {
        client_tls: Some(client_tls),
        server_tls: as_client(),
        ..ProxySettings::default()
    };
    let routed = Routed::start_in(
        Style::Proxy(settings),
        Mode::ReadWrite,
        table(1, Some(pair.old.target())),
    );
    // By turns: a connection that was encrypted is not taken for a client that is not.
    for _ in 0..2 {
        for (sslmode, ssl) in [("require", "t"), ("prefer", "t"), ("disable", "f")] {
            assert_eq!(stdout(&psql(&dsn(routed.address, sslmode), SSL).await), ssl, "{sslmode}");
        }
    }
    // Encrypted sessions are carried as others are.
    let carried = dsn(routed.address, "require");
    let sql = "select pg_sleep(603)";
    let session = tokio::spawn(async move { psql(&carried, sql).await });
    common::until_running(&pair.old, sql).await;
    moves_to(&routed, &pair.new);
    let said = session.await.unwrap();
    assert!(stderr(&said).contains("ERROR"), "the statement is lost: {said:?}");
    assert!(!stderr(&said).contains("connection"), "the session is not: {said:?}");

    // Replication too: a command, and a whole copy with the WAL that comes meanwhile.
    for (sslmode, words) in [("require", "true"), ("require", "database"), ("disable", "true")] {
        let dsn = format!("{} replication={words}", dsn(routed.address, sslmode));
        let identified = stdout(&psql(&dsn, "IDENTIFY_SYSTEM").await);
        assert_eq!(identified.split('|').count(), 4, "{sslmode} {words}: {identified}");
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    for (program, arguments) in [
        ("pg_basebackup", &["-d", &dsn(routed.address, "require"), "-c", "fast", "-D"][..]),
        ("pg_verifybackup", &[]),
    ] {
        let mut command = tokio::process::Command::new(common::bin().join(program));
        let said = command.args(arguments).arg(&copy).output().await.unwrap();
        assert!(said.status.success(), "{said:?}");
    }

    // Not offered: said so.
    routed.change(|table| table.limits.client_tls = false);
    let refused = stderr(&psql(&dsn(routed.address, "require"), SSL).await);
    assert!(refused.contains("server does not support SSL"), "{refused}");
    assert_eq!(stdout(&psql(&dsn(routed.address, "prefer"), SSL).await), "f");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_databases_own_tls_passes_through() {
    let pair = pair();
    let (config, _) = certificate();
    let ours = ClientTls { config: Arc::new(config), always: false, required: false };
    for client_tls in [None, Some(ours)] {
        let settings = ProxySettings { client_tls, ..ProxySettings::default() };
        let mut table = table(1, Some(pair.old.target()));
        table.limits.database_tls = true;
        let routed = Routed::start_in(Style::Proxy(settings), Mode::ReadWrite, table);
        for (sslmode, ssl) in [("require", "t"), ("prefer", "t"), ("disable", "f")] {
            assert_eq!(stdout(&psql(&dsn(routed.address, sslmode), SSL).await), ssl, "{sslmode}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_without_asking_first() {
    let pair = pair();
    let (config, roots) = certificate();
    let client_tls = ClientTls { config: Arc::new(config), always: true, required: true };
    let settings = ProxySettings { client_tls: Some(client_tls), ..ProxySettings::default() };
    let mut table = table(1, Some(pair.old.target()));
    table.limits.client_tls = false;
    let routed = Routed::start_in(Style::Proxy(settings), Mode::ReadWrite, table);
    let mut startup = Vec::new();
    let parameters = [("user", "postgres"), ("database", "postgres")];
    sempre_wire::pg::write::startup(
        &mut startup,
        0,
        parameters.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())),
    );
    for named in [true, false] {
        let mut config = trusting(roots.clone());
        if named {
            config.alpn_protocols = vec![ALPN.to_vec()];
        }
        let tcp = TcpStream::connect(routed.address).await.unwrap();
        let name = NAME.try_into().unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        stream.write_all(&startup).await.unwrap();
        let mut answer = [0];
        match stream.read_exact(&mut answer).await {
            Ok(_) => assert!(named && answer[0] == b'R', "{answer:?}"),
            // As PostgreSQL does: nothing is said to whom may have been led here by a trick.
            Err(_) => assert!(!named),
        }
    }
    let refused = stderr(&psql(&dsn(routed.address, "disable"), SSL).await);
    assert!(refused.contains("FATAL"), "{refused}");
    // Not TLS, though it begins like it.
    let mut tcp = TcpStream::connect(routed.address).await.unwrap();
    tcp.write_all(&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]).await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = tcp.read_to_end(&mut rest).await;
    assert!(routed.stats().malformed >= 1);
}
