//! The certificate REST shows: the member's, or one of the administrator's.

use crate::config::{Rest, RestTls};
use anyhow::{Context, Result};
use sempre_api::{Clear, Transport};
use sempre_net::{Identity, https_server};
use std::sync::Arc;

/// How REST speaks, by the config file. An error: the certificate cannot be used.
pub fn transport(rest: &Rest, identity: Arc<Identity>) -> Result<Transport> {
    let clear = match rest.tls {
        RestTls::Off => return Ok(Transport::clear()),
        RestTls::On => Clear::Reading,
        RestTls::Required => Clear::Nothing,
    };
    let files = rest.cert_file.as_deref().zip(rest.key_file.as_deref());
    let config = https_server(identity, files).context("`[rest]` in the config file")?;
    Ok(Transport { tls: Some(Arc::new(config)), clear })
}
