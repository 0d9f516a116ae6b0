//! The one HTTP request the lab needs: a GET, answered whole.

use anyhow::{Context, Result, bail};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// The longest answer that is read, bytes. A cluster's state is some kB.
const ANSWER_MAX: u64 = 4 << 20;

/// Status code and body of `GET path`.
pub async fn get(address: SocketAddr, path: &str, deadline: Duration) -> Result<(u16, String)> {
    timeout(deadline, exchange(address, path))
        .await
        .with_context(|| format!("http://{address}{path} did not answer within {deadline:?}"))?
        .with_context(|| format!("no answer from http://{address}{path}"))
}

async fn exchange(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: lab\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("half an answer") };
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status line")?;
    Ok((status, body.to_owned()))
}
