//! REST by TLS, on the port that also speaks in clear.

mod common;

use common::{FakeAgent, TOKEN, id, snapshot};
use sempre_api::{Action, Clear, Client, ClientError, Transport, serve_with};
use sempre_net::{Authority, Identity, MEMBER_LIFETIME, https_client, https_server};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn authority(name: &str) -> Authority {
    Authority::new("tests", name).unwrap()
}

fn identity(authority: &Authority, lifetime: Duration) -> Arc<Identity> {
    let addresses = ["127.0.0.1".to_owned()];
    Arc::new(Identity::issue_for(authority, &id("m1"), &addresses, lifetime).unwrap())
}

fn client(url: &str, ca: Option<&str>, others: Option<&str>) -> Client {
    let tls = https_client(ca, others).unwrap();
    Client::new([url], Some(TOKEN.into())).unwrap().with_tls(Arc::new(tls))
}

async fn answer(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    let _cut = stream.write_all(bytes).await;
    let _cut = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn why(error: ClientError) -> String {
    error.to_string()
}

#[tokio::test]
async fn one_port_speaks_both_and_shows_the_certificate_in_use() {
    let ours = authority("ours");
    let identity = identity(&ours, MEMBER_LIFETIME);
    let tls = Arc::new(https_server(identity.clone(), None).unwrap());
    let transport = Transport { tls: Some(tls), clear: Clear::Reading };
    let agent = FakeAgent::new(snapshot("m1"));
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let server = serve_with(listen, agent.clone(), transport).unwrap();
    let address = server.addresses()[0];
    let (bare, https) = (address.to_string(), format!("https://{address}"));

    // Checks go on in clear; commands are encrypted.
    let check = "GET /primary HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(answer(address, check.as_bytes()).await.starts_with("HTTP/1.1 200"));
    for url in [&bare, &https] {
        let client = client(url, Some(ours.cert_pem()), None);
        assert_eq!(client.status().await.unwrap().answered_by, id("m1"));
        client.act(&Action::Pause).await.unwrap();
    }
    assert_eq!(agent.asked().len(), 2);

    // Another authority, none at all, or an expired certificate: nothing is sent.
    let foreign = client(&bare, Some(authority("theirs").cert_pem()), None);
    assert!(why(foreign.act(&Action::Pause).await.unwrap_err()).contains("certificate"));
    let unknowing = Client::new([&https], Some(TOKEN.into())).unwrap();
    assert!(why(unknowing.status().await.unwrap_err()).contains("no CA is known"));
    let short = Identity::issue_for(&ours, &id("m1"), &[], Duration::ZERO).unwrap();
    let folder = std::env::temp_dir().join(format!("sempre-api-{}", std::process::id()));
    short.save(&folder).unwrap();
    let pem = std::fs::read_to_string(folder.join("member.pem")).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    identity.swap(&pem, &pem).unwrap();
    let good = client(&bare, Some(ours.cert_pem()), None);
    let ends = std::time::Instant::now() + Duration::from_secs(20);
    let error = loop {
        // It is valid for the rest of its last second.
        match good.status().await {
            Err(error) => break error,
            Ok(_) => assert!(std::time::Instant::now() < ends, "an expired one is accepted"),
        }
    };
    assert!(why(error).contains("xpired"));
    assert!(agent.asked().is_empty(), "nothing more was asked");

    // Renewed, it is shown at the next connection.
    let (key, request) = sempre_net::create_request(&id("m1")).unwrap();
    let renewed = ours.sign(&request, &id("m1"), MEMBER_LIFETIME).unwrap();
    identity.swap(&key, &renewed).unwrap();
    good.status().await.unwrap();

    // Garbage that begins like TLS.
    let mut garbage = vec![0x16; 16384];
    garbage[1..3].copy_from_slice(&[3, 1]);
    assert!(!answer(address, &garbage).await.contains("HTTP"));
    good.status().await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_the_administrator_must_name_the_address() {
    let company = authority("company");
    let file = pem_file(&identity(&company, MEMBER_LIFETIME));
    let ours = identity(&authority("ours"), MEMBER_LIFETIME);
    let tls = Arc::new(https_server(ours.clone(), Some((file.path(), file.path()))).unwrap());
    let transport = Transport { tls: Some(tls), clear: Clear::Nothing };
    let listen = vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.2:0".parse().unwrap()];
    let server = serve_with(listen, FakeAgent::new(snapshot("m1")), transport).unwrap();
    let url = |index: usize| server.addresses()[index].to_string();

    let ca = ours.ca_pem().to_owned();
    let knowing = client(&url(0), Some(&ca), Some(company.cert_pem()));
    assert_eq!(knowing.status().await.unwrap().answered_by, id("m1"));
    let elsewhere = client(&url(1), Some(&ca), Some(company.cert_pem()));
    assert!(why(elsewhere.status().await.unwrap_err()).contains("not valid for name"));
    let ours_only = client(&url(0), Some(&ca), None);
    assert!(why(ours_only.status().await.unwrap_err()).contains("certificate"));
    for bad in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(https_client(None, Some(bad)).is_err());
        std::fs::write(&file, bad).unwrap();
        assert!(https_server(ours.clone(), Some((file.path(), file.path()))).is_err());
    }
}

/// A file with key and certificate.
fn pem_file(identity: &Identity) -> tempfile::NamedTempFile {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved");
    identity.save(&saved).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(saved.join("member.pem"), &file).unwrap();
    file
}

#[tokio::test]
async fn without_tls_a_client_that_begins_with_it_is_told() {
    let agent = FakeAgent::new(snapshot("m1"));
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let server = serve_with(listen, agent, Transport::clear()).unwrap();
    let url = server.addresses()[0].to_string();
    let ca = authority("ours");
    let error = client(&url, Some(ca.cert_pem()), None).status().await.unwrap_err();
    assert!(why(error).contains("does not speak TLS"));
    let clear = client(&format!("http://{url}"), Some(ca.cert_pem()), None);
    clear.status().await.unwrap();
}
