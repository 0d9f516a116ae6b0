//! The routing part alone, beside an application.

use crate::{
    arguments::RouteHow,
    connect,
    fail::Fail,
    logs, member,
    route_style::{self, Sessions},
};
use rustls::ClientConfig;
use sempre_agent::data_plane::DataPlane;
use sempre_api::codes;
use sempre_net::https_client_by;
use sempre_route::{Follower, Mode, RouteError, Router};
use std::{net::SocketAddr, path::Path, sync::Arc};

/// Both ports of a routing part.
pub struct Routing {
    read_write: Router,
    read_only: Router,
    _threads: DataPlane,
}

impl Routing {
    /// Begins to lead clients. Call it inside a runtime, which keeps the table; clients have
    /// threads of their own.
    pub fn start(
        members: Vec<(String, u16)>,
        read_write: SocketAddr,
        read_only: SocketAddr,
        tls: Option<Arc<ClientConfig>>,
        sessions: Sessions,
    ) -> Result<Self, Fail> {
        let (table, verifier) = Follower::start(members, tls);
        let style = sessions.style(&table);
        let threads = DataPlane::start()
            .map_err(|error| Fail::new("routing does not start", format!("{error:#}"), ""))?;
        let start = |address, mode| {
            let (style, verifier, table) = (style.clone(), verifier.clone(), table.clone());
            threads
                .within(|| Router::start_in(style, vec![address], mode, table, verifier))
                .map_err(failed)
        };
        Ok(Self {
            read_write: start(read_write, Mode::ReadWrite)?,
            read_only: start(read_only, Mode::ReadOnly)?,
            _threads: threads,
        })
    }

    /// Says goodbye to the clients.
    pub async fn shutdown(self) {
        tokio::join!(self.read_write.shutdown(), self.read_only.shutdown());
    }
}

fn failed(error: RouteError) -> Fail {
    match &error {
        RouteError::Listen { address, source }
            if source.kind() == std::io::ErrorKind::AddrInUse =>
        {
            Fail::coded(codes::PORT_IN_USE, format!("{address} is in use"), source.to_string())
        }
        _ => Fail::new("routing does not start", error.to_string(), ""),
    }
}

/// `sempre route run`.
pub fn run(how: &RouteHow) -> Result<(), Fail> {
    let members = how.members.iter().map(|text| split(text)).collect::<Result<_, _>>()?;
    let tls = how.ca.as_deref().map(trust).transpose()?;
    let sessions = route_style::sessions(how)?;
    logs::start(how.log_format);
    if (how.pool_mode.is_some() || how.pool_size.is_some()) && how.auth_user.is_none() {
        tracing::warn!(
            "without --auth-user nobody here knows the users' verifiers: a client that logs in with a \
             SCRAM or md5 password keeps its server connection, and nothing of that is pooled"
        );
    }
    connect::block_on_threads(async {
        let routing = Routing::start(members, how.read_write, how.read_only, tls, sessions)?;
        tracing::info!(read_write = %how.read_write, read_only = %how.read_only, "routing");
        member::signalled().await;
        tracing::info!("stopping");
        routing.shutdown().await;
        Ok(())
    })
}

/// By what members' REST is checked.
fn trust(file: &Path) -> Result<Arc<ClientConfig>, Fail> {
    let what = || format!("--ca {} cannot be used", file.display());
    let next = "Name a copy of `tls/ca.pem` from a member's folder, or the `[rest] ca_file` of the members.";
    let text = std::fs::read_to_string(file)
        .map_err(|error| Fail::usage(what(), error.to_string(), next))?;
    let tls =
        https_client_by(&text).map_err(|error| Fail::usage(what(), error.to_string(), next))?;
    Ok(Arc::new(tls))
}

fn split(text: &str) -> Result<(String, u16), Fail> {
    let bad = || {
        Fail::usage(
            format!("`{text}` in --members cannot be used"),
            "it is not HOST:PORT",
            "Name the members' REST addresses, such as 10.0.0.1:8008.",
        )
    };
    let (host, port) = text.trim().rsplit_once(':').ok_or_else(bad)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port: u16 = port.parse().map_err(|_| bad())?;
    if host.is_empty() || port == 0 { Err(bad()) } else { Ok((host.to_owned(), port)) }
}
