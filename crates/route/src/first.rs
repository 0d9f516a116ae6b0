//! Reads what a client says first, and not a byte more.

use sempre_wire::pg::{FirstError, FirstHead, FirstPacket};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time,
};

/// How long a client may take to say what it wants. PostgreSQL gives 60 s for all of the log-in.
const FIRST_PACKET_TIMEOUT: Duration = Duration::from_secs(15);

/// The first bytes of a client, whole and as they came.
pub(crate) struct First {
    pub bytes: Vec<u8>,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ssl,
    GssEnc,
    DirectTls,
    Cancel,
    Startup,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFirstError {
    #[error("the client closed the connection")]
    Closed(#[from] io::Error),
    #[error("the client said nothing for {} s", FIRST_PACKET_TIMEOUT.as_secs())]
    Silent,
    #[error(transparent)]
    Malformed(#[from] FirstError),
}

/// Reads one packet.
pub(crate) async fn read(client: &mut (impl AsyncRead + Unpin)) -> Result<First, ReadFirstError> {
    let read = async {
        let mut head = [0; 4];
        client.read_exact(&mut head).await?;
        let length = match FirstHead::read(head)? {
            FirstHead::Packet(length) => length,
            FirstHead::DirectTls => {
                return Ok(First { bytes: head.to_vec(), kind: Kind::DirectTls });
            }
        };
        let mut bytes = vec![0; length];
        bytes[..4].copy_from_slice(&head);
        client.read_exact(&mut bytes[4..]).await?;
        let kind = match FirstPacket::parse(&bytes)? {
            FirstPacket::SslRequest => Kind::Ssl,
            FirstPacket::GssEncRequest => Kind::GssEnc,
            FirstPacket::CancelRequest { .. } => Kind::Cancel,
            FirstPacket::Startup(_) => Kind::Startup,
        };
        Ok(First { bytes, kind })
    };
    time::timeout(FIRST_PACKET_TIMEOUT, read).await.unwrap_or(Err(ReadFirstError::Silent))
}
