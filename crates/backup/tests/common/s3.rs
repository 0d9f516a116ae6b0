//! A real S3 server in this process, on a folder; a test may let it fail.

use anyhow::{Error, Result};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use rustls::pki_types::PrivateKeyDer;
use s3s::{
    Body, HttpError,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use sempre_backup::{Patience, S3Config};
use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::Mutex as AsyncMutex, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

pub const HASTE: Patience = Patience {
    tries: 4,
    first_wait: Duration::from_millis(5),
    connect: Duration::from_secs(2),
    timeout: Duration::from_secs(10),
};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// 503, and nothing is done.
    Busy,
    /// 503, but it was done.
    DoneBusy,
    /// It is done, and never answered.
    DoneSilent,
    /// Another code, and nothing is done.
    Code(u16),
}

#[derive(Default)]
struct State {
    faults: Mutex<VecDeque<Fault>>,
    /// All of the next requests, when no others are left.
    always: Mutex<Option<Fault>>,
    requests: AtomicUsize,
    /// Where a put replaces what is there, whatever the request says.
    replaces: Option<PathBuf>,
    /// s3s-fs looks whether an object is there and then writes it, so that of two conditional puts
    /// at once both may succeed. Real stores decide for one: so does this.
    puts: AsyncMutex<()>,
}

pub struct Server {
    state: Arc<State>,
    endpoint: String,
    ca_pem: Option<String>,
    accepting: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    pub async fn start(root: &Path) -> Result<Self> {
        Self::start_with(root, None, false).await
    }

    /// One that does not know `If-None-Match`.
    pub async fn start_careless(root: &Path) -> Result<Self> {
        Self::start_with(root, Some(root.to_owned()), false).await
    }

    /// One with a certificate of its own.
    pub async fn start_tls(root: &Path) -> Result<Self> {
        Self::start_with(root, None, true).await
    }

    async fn start_with(root: &Path, replaces: Option<PathBuf>, tls: bool) -> Result<Self> {
        fs::create_dir_all(root.join("bucket"))?;
        let files = FileSystem::new(root).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single("me", "TOPSECRET"));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let scheme = if tls { "https" } else { "http" };
        let endpoint = format!("{scheme}://{}", listener.local_addr()?);
        let (acceptor, ca_pem) = if tls { Some(certificate()?) } else { None }.unzip();
        let state = Arc::new(State { replaces, ..State::default() });
        let accepting = tokio::spawn(accept(listener, acceptor, service, state.clone()));
        Ok(Self { state, endpoint, ca_pem, accepting })
    }

    pub fn config(&self) -> S3Config {
        S3Config {
            endpoint: Some(self.endpoint.clone()),
            region: "us-east-1".to_owned(),
            bucket: "bucket".to_owned(),
            prefix: "here/".to_owned(),
            access_key_id: "me".to_owned(),
            secret_access_key: "TOPSECRET".to_owned(),
            session_token: None,
            ca_pem: self.ca_pem.clone(),
            allow_http: self.ca_pem.is_none(),
        }
    }

    /// What becomes of the next requests.
    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.faults.lock().unwrap().extend(faults);
    }

    /// Those that were not reached do not come.
    pub fn no_faults(&self) {
        self.state.faults.lock().unwrap().clear();
    }

    /// What becomes of all others.
    pub fn always(&self, fault: Option<Fault>) {
        *self.state.always.lock().unwrap() = fault;
    }

    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }
}

fn certificate() -> Result<(TlsAcceptor, String)> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(Error::msg)?;
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok((TlsAcceptor::from(Arc::new(config)), made.cert.pem()))
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    service: S3Service,
    state: Arc<State>,
) {
    while let Ok((socket, _)) = listener.accept().await {
        // Or each answer waits for the receipt of its first part.
        let _ = socket.set_nodelay(true);
        let (service, state, tls) = (service.clone(), state.clone(), tls.clone());
        let answer = service_fn(move |request| {
            let (service, state) = (service.clone(), state.clone());
            async move { answer(request, &service, &state).await }
        });
        tokio::spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            let _ = match tls {
                None => server.serve_connection(TokioIo::new(socket), answer).await,
                Some(tls) => match tls.accept(socket).await {
                    Ok(socket) => server.serve_connection(TokioIo::new(socket), answer).await,
                    Err(_) => return,
                },
            };
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    service: &S3Service,
    state: &State,
) -> Result<Response<Body>, HttpError> {
    state.requests.fetch_add(1, Ordering::SeqCst);
    let next = state.faults.lock().unwrap().pop_front();
    let fault = next.or(*state.always.lock().unwrap()).unwrap_or(Fault::None);
    let failed = |code: u16| {
        let mut response = Response::new(Body::from("<Error><Code>Slow</Code></Error>".to_owned()));
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        Ok(response)
    };
    match fault {
        Fault::Busy => return failed(503),
        Fault::Code(code) => return failed(code),
        _ => {}
    }
    let is_new = request.headers().contains_key("if-none-match");
    if let Some(root) = state.replaces.as_ref().filter(|_| is_new) {
        let _ = fs::remove_file(root.join(request.uri().path().trim_start_matches('/')));
    }
    let done = {
        let _one = if is_new { Some(state.puts.lock().await) } else { None };
        hyper::service::Service::call(service, request).await
    };
    match fault {
        Fault::DoneBusy => failed(503),
        Fault::DoneSilent => std::future::pending().await,
        _ => done,
    }
}
