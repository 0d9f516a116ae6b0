//! The routing part alone, beside an application.

use crate::{arguments::RouteHow, connect, fail::Fail, logs, member};
use sempre_api::codes;
use sempre_route::{Follower, Mode, RouteError, Router};
use std::net::SocketAddr;

/// Both ports of a routing part.
pub struct Routing {
    read_write: Router,
    read_only: Router,
}

impl Routing {
    /// Begins to lead clients. Call it inside a runtime.
    pub fn start(
        members: Vec<(String, u16)>,
        read_write: SocketAddr,
        read_only: SocketAddr,
    ) -> Result<Self, Fail> {
        let (table, verifier) = Follower::start(members);
        let start = |address, mode| {
            Router::start(vec![address], mode, table.clone(), verifier.clone()).map_err(failed)
        };
        Ok(Self {
            read_write: start(read_write, Mode::ReadWrite)?,
            read_only: start(read_only, Mode::ReadOnly)?,
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
    logs::start(how.log_format);
    connect::block_on_threads(async {
        let routing = Routing::start(members, how.read_write, how.read_only)?;
        tracing::info!(read_write = %how.read_write, read_only = %how.read_only, "routing");
        member::signalled().await;
        tracing::info!("stopping");
        routing.shutdown().await;
        Ok(())
    })
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
