//! Shows databases whose certificate a routed client showed: by one of the same name that the
//! cluster's authority signs, whom they trust (see the encryption between members).

use crate::executor::{Executor, encryption_of};
use sempre_net::{Authority, CertError, common_name};
use sempre_postgres::Encryption;
use sempre_route::Vouching;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long such a certificate is valid. It is needed during a handshake only.
const LIFETIME: Duration = Duration::from_secs(86_400);
/// It is used for so long, as making one takes a good part of a millisecond.
const USED_FOR: Duration = Duration::from_secs(3_600);
/// For so many names they are kept.
const NAMES_MAX: usize = 1_000;

/// See the module.
pub struct Voucher {
    executor: Arc<Executor>,
    /// TLS to databases.
    config: rustls::ClientConfig,
    made: Mutex<HashMap<String, (Instant, Arc<rustls::ClientConfig>)>>,
}

impl Voucher {
    pub fn new(executor: Arc<Executor>, config: rustls::ClientConfig) -> Self {
        Self { executor, config, made: Mutex::default() }
    }

    fn make(&self, name: &str) -> Option<Result<rustls::ClientConfig, CertError>> {
        let record = self.executor.record();
        let cluster = record.cluster.as_ref()?;
        // With a CA of the administrator's, PostgreSQL believes nobody else.
        let believed = record
            .data_members()
            .all(|member| encryption_of(&record, member.own_certificate) == Encryption::Mutual);
        believed.then(|| {
            Authority::from_pem(&cluster.ca_certificate, &cluster.ca_key)?.vouch(
                &self.config,
                name,
                LIFETIME,
            )
        })
    }
}

impl Vouching for Voucher {
    fn name(&self, certificate: &[u8]) -> Option<String> {
        common_name(certificate)
    }

    fn client_config(&self, name: &str) -> Option<Arc<rustls::ClientConfig>> {
        let made = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, config)) = made().get(name)
            && at.elapsed() < USED_FOR
        {
            return Some(config.clone());
        }
        let config = match self.make(name)? {
            Ok(config) => Arc::new(config),
            Err(error) => {
                tracing::warn!(name, %error, "a client's certificate is not shown to the database");
                return None;
            }
        };
        let mut made = made();
        if made.len() >= NAMES_MAX {
            made.clear();
        }
        made.insert(name.to_owned(), (Instant::now(), config.clone()));
        Some(config)
    }
}
