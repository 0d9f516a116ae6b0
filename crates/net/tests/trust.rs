//! Who is let in, and whom we believe.

mod common;

use bytes::Bytes;
use common::{Cluster, PATIENCE, id, until};
use sempre_net::{
    Authority, CallError, Identity, IdentityError, MEMBER_LIFETIME, Peers, RpcError, StrangerError,
    call_stranger, create_request, fingerprint_of_pem,
};
use std::{
    os::unix::fs::PermissionsExt,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[tokio::test]
async fn a_stranger_may_join_and_nothing_else() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    let _a = a.listen(&[0, 1]).await;
    let host = a.address(1).ip().to_string();
    let address = (host.as_str(), a.member.ports.peer);
    let fingerprint = cluster.authority.fingerprint();

    let ask = async |method: &str, body: Bytes| {
        call_stranger(address, fingerprint, method, body, PATIENCE).await
    };
    assert_eq!(ask("join", "secret".into()).await.unwrap(), "secret");
    let calls = a.answers.calls.load(Ordering::SeqCst);
    for method in ["echo", "who", "wait", "join/x", "Join"] {
        let error = ask(method, Bytes::new()).await.unwrap_err();
        assert!(
            matches!(&error, StrangerError::Answered { error: RpcError::Refused(_), .. }),
            "{method}: {error}"
        );
    }
    let error = ask("join", vec![0; 100_000].into()).await.unwrap_err();
    assert!(
        matches!(&error, StrangerError::Answered { error: RpcError::TooLarge(_), .. }),
        "{error}"
    );
    assert_eq!(a.answers.calls.load(Ordering::SeqCst), calls, "the handler was not asked");

    let other = Authority::new("other", "other").unwrap();
    let wrong = call_stranger(address, other.fingerprint(), "join", "secret".into(), PATIENCE);
    let error = text(wrong.await.unwrap_err());
    assert!(error.contains("another cluster"), "{error}");
    assert_eq!(a.answers.calls.load(Ordering::SeqCst), calls, "and the secret was not sent");
}

#[tokio::test]
async fn a_foreign_certificate_is_refused_both_ways() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (a, mallory) = (ours.member("a"), theirs.member("mallory"));
    ours.names.lock().unwrap().insert(id("mallory"));
    let _a = a.listen(&[0]).await;
    let _mallory = mallory.listen(&[0]).await;
    // Each finds the other's certificate wrong; what a server makes of one who believes everybody
    // is in `log.rs`.
    let error = mallory.peers(&[&a]).call(a.name(), "who", Bytes::new(), PATIENCE).await;
    assert!(matches!(error, Err(CallError::Unreachable { .. })));
    let error = a.peers(&[&mallory]).call(mallory.name(), "who", Bytes::new(), PATIENCE).await;
    let error = text(error.unwrap_err());
    assert!(error.contains("invalid peer certificate"), "{error}");
    assert_eq!(a.answers.calls.load(Ordering::SeqCst), 0);
    assert_eq!(mallory.answers.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_self_made_certificate_with_our_authority_on_top_is_refused() {
    let ours = Cluster::new();
    let forger = Authority::new("test", ours.authority.cluster_id()).unwrap();
    let (key, request) = create_request(&id("a")).unwrap();
    let forged = forger.sign(&request, &id("a"), MEMBER_LIFETIME).unwrap();
    let error = Identity::new(&key, &forged, ours.authority.cert_pem()).unwrap_err();
    assert!(matches!(error, IdentityError::Unusable { .. }), "{error}");
}

#[tokio::test]
async fn a_member_must_be_the_one_that_was_meant() {
    let cluster = Cluster::new();
    let (a, b, mut c) = (cluster.member("a"), cluster.member("b"), cluster.member("c"));
    let _b = b.listen(&[0, 1]).await;
    // c is believed to be where b is.
    c.member.paths = b.member.paths.clone();
    c.member.ports = b.member.ports;
    let error = a.peers(&[&c]).call(c.name(), "who", Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(text(&error).contains("not valid for name"), "{error}");
    assert_eq!(b.answers.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_removed_member_is_refused_at_once() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    let _b = b.listen(&[0, 1]).await;
    let peers = a.peers(&[&b]);
    peers.call(b.name(), "who", Bytes::new(), PATIENCE).await.unwrap();
    cluster.remove("a");
    // On the connection it still has, and on a new one.
    for peers in [peers, a.peers(&[&b])] {
        let error = peers.call(b.name(), "who", Bytes::new(), PATIENCE).await.unwrap_err();
        assert!(matches!(error.answered(), Some(RpcError::Refused(_))), "{error}");
    }
    assert_eq!(b.answers.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_until_it_is_renewed() {
    let cluster = Cluster::new();
    let (mut a, b) = (cluster.member("a"), cluster.member("b"));
    let _b = b.listen(&[0, 1]).await;
    let brief = Identity::issue(&cluster.authority, a.name(), Duration::from_secs(2)).unwrap();
    a.identity = Arc::new(brief);
    let peers = a.peers(&[&b]);
    peers.call(b.name(), "who", Bytes::new(), PATIENCE).await.unwrap();
    assert!(a.identity.due_for_renewal(SystemTime::now()));

    let expires = a.identity.expires_at() + Duration::from_secs(1);
    until("the certificate to expire", || SystemTime::now() > expires).await;
    // The connection that was opened while it was valid, and a new one.
    let error = peers.call(b.name(), "who", Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(text(&error).contains("expired"), "{error}");
    let error = a.peers(&[&b]).call(b.name(), "who", Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    assert!(text(&error).contains("CertificateExpired"), "{error}");

    // Renewed under way: the same `Peers` goes on.
    let (key, request) = create_request(a.name()).unwrap();
    let renewed = cluster.authority.sign(&request, a.name(), MEMBER_LIFETIME).unwrap();
    a.identity.swap(&key, &renewed).unwrap();
    assert_eq!(peers.call(b.name(), "who", Bytes::new(), PATIENCE).await.unwrap(), "a");
    assert!(!a.identity.due_for_renewal(SystemTime::now()));
}

#[tokio::test]
async fn both_sides_renew_while_calls_go_on() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    let _b = b.listen(&[0, 1]).await;
    let peers = a.peers(&[&b]);
    for _ in 0..5 {
        for node in [&a, &b] {
            let (key, request) = create_request(node.name()).unwrap();
            let renewed = cluster.authority.sign(&request, node.name(), MEMBER_LIFETIME).unwrap();
            node.identity.swap(&key, &renewed).unwrap();
            assert_eq!(node.identity.cert_pem().trim(), renewed.trim());
            let fresh: Peers = a.peers(&[&b]);
            for peers in [&peers, &fresh] {
                assert_eq!(peers.call(b.name(), "who", Bytes::new(), PATIENCE).await.unwrap(), "a");
            }
        }
    }
    // Not with somebody else's certificate, nor with another key's.
    let (key, request) = create_request(a.name()).unwrap();
    let others = cluster.authority.sign(&request, b.name(), MEMBER_LIFETIME).unwrap();
    assert!(matches!(a.identity.swap(&key, &others), Err(IdentityError::Other { .. })));
    let (other_key, _) = create_request(a.name()).unwrap();
    let mine = cluster.authority.sign(&request, a.name(), MEMBER_LIFETIME).unwrap();
    assert!(matches!(a.identity.swap(&other_key, &mine), Err(IdentityError::Unusable { .. })));
    assert_eq!(peers.call(b.name(), "who", Bytes::new(), PATIENCE).await.unwrap(), "a");
}

#[test]
fn an_identity_is_kept_in_private_files() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("tls");
    let authority = Authority::new("Größe \"x\"", "c1").unwrap();
    let identity = Identity::issue(&authority, &id("a"), MEMBER_LIFETIME).unwrap();
    identity.save(&folder).unwrap();
    identity.save(&folder).unwrap();
    for file in std::fs::read_dir(&folder).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
    let back = Identity::load(&folder).unwrap();
    assert_eq!(back.member(), &id("a"));
    assert_eq!(back.cluster_id(), "c1");
    assert_eq!(back.cert_pem(), identity.cert_pem());
    assert_eq!(back.expires_at(), identity.expires_at());
    assert_eq!(fingerprint_of_pem(back.ca_pem()).unwrap(), authority.fingerprint());

    // A torn or missing file is an error that names it or what is wrong.
    let file = folder.join("member.pem");
    let whole = std::fs::read_to_string(&file).unwrap();
    for cut in [0, 10, whole.len() / 3, whole.len() - 40] {
        std::fs::write(&file, &whole[..cut]).unwrap();
        let error = text(Identity::load(&folder).unwrap_err());
        assert!(error.contains("member's"), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(text(Identity::load(&folder).unwrap_err()).contains("member.pem"));
}

#[test]
fn an_authority_reads_back_and_checks_itself() {
    let authority = Authority::new("test", "c1").unwrap();
    let back = Authority::from_pem(authority.cert_pem(), authority.key_pem()).unwrap();
    assert_eq!(back.fingerprint(), authority.fingerprint());
    assert_eq!(back.cluster_id(), "c1");
    let other = Authority::new("test", "c1").unwrap();
    assert!(Authority::from_pem(authority.cert_pem(), other.key_pem()).is_err());
    assert!(Authority::from_pem("", "").is_err());
    for bad in ["", "A", "a b", "-a", "a-", "a.b", &"a".repeat(64)] {
        assert!(Authority::new("test", bad).is_err(), "{bad}");
    }
    for bad in ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----"]
    {
        assert!(authority.sign(bad, &id("a"), MEMBER_LIFETIME).is_err());
    }
    // The key is all that is taken from a request: this one asks to be b.
    let (key, request) = create_request(&id("b")).unwrap();
    let signed = back.sign(&request, &id("a"), MEMBER_LIFETIME).unwrap();
    let identity = Identity::new(&key, &signed, authority.cert_pem()).unwrap();
    assert_eq!(identity.member(), &id("a"));
    // Never longer than the authority itself; absurd ones are refused.
    let century = Duration::from_secs(100 * 365 * 86_400);
    assert!(back.sign(&request, &id("a"), century).is_ok());
    assert!(back.sign(&request, &id("a"), Duration::MAX).is_err());
}

#[test]
fn renewal_is_due_in_the_last_third() {
    let authority = Authority::new("test", "c1").unwrap();
    let identity = Identity::issue(&authority, &id("a"), MEMBER_LIFETIME).unwrap();
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    assert!(!identity.due_for_renewal(now));
    assert!(!identity.due_for_renewal(now + 59 * day));
    assert!(identity.due_for_renewal(now + 61 * day));
    assert!(identity.due_for_renewal(now + 1000 * day));
}
