//! The certificate REST shows: the member's, or one of the administrator's, as it is now.

use crate::config::{Rest, RestTls};
use anyhow::{Context, Result};
use rustls::ServerConfig;
use sempre_api::{Clear, Transport};
use sempre_net::{Identity, https_server};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// How often the administrator's files are looked at: whoever renews them tells nobody.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How REST speaks, by the config file.
pub struct RestTransport {
    identity: Arc<Identity>,
    files: Option<(PathBuf, PathBuf)>,
    publish: Option<watch::Sender<Arc<ServerConfig>>>,
}

impl RestTransport {
    /// Reads the certificate that is to be shown.
    pub fn new(rest: &Rest, identity: Arc<Identity>) -> Result<(Self, Transport)> {
        let files = rest.cert_file.clone().zip(rest.key_file.clone());
        let mut this = Self { identity, files, publish: None };
        let clear = match rest.tls {
            RestTls::Off => return Ok((this, Transport::clear())),
            RestTls::On => Clear::Reading,
            RestTls::Required => Clear::Nothing,
        };
        let (publish, tls) = watch::channel(Arc::new(this.config()?));
        this.publish = Some(publish);
        Ok((this, Transport { tls: Some(tls), clear }))
    }

    fn config(&self) -> Result<ServerConfig> {
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let own = match &self.files {
            // The member's own is always the one in use.
            None => None,
            Some((chain, key)) => Some((read(chain)?, read(key)?)),
        };
        let own = own.as_ref().map(|(chain, key)| (chain.as_str(), key.as_str()));
        https_server(self.identity.clone(), own).context("`[rest]` in the config file")
    }

    /// Takes over files that the administrator has renewed.
    pub async fn keep(self) {
        let (Some(publish), Some((chain, key))) = (&self.publish, &self.files) else { return };
        let changed = || [chain, key].map(|path| modified(path));
        let mut known = changed();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = changed();
            if now == known {
                continue;
            }
            match self.config() {
                Ok(config) => {
                    tracing::info!(file = %chain.display(), "REST has a new certificate");
                    publish.send_replace(Arc::new(config));
                    known = now;
                }
                // Half written, or wrong: the old one stays.
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "the new certificate of REST cannot be used yet"
                ),
            }
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}
