//! A small cluster on loopback addresses: member `i` of a test is `127.0.1.N` and `127.0.2.N`.
#![allow(dead_code, reason = "each test file uses its part")]

use async_trait::async_trait;
use bytes::Bytes;
use sempre_model::{Member, MemberId, MemberKind, Path, Tags, member::Ports};
use sempre_net::{
    Authority, Caller, Handler, Identity, IsMember, MEMBER_LIFETIME, PeerServer, Peers, RpcError,
    ServerError,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Long enough for any machine; nothing waits for it unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(10);

static NEXT_HOST: AtomicU8 = AtomicU8::new(1);
static NEXT_PORT: AtomicUsize = AtomicUsize::new(0);

pub fn id(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

/// Waits until `holds`.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited too long for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A port that is free on all these addresses, below the range the kernel gives out by itself.
pub fn free_port(hosts: &[IpAddr]) -> u16 {
    for _ in 0..5000 {
        let turn = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + ((turn + std::process::id() as usize) % 10_000) as u16;
        if hosts.iter().all(|host| TcpListener::bind((*host, port)).is_ok()) {
            return port;
        }
    }
    panic!("no free port");
}

/// Says what it is asked, by method.
#[derive(Default)]
pub struct Answers {
    pub calls: AtomicUsize,
    pub finished: AtomicUsize,
    pub go_on: Notify,
}

#[async_trait]
impl Handler for Answers {
    async fn handle(&self, from: Caller, method: &str, body: Bytes) -> Result<Bytes, RpcError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match method {
            "echo" | "join" => Ok(body),
            "who" => Ok(match from {
                Caller::Member(name) => name.to_string().into(),
                Caller::Stranger(_) => "stranger".into(),
            }),
            "wait" => {
                self.go_on.notified().await;
                self.finished.fetch_add(1, Ordering::SeqCst);
                Ok(Bytes::new())
            }
            "huge" => Ok(vec![0; sempre_net::BODY_MAX + 1].into()),
            "panic" => panic!("on purpose"),
            other => Err(RpcError::UnknownMethod(other.to_owned())),
        }
    }
}

/// The members and their authority.
pub struct Cluster {
    pub authority: Authority,
    pub names: Arc<Mutex<BTreeSet<MemberId>>>,
}

impl Cluster {
    pub fn new() -> Self {
        let authority = Authority::new("test", "3f2a9c0d1e").unwrap();
        Self { authority, names: Arc::default() }
    }

    /// A member with two addresses, not yet listening.
    pub fn member(&self, name: &str) -> Node {
        let host = NEXT_HOST.fetch_add(1, Ordering::Relaxed);
        let hosts: Vec<IpAddr> = [1, 2].map(|net| IpAddr::from([127, 0, net, host])).into();
        let name = id(name);
        self.names.lock().unwrap().insert(name.clone());
        let member = Member {
            name: name.clone(),
            node: u64::from(host),
            kind: MemberKind::Data,
            paths: hosts.iter().map(|h| Path { host: h.to_string() }).collect(),
            ports: Ports { peer: free_port(&hosts), ..Ports::default() },
            zone: None,
            tags: Tags::default(),
            own_certificate: false,
        };
        let identity = Identity::issue(&self.authority, &name, MEMBER_LIFETIME).unwrap();
        let identity = Arc::new(identity);
        let names = self.names.clone();
        let is_member: IsMember = Arc::new(move |name| names.lock().unwrap().contains(name));
        Node { member, identity, is_member, answers: Arc::default() }
    }

    pub fn remove(&self, name: &str) {
        self.names.lock().unwrap().remove(&id(name));
    }
}

pub struct Node {
    pub member: Member,
    pub identity: Arc<Identity>,
    pub is_member: IsMember,
    pub answers: Arc<Answers>,
}

impl Node {
    pub fn name(&self) -> &MemberId {
        &self.member.name
    }

    pub fn address(&self, path: usize) -> SocketAddr {
        SocketAddr::new(self.member.paths[path].host.parse().unwrap(), self.member.ports.peer)
    }

    /// Listens on these paths.
    pub async fn listen(&self, paths: &[usize]) -> PeerServer {
        self.try_listen(paths.iter().map(|p| self.address(*p)).collect()).await.unwrap()
    }

    pub async fn try_listen(&self, addresses: Vec<SocketAddr>) -> Result<PeerServer, ServerError> {
        let (identity, is_member) = (self.identity.clone(), self.is_member.clone());
        PeerServer::start(addresses, identity, is_member, self.answers.clone()).await
    }

    /// Its view of these members.
    pub fn peers(&self, members: &[&Node]) -> Peers {
        let (name, paths) = (self.name().clone(), self.member.paths.clone());
        let peers = Peers::new(name, paths, self.identity.clone()).unwrap();
        peers.set_members(members.iter().map(|node| &node.member));
        peers
    }
}

/// Somebody who believes any server, and shows this certificate: what the server makes of it.
pub async fn intrude(address: SocketAddr, key_pem: &str, cert_pem: &str) -> std::io::Result<usize> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
    use tokio::io::AsyncReadExt;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from_pem_slice(cert_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believer(provider)))
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await?;
    let name = ServerName::try_from("whoever").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    // In TLS 1.3 the client is done before the server has judged its certificate.
    let mut stream = connector.connect(name, stream).await?;
    stream.read(&mut [0; 1024]).await
}

#[derive(Debug)]
struct Believer(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Believer {
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
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
