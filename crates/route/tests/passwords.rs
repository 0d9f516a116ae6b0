//! Log-ins by password and TLS: asked once, shown to every server.

mod common;

use common::*;
use sempre_route::{ClientTls, Credentials, Mode, ProxySettings, Style};
use std::sync::Arc;

/// The verifiers of a server, read from it.
struct FromServer(tokio_postgres::Client);

#[async_trait::async_trait]
impl Credentials for FromServer {
    async fn verifier(&self, user: &str) -> Result<Option<String>, String> {
        let sql = "select rolpassword from pg_authid where rolname = $1";
        let row = self.0.query_opt(sql, &[&user]).await.map_err(|error| error.to_string())?;
        Ok(row.and_then(|row| row.get(0)))
    }
}

/// A primary and its standby, with users of every kind.
fn servers() -> (Server, Server) {
    let primary = Server::new("first");
    let users = "set password_encryption = 'scram-sha-256'; create role by_scram login password 'secret'; \
                 set password_encryption = 'md5'; create role by_md5 login password 'secret'; \
                 set password_encryption = 'scram-sha-256'; create role by_clear login password 'secret'";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { direct(&primary).await.batch_execute(users).await.unwrap() });
    let hba = "host all postgres 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n\
               host all by_md5 127.0.0.1/32 md5\nhost all by_clear 127.0.0.1/32 password\n\
               host all all 127.0.0.1/32 scram-sha-256\n";
    primary.write("pg_hba.conf", hba);
    runtime.block_on(async {
        direct(&primary).await.batch_execute("select pg_reload_conf()").await.unwrap();
    });
    let standby = Server::standby("second", &primary);
    (primary, standby)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_asked_for_once_and_logs_in_everywhere() {
    let (primary, standby) = tokio::task::spawn_blocking(servers).await.unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let client_tls = ClientTls { config: Arc::new(config), always: true, required: false };
    let settings = ProxySettings {
        client_tls: Some(client_tls),
        credentials: Some(Arc::new(FromServer(direct(&primary).await))),
        ..ProxySettings::default()
    };
    let routed =
        Routed::start_in(Style::Proxy(settings), Mode::ReadWrite, table(1, Some(primary.target())));
    let dsn = |user: &str, password: &str, sslmode: &str| {
        dsn(routed.address, sslmode).replace("user=postgres", &format!("user={user}"))
            + &format!(" password={password}")
    };
    let mut sessions = Vec::new();
    for user in ["by_scram", "by_md5", "by_clear"] {
        for sslmode in ["disable", "require"] {
            let out = psql(&dsn(user, "secret", sslmode), "select current_user").await;
            assert_eq!(stdout(&out), user, "{sslmode}");
            let wrong = stderr(&psql(&dsn(user, "wrong", sslmode), "select 1").await);
            let said = format!("FATAL:  password authentication failed for user \"{user}\"");
            assert!(wrong.contains(&said), "{wrong}");
        }
        sessions.push((user, connect(&dsn(user, "secret", "disable")).await.unwrap().0));
    }
    // A password bound to the certificate that was shown: nobody can stand between.
    for (required, password, said) in [
        ("require", "secret", "by_scram"),
        ("disable", "secret", "by_scram"),
        ("require", "wrong", ""),
    ] {
        let bound = dsn("by_scram", password, "require") + " channel_binding=" + required;
        let out = psql(&bound, "select current_user").await;
        match said {
            "" => assert!(stderr(&out).contains("password authentication failed"), "{out:?}"),
            said => assert_eq!(stdout(&out), said, "{required}"),
        }
    }
    // No such user: the same words.
    for sslmode in ["disable", "require"] {
        let wrong = stderr(&psql(&dsn("nobody", "secret", sslmode), "select 1").await);
        assert!(wrong.contains("password authentication failed for user \"nobody\""), "{wrong}");
    }
    // PostgreSQL's own certificate is not shown; ours is.
    let tls = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(stdout(&psql(&dsn("by_scram", "secret", "require"), tls).await), "f");
    // Another server asks the same; nobody is asked again.
    direct(&standby).await.batch_execute("select pg_promote()").await.unwrap();
    until_answers(&direct(&standby).await, "select pg_is_in_recovery()", "f").await;
    moves_to(&routed, &standby);
    for (user, session) in &sessions {
        assert_eq!(server_of(session).await, "second");
        assert_eq!(simple(session, "select current_user").await, *user);
    }
}
