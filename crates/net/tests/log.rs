//! What an operator reads of strangers, and that they cannot make it long.

mod common;

use bytes::Bytes;
use common::{Cluster, PATIENCE, id, intrude, until};
use sempre_net::{Authority, Identity, MEMBER_LIFETIME, call_stranger, create_request};
use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// This thread's log, for as long as the guard lives. Tests run on one thread each.
    fn capture(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone());
        tracing::subscriber::set_default(subscriber.finish())
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_refusal_says_who_and_why() {
    let log = Log::default();
    let _guard = log.capture();
    let cluster = Cluster::new();
    let (b, gone) = (cluster.member("b"), cluster.member("gone"));
    let _b = b.listen(&[0]).await;

    cluster.remove("gone");
    let _ = gone.peers(&[&b]).call_on(b.name(), 0, "who", Bytes::new(), PATIENCE).await;
    let said = log.text();
    assert!(said.contains("gone is not a member of this cluster"), "{said}");
    assert!(said.contains(&gone.address(0).ip().to_string()), "{said}");

    // The same cluster id, and all names as they should be, but another authority.
    let forger = Cluster::new().authority;
    let (key, request) = create_request(b.name()).unwrap();
    let forged = forger.sign(&request, b.name(), MEMBER_LIFETIME).unwrap();
    let outcome = intrude(b.address(0), &key, &forged).await;
    assert!(outcome.as_ref().is_err_and(|e| e.to_string().contains("alert")), "{outcome:?}");
    assert!(log.text().contains("invalid peer certificate: BadSignature"), "{}", log.text());
    let forger = Authority::new("other", "other").unwrap();
    let foreign = forger.sign(&request, b.name(), MEMBER_LIFETIME).unwrap();
    let outcome = intrude(b.address(0), &key, &foreign).await;
    assert!(outcome.as_ref().is_err_and(|e| e.to_string().contains("alert")), "{outcome:?}");
    assert!(log.text().contains("invalid peer certificate: UnknownIssuer"), "{}", log.text());
    // The authority's own certificate is no member's: its key signs, and does nothing else.
    let authority = &cluster.authority;
    let outcome = intrude(b.address(0), authority.key_pem(), authority.cert_pem()).await;
    assert!(outcome.is_err(), "{outcome:?}");
    // This one is as good as any: the server has nothing against it.
    let good = cluster.authority.sign(&request, b.name(), MEMBER_LIFETIME).unwrap();
    assert!(intrude(b.address(0), &key, &good).await.is_ok_and(|bytes| bytes > 0));

    // Lines are limited, so the others get a server of their own.
    let b = cluster.member("c");
    let _c = b.listen(&[0]).await;
    let mut expired = cluster.member("expired");
    let identity = Identity::issue(&cluster.authority, &id("expired"), Duration::ZERO).unwrap();
    let past = identity.expires_at() + Duration::from_secs(1);
    expired.identity = Arc::new(identity);
    until("the certificate to expire", || SystemTime::now() > past).await;
    let _ = expired.peers(&[&b]).call_on(b.name(), 0, "who", Bytes::new(), PATIENCE).await;
    let from_expired = expired.address(0).ip().to_string();
    until("the expired one to be logged", || log.text().contains(&from_expired)).await;
    assert!(log.text().contains("certificate expired"), "{}", log.text());

    let (host, port) = (b.address(0).ip().to_string(), b.member.ports.peer);
    let fingerprint = cluster.authority.fingerprint();
    let _ = call_stranger((&host, port), fingerprint, "who", Bytes::new(), PATIENCE).await;
    assert!(log.text().contains("`who` needs a member's certificate"), "{}", log.text());
}

#[tokio::test]
async fn a_flood_is_a_few_lines() {
    let log = Log::default();
    let _guard = log.capture();
    let cluster = Cluster::new();
    let b = cluster.member("b");
    let _b = b.listen(&[0]).await;
    for _ in 0..200 {
        let mut stream = TcpStream::connect(b.address(0)).await.unwrap();
        let _ = stream.write_all(b"no TLS at all").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let lines = log.text().lines().count();
    assert!((1..=20).contains(&lines), "{lines} lines:\n{}", log.text());
}
