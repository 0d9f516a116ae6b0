//! A newcomer's call, before it has a certificate.

use crate::{
    connect::{Target, connect},
    rpc::{RpcError, answer, chain, request},
    tls,
};
use bytes::Bytes;
use rustls::pki_types::ServerName;
use std::{sync::Arc, time::Duration};

/// TCP may take this long: joining is no failover, and a newcomer may be far away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A newcomer's call did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StrangerError {
    /// The member answered, with an error.
    #[error("{address} answered: {error}")]
    Answered {
        /// Who was called.
        address: String,
        /// What it said.
        error: RpcError,
    },
    /// It could not be reached, or it is not of the cluster the token is for.
    #[error("cannot call {address}: {why}")]
    Unreachable {
        /// Who was called.
        address: String,
        /// What went wrong.
        why: String,
    },
}

/// Calls whichever member listens at `address` without showing a certificate, after checking that
/// it belongs to the cluster whose authority has this fingerprint. Nothing is sent before that.
pub async fn call_stranger(
    address: (&str, u16),
    expected_ca_fingerprint: &str,
    method: &str,
    body: Bytes,
    timeout: Duration,
) -> Result<Bytes, StrangerError> {
    let shown = format!("{}:{}", address.0, address.1);
    let unreachable = |why: String| StrangerError::Unreachable { address: shown.clone(), why };
    let answered = |error| StrangerError::Answered { address: shown.clone(), error };
    let tls =
        tls::stranger_config(expected_ca_fingerprint).map_err(|e| unreachable(e.to_string()))?;
    // Not checked: a newcomer knows the cluster, not its members.
    let name =
        ServerName::try_from("member.sempre.internal").map_err(|e| unreachable(e.to_string()))?;
    let target = Target { host: address.0.to_owned(), port: address.1, from: None, name };
    let attempt = async {
        let connection =
            connect(&target, Arc::new(tls), CONNECT_TIMEOUT, None).await.map_err(unreachable)?;
        let request = request(method, body).map_err(answered)?;
        let said = |why| unreachable(connection.ended().unwrap_or(why));
        match connection.sender().send_request(request).await {
            Ok(response) => answer(response).await.map_err(said)?.map_err(answered),
            Err(e) => Err(said(chain(&e))),
        }
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(unreachable(format!("no answer within {} ms", timeout.as_millis()))),
    }
}
