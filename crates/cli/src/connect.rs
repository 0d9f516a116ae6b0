//! How commands find the members, and the token that lets them change something.

use crate::fail::Fail;
use rustls::ClientConfig;
use sempre_agent::{
    Config,
    config::{ConfigError, RestTls},
    member_dir::MemberDir,
};
use sempre_api::{Client, ClientError, codes};
use sempre_model::Member;
use sempre_net::{CA_FILE, https_client};
use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

/// The file in the member's folder that holds the REST token.
pub const TOKEN_FILE: &str = "rest.token";
/// Threads of a daemon: enough for routing, few enough that each member's memory stays small.
const THREADS_MAX: usize = 4;
/// How long a daemon that ends waits for what it still does on disks.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(2);

/// What every command knows.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The config file.
    pub config: PathBuf,
    /// Print JSON.
    pub json: bool,
}

impl Scene {
    /// Reads the config file.
    pub fn read_config(&self) -> Result<Config, Fail> {
        Config::read(&self.config).map_err(|error| match error {
            ConfigError::Read { path, source } => Fail::coded(
                codes::CONFIG_FILE,
                format!("cannot read the config file {}", path.display()),
                source.to_string(),
            )
            .next("Name it with --config FILE or SEMPRE_CONFIG; docs/production.md shows one."),
            ConfigError::Invalid { path, what } => Fail::coded(
                codes::CONFIG_FILE,
                format!("the config file {} cannot be used", path.display()),
                what,
            ),
        })
    }

    /// A client of the cluster: this member first, then the others it knows.
    pub fn client(&self) -> Result<Client, Fail> {
        Ok(client_of(&self.read_config()?)?)
    }
}

/// A client of the cluster of this member.
pub fn client_of(config: &Config) -> Result<Client, ClientError> {
    let dir = MemberDir::new(config);
    let own = config.member(0);
    let known = dir.members();
    let others = known.iter().filter(|member| member.name != own.name);
    let addresses: Vec<String> = std::iter::once(&own).chain(others).flat_map(rest).collect();
    let token = std::fs::read_to_string(dir.root().join(TOKEN_FILE)).ok();
    let trust = trust(config, &dir)?;
    if trust.is_none() && token.is_some() && config.rest.tls != RestTls::Off {
        let why = format!("there is no {}", dir.tls().join(CA_FILE).display());
        return Err(ClientError::Untrusted(why));
    }
    let client = Client::new(addresses, token.map(|token| token.trim().to_owned()))?;
    Ok(match trust {
        Some(tls) => client.with_tls(Arc::new(tls)),
        None => client,
    })
}

/// By what commands check whom they talk to; none: they talk in clear, because REST does, or
/// because this user may read neither the cluster's CA nor the token, and nothing secret is sent.
fn trust(config: &Config, dir: &MemberDir) -> Result<Option<ClientConfig>, ClientError> {
    if config.rest.tls == RestTls::Off {
        return Ok(None);
    }
    let ours = std::fs::read_to_string(dir.tls().join(CA_FILE)).ok();
    let others = match &config.rest.ca_file {
        Some(file) => Some(std::fs::read_to_string(file).map_err(|error| {
            ClientError::Untrusted(format!("cannot read `ca_file` {}: {error}", file.display()))
        })?),
        None => None,
    };
    if ours.is_none() && others.is_none() {
        return Ok(None);
    }
    let tls = https_client(ours.as_deref(), others.as_deref());
    tls.map(Some).map_err(|error| ClientError::Untrusted(error.to_string()))
}

fn rest(member: &Member) -> Vec<String> {
    let port = member.ports.rest;
    member.paths.iter().map(|path| authority(&path.host, port)).collect()
}

/// `host:port`, an IPv6 address in brackets.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Runs something short.
pub fn block_on<T>(work: impl Future<Output = Result<T, Fail>>) -> Result<T, Fail> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fail::new("the program does not start", error.to_string(), ""))?;
    runtime.block_on(work)
}

/// Runs a daemon.
pub fn block_on_threads<T>(work: impl Future<Output = Result<T, Fail>>) -> Result<T, Fail> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| Fail::new("the program does not start", error.to_string(), ""))?;
    let done = runtime.block_on(work);
    // A disk that does not answer must not keep the process.
    runtime.shutdown_timeout(SHUTDOWN_WITHIN);
    done
}
