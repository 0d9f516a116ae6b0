//! The last words to a client, said so that they arrive.

use crate::{CutReason, Mode};
use sempre_wire::pg::{ErrorResponse, Framer, sqlstate};
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time,
};

/// How long a client may take to accept its last message.
const SAY_TIMEOUT: Duration = Duration::from_millis(500);
/// How long we wait for the client to close its side. Closing ours with bytes of the client
/// unread would reset the connection, and a reset can overtake the last message.
const LINGER: Duration = Duration::from_secs(1);
/// What a client may still send meanwhile, bytes.
const LINGER_BYTES: usize = 1 << 20;

/// Says it, ends our side and waits a moment for the client to end its own.
pub(crate) async fn say(client: &mut (impl AsyncRead + AsyncWrite + Unpin), last_words: &[u8]) {
    let said = time::timeout(SAY_TIMEOUT, async {
        client.write_all(last_words).await?;
        client.shutdown().await
    });
    if !matches!(said.await, Ok(Ok(()))) {
        return;
    }
    let drain = async {
        let mut waste = [0; 2048];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match client.read(&mut waste).await {
                Ok(0) | Err(_) => return,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
    };
    // Out of patience is fine: the message is on its way.
    let _ = time::timeout(LINGER, drain).await;
}

/// Gives the client `kept` first (the rest of what the server said), then, if that ends between
/// two messages, the error.
pub(crate) async fn say_after(
    client: &mut TcpStream,
    kept: &[u8],
    mut framer: Framer,
    error: &ErrorResponse,
) {
    framer.feed(kept);
    let mut last_words = kept.to_vec();
    if framer.at_boundary() {
        last_words.extend_from_slice(&error.encode());
    }
    say(client, &last_words).await;
}

/// The error a cut session ends with.
pub(crate) fn cut_error(reason: &CutReason) -> ErrorResponse {
    let again = "Connect again: the same address leads to the right server.";
    let (message, detail) = match reason {
        CutReason::Failover { generation } => (
            "terminating connection because the primary has changed",
            format!(
                "Generation {generation} of the cluster began; this session's server is no longer the primary."
            ),
        ),
        CutReason::Stopped => (
            "terminating connection because the primary stopped",
            "The database of this session is down; it is restarted, or another one takes over."
                .into(),
        ),
        CutReason::Lost => (
            "terminating connection because the standby is gone",
            "The database of this read-only session is down or being rebuilt.".into(),
        ),
        CutReason::Promoted => (
            "terminating connection because the standby became the primary",
            "Read-only sessions are led to standbys.".into(),
        ),
        CutReason::Elsewhere => (
            "terminating connection because another server is the primary",
            "The switchover that it was made for did not happen.".into(),
        ),
        CutReason::PathLost => (
            "terminating connection because the network path to the server is lost",
            "The server itself is alive; another path leads to it. The outcome of a commit that was not answered is unknown.".into(),
        ),
        CutReason::Shutdown => (
            "terminating connection because client routing stops",
            "The database itself is not affected.".into(),
        ),
    };
    ErrorResponse::fatal(sqlstate::ADMIN_SHUTDOWN, message, detail, again)
}

/// The error of a session whose server closed the connection without a word.
pub(crate) fn server_gone() -> ErrorResponse {
    ErrorResponse::fatal(
        sqlstate::CRASH_SHUTDOWN,
        "terminating connection because the server closed it unexpectedly",
        "The database, its machine or the network to it failed. The outcome of a commit that was not answered is unknown.",
        "Connect again: the connection is held until a server is there.",
    )
}

/// The error of a client that was held in vain.
pub(crate) fn refused(mode: Mode, why: &str, limit: &str) -> ErrorResponse {
    let what = match mode {
        Mode::ReadWrite => "no primary is available",
        Mode::ReadOnly => "no standby is available",
    };
    let why = if why.is_empty() { "there is no news of the cluster yet" } else { why };
    ErrorResponse::fatal(
        sqlstate::CANNOT_CONNECT_NOW,
        what,
        format!("{why}; {limit}"),
        "Try again later; `sempre status` shows the state of the cluster and the reason.",
    )
}
