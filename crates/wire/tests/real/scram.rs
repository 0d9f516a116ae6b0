//! SCRAM and md5 with real peers.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use sempre_wire::pg::scram::{self, Client, ClientBinding, ClientKey, Secret, Server, Verifier};
use sempre_wire::pg::{
    Authentication, Backend, ErrorResponse, SaslInitialResponse, Side, TransactionStatus, frontend,
    md5, sqlstate, write,
};

use super::postgres::{Postgres, psql};
use super::shell::{Shell, describe};

/// What TLS is spoken with, and the binding to its certificate.
struct Tls {
    config: Arc<rustls::ServerConfig>,
    end_point: Vec<u8>,
}

impl Tls {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let certificate = made.cert.der().clone();
        let end_point = scram::end_point(&certificate).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.unwrap())
        .unwrap();
        Self { config: Arc::new(config), end_point }
    }
}

/// A server that knows one user, `ann`, asks for SCRAM and lets in. Gives the client's key.
fn serve(
    socket: TcpStream,
    verifier: &Verifier,
    nonce: u8,
    tls: Option<&Tls>,
) -> Option<ClientKey> {
    let end_point = tls.map(|tls| &tls.end_point[..]);
    let mut shell = Shell::new(socket, Side::Frontend);
    let parameters = shell.hear_startup(tls.map(|tls| &tls.config));
    let user = &parameters.iter().find(|(name, _)| name == "user").unwrap().1;
    let verifier = match user.as_str() {
        "ann" => verifier.clone(),
        other => Verifier::mock(other.as_bytes(), b"secret"),
    };
    shell.say(|out| write::authentication_sasl(out, Server::mechanisms(end_point)));
    let (_, body) = shell.hear()?;
    let initial = SaslInitialResponse::decode(&body).unwrap();
    let (server, answer) = Server::first(
        verifier,
        initial.mechanism,
        initial.response.unwrap(),
        [nonce; scram::NONCE_BYTES],
        end_point,
    )
    .unwrap();
    shell.say(|out| write::authentication_sasl_continue(out, &answer));
    let (_, body) = shell.hear()?;
    match server.last(&body) {
        Ok(accepted) => {
            shell.say(|out| {
                write::authentication_sasl_final(out, &accepted.server_final);
                write::authentication_ok(out);
                write::parameter_status(out, b"server_version", b"15.0");
                write::parameter_status(out, b"client_encoding", b"UTF8");
                write::backend_key_data(out, 1, &[1, 2, 3, 4]);
                write::ready_for_query(out, TransactionStatus::Idle);
            });
            // One answer to whatever is asked, then the client says good-bye.
            while let Some((tag, _)) = shell.hear() {
                match tag {
                    b'Q' => shell.say(|out| {
                        write::row_description(out, &["answer"]);
                        write::data_row(out, [Some(&b"42"[..])].into_iter());
                        write::command_complete(out, "SELECT 1");
                        write::ready_for_query(out, TransactionStatus::Idle);
                    }),
                    b'X' => break,
                    other => panic!("{}", char::from(other)),
                }
            }
            Some(accepted.client_key)
        }
        Err(scram::ScramError::Refused) => {
            let message = format!("password authentication failed for user \"{user}\"");
            let error = ErrorResponse::fatal(sqlstate::INVALID_PASSWORD, message, "", "");
            shell.say(|out| out.extend(error.encode()));
            None
        }
        Err(error @ scram::ScramError::Binding(_)) => {
            let code = sqlstate::INVALID_AUTHORIZATION;
            let error = ErrorResponse::fatal(code, error.to_string(), "", "");
            shell.say(|out| out.extend(error.encode()));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Runs `client` against [`serve`].
fn with_server<T>(verifier: &Verifier, client: impl FnOnce(u16) -> T) -> (T, Option<ClientKey>) {
    with_tls_server(verifier, None, client)
}

/// The same; TLS is spoken with `tls`.
fn with_tls_server<T>(
    verifier: &Verifier,
    tls: Option<&Tls>,
    client: impl FnOnce(u16) -> T,
) -> (T, Option<ClientKey>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        let served = scope.spawn(|| serve(listener.accept().unwrap().0, verifier, 9, tls));
        let got = client(port);
        (got, served.join().unwrap())
    })
}

#[test]
fn libpq_logs_in_to_our_server_end() {
    // A password that SASLprep changes: a full-width digit becomes a plain one.
    let verifier = Verifier::of_password("pass\u{ff11}".as_bytes(), b"0123456789abcdef", 4096);
    let ask = |user: &'static str, password: &'static str| {
        move |port| psql(port, user, password).args(["-c", "select 42"]).output().unwrap()
    };
    let (out, key) = with_server(&verifier, ask("ann", "pass1"));
    assert!(out.status.success(), "{out:?}");
    assert_eq!(out.stdout, b"42\n");
    assert!(verifier.fits(&key.unwrap()));
    for user in ["ann", "nobody"] {
        let (out, key) = with_server(&verifier, ask(user, "wrong"));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let want = format!("password authentication failed for user \"{user}\"");
        assert!(!out.status.success() && said.contains(&want), "{said}");
        assert_eq!(key, None);
    }
}

#[test]
fn libpq_binds_the_exchange_to_our_certificate() {
    let verifier = Verifier::of_password(b"secret", b"0123456789abcdef", 4096);
    let ask = |port| {
        psql(port, "ann", "secret")
            // Certificates of whoever runs this are none of our business.
            .env("HOME", "/nonexistent")
            .env("PGSSLMODE", "require")
            .env("PGCHANNELBINDING", "require")
            .args(["-c", "select 42"])
            .output()
            .unwrap()
    };
    let tls = Tls::new();
    let (out, key) = with_tls_server(&verifier, Some(&tls), ask);
    assert!(out.status.success(), "{out:?}");
    assert!(verifier.fits(&key.unwrap()));

    // A certificate in between: libpq binds to what it sees, and we notice.
    let other = Tls { end_point: Tls::new().end_point, config: tls.config };
    let (out, key) = with_tls_server(&verifier, Some(&other), ask);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("channel binding check failed"), "{said}");
    assert_eq!(key, None);
}

#[test]
fn tokio_postgres_logs_in_to_our_server_end() {
    let verifier = Verifier::of_password(b"secret", b"0123456789abcdef", 4096);
    let (answer, key) = with_server(&verifier, |port| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (client, connection) = tokio_postgres::Config::new()
                .host("127.0.0.1")
                .port(port)
                .user("ann")
                .password("secret")
                .connect(tokio_postgres::NoTls)
                .await
                .unwrap();
            let connection = tokio::spawn(connection);
            let rows = client.simple_query("select 42").await.unwrap();
            drop(client);
            connection.await.unwrap().unwrap();
            rows.len()
        })
    });
    // The columns, the row, the end.
    assert!(answer >= 2, "{answer}");
    assert!(verifier.fits(&key.unwrap()));
}

/// Logs in to a real server; the error, if it does not let us in.
fn log_in(port: u16, user: &str, secret: Secret, hash: Option<&str>) -> Result<Client, String> {
    let mut shell = Shell::connect(port, &[("user", user), ("database", "postgres")]);
    let mut client = Client::new([5; scram::NONCE_BYTES], ClientBinding::None);
    loop {
        let (tag, body) = shell.hear().expect("the server answers");
        match Backend::decode(tag, &body).unwrap() {
            Backend::Authentication(Authentication::Sasl(mechanisms)) => {
                assert!(mechanisms.contains(client.mechanism()));
                shell.say(|out| {
                    write::sasl_initial_response(out, client.mechanism(), client.first());
                });
            }
            Backend::Authentication(Authentication::SaslContinue(data)) => {
                let answer = client.answer(data, secret).unwrap();
                shell.say(|out| write::sasl_response(out, &answer));
            }
            Backend::Authentication(Authentication::SaslFinal(data)) => {
                client.finish(data).unwrap();
            }
            Backend::Authentication(Authentication::Md5Password { salt }) => {
                let answer = md5::answer(hash.expect("md5 is asked"), salt);
                let mut out = Vec::new();
                write::password(&mut out, answer.as_bytes());
                assert!(md5::check(hash.unwrap(), salt, frontend::password(&out[5..]).unwrap()));
                shell.say(|to| to.extend(out));
            }
            Backend::Authentication(Authentication::Ok) => break,
            Backend::ErrorResponse(_) => return Err(describe(&body)),
            other => panic!("{other:?}"),
        }
    }
    shell.until_ready();
    shell.say(|out| write::query(out, b"select 1"));
    assert_eq!(shell.until_ready(), "TDCZ");
    shell.say(write::terminate);
    Ok(client)
}

#[test]
fn our_client_end_logs_in_to_postgresql() {
    let postgres = Postgres::start(
        "host all postgres 127.0.0.1/32 trust\nhost all bob 127.0.0.1/32 md5\n\
         host all all 127.0.0.1/32 scram-sha-256\n",
    );
    let kept = |user: &str| {
        postgres.psql(&format!("select rolpassword from pg_authid where rolname = '{user}'"))
    };
    postgres.psql("create role ann login password 'p\u{e4}ss\u{ff11}'");
    let verifier: Verifier = kept("ann").parse().unwrap();
    // With the password, in the form in which it was not given.
    let password = Secret::Password("p\u{e4}ss1".as_bytes());
    let client = log_in(postgres.port, "ann", password, None).unwrap();
    let (key, server) = client.keys().unwrap();
    assert!(verifier.fits(key) && verifier.server_key() == server);

    // With nothing but the key that a server end of ours got from a client that knew it.
    let (out, key) = with_server(&verifier, |port| {
        psql(port, "ann", "p\u{e4}ss1").args(["-c", "select 42"]).output().unwrap()
    });
    assert!(out.status.success(), "{out:?}");
    let key = key.unwrap();
    let secret = Secret::Keys { client: &key, server: Some(verifier.server_key()) };
    log_in(postgres.port, "ann", secret, None).unwrap();
    log_in(postgres.port, "ann", Secret::Keys { client: &key, server: None }, None).unwrap();

    // A wrong password, an outdated key, nobody.
    for user in ["ann", "nobody"] {
        let error = log_in(postgres.port, user, Secret::Password(b"wrong"), None).unwrap_err();
        let want = format!("FATAL 28P01 password authentication failed for user \"{user}\"");
        assert_eq!(error, want);
    }
    postgres.psql("alter role ann password 'other'");
    assert!(!kept("ann").parse::<Verifier>().unwrap().fits(&key));
    let outdated = Secret::Keys { client: &key, server: None };
    assert!(log_in(postgres.port, "ann", outdated, None).unwrap_err().contains("28P01"));

    // What we make of a password, PostgreSQL takes as a verifier.
    let made = Verifier::of_password("n\u{e9}w".as_bytes(), b"fedcba9876543210", 5000);
    postgres.psql(&format!("create role cid login password '{made}'"));
    log_in(postgres.port, "cid", Secret::Password("n\u{e9}w".as_bytes()), None).unwrap();

    // md5: the stored hash is enough.
    postgres.psql("set password_encryption = md5; create role bob login password 'hush'");
    let hash = kept("bob");
    assert_eq!(hash, md5::stored(b"bob", b"hush"));
    log_in(postgres.port, "bob", Secret::Password(b""), Some(&hash)).unwrap();
    let wrong = md5::stored(b"bob", b"loud");
    assert!(log_in(postgres.port, "bob", Secret::Password(b""), Some(&wrong)).is_err());
}
