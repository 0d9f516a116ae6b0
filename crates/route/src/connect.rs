//! Reaching a database by whichever of its addresses answers first.

use crate::{Target, socket};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{collections::BTreeMap, io, time::Duration};
use tokio::{net::TcpStream, time};

/// How long an address may stay silent before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(150);
/// How long they may all stay silent before each is tried once more. The kernel repeats a lost SYN
/// only after a second, and the next one two seconds later; a new connection need not wait for that.
const AGAIN: Duration = Duration::from_millis(300);
/// How often an address is tried.
const TRIES: usize = 3;
/// How long all addresses together may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses of one member that are tried; more are a mistake.
const HOSTS_MAX: usize = 8;

/// Connects to `host` (an address or a name).
pub(crate) async fn to_host(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    socket::tune(&stream);
    Ok(stream)
}

/// Connects to the first of `hosts` that lets us, preferring the earlier ones; says which.
pub(crate) async fn to_any(hosts: &[String], port: u16) -> Result<(TcpStream, &str), String> {
    let attempt = async {
        let hosts = &hosts[..hosts.len().min(HOSTS_MAX)];
        let mut tries = (0..TRIES).flat_map(|_| hosts).enumerate();
        let mut running = FuturesUnordered::new();
        let mut failures = BTreeMap::new();
        loop {
            // One that refused said so: only silence is tried again.
            let next = tries.by_ref().find(|(_, host)| !failures.contains_key(host.as_str()));
            let mut patience = STAGGER;
            if let Some((number, host)) = next {
                running.push(async move { (host.as_str(), to_host(host, port).await) });
                if number + 1 >= hosts.len() {
                    patience = AGAIN;
                }
            }
            let Ok(finished) = time::timeout(patience, running.next()).await else { continue };
            match finished {
                Some((host, Ok(stream))) => return Ok((stream, host)),
                Some((host, Err(error))) => {
                    failures.insert(host, format!("{host}: {error}"));
                }
                None if next.is_none() => {
                    return Err(failures.into_values().collect::<Vec<_>>().join("; "));
                }
                None => {}
            }
        }
    };
    match time::timeout(CONNECT_TIMEOUT, attempt).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "no answer from {} within {} s",
            hosts.join(", "),
            CONNECT_TIMEOUT.as_secs()
        )),
    }
}

/// Connects to a member's database.
pub(crate) async fn to_target(target: &Target) -> Result<(TcpStream, &str), String> {
    to_any(&target.hosts, target.port)
        .await
        .map_err(|why| format!("cannot connect to {} (port {}): {why}", target.member, target.port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_address_that_answers_wins() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Nobody listens on the first two; the second may not even exist.
        let hosts = ["127.0.0.9", "no.such.host.invalid", "127.0.0.1"].map(String::from);
        assert_eq!(to_any(&hosts, port).await.unwrap().1, "127.0.0.1");
        let error = to_any(&hosts[..1], port).await.unwrap_err();
        assert!(error.contains("127.0.0.9"), "{error}");
        assert!(to_any(&[], port).await.is_err());
    }
}
