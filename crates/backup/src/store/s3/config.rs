//! Where an S3-compatible store is, and who we are to it.

use crate::{Error, Result};
use object_store::{
    Certificate, ClientOptions,
    aws::{AmazonS3, AmazonS3Builder, Checksum},
};
use serde::Deserialize;
use std::{fmt, time::Duration};

/// A bucket of an S3-compatible store, and a place in it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// Such as `https://s3.example.org:9000`; none: Amazon's own, of the region.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region; many stores take any.
    #[serde(default = "default_region")]
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// In front of every key; empty: the repository has the bucket for itself.
    #[serde(default)]
    pub prefix: String,
    /// Name of the key.
    pub access_key_id: String,
    /// The key. Never shown.
    pub secret_access_key: String,
    /// Of a session, if the key is a temporary one. Never shown.
    #[serde(default)]
    pub session_token: Option<String>,
    /// Whom to trust, in PEM, beside those the machine trusts.
    #[serde(default)]
    pub ca_pem: Option<String>,
    /// Allow an endpoint without encryption. (What is stored is sealed in any case; who may store
    /// is not.)
    #[serde(default)]
    pub allow_http: bool,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// How long a store is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Tries of one operation, the first counted.
    pub tries: u32,
    /// Between the first two; twice as long between each following two.
    pub first_wait: Duration,
    /// For a connection.
    pub connect: Duration,
    /// For one try, all of its bytes included.
    pub timeout: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let first_wait = Duration::from_millis(200);
        let (connect, timeout) = (Duration::from_secs(5), Duration::from_secs(60));
        // In all at most 6 minutes of tries and 6 s between them.
        Self { tries: 6, first_wait, connect, timeout }
    }
}

impl S3Config {
    /// What it is called in messages.
    pub(super) fn name(&self) -> String {
        let prefix = self.prefix.trim_matches('/');
        let place = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        match &self.endpoint {
            Some(endpoint) => format!("s3://{}{place} at {endpoint}", self.bucket),
            None => format!("s3://{}{place}", self.bucket),
        }
    }

    pub(super) fn client(&self, patience: Patience) -> Result<AmazonS3> {
        // Of several providers that are compiled in, TLS must be told which one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let refused = |why: &dyn fmt::Display| {
            Error::Refused(format!("{} cannot be used: {why}", self.name()))
        };
        let is_http = self.endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
        if is_http && !self.allow_http {
            return Err(refused(&"its endpoint is not encrypted (allow_http = true allows it)"));
        }
        let mut options = ClientOptions::new()
            .with_connect_timeout(patience.connect)
            .with_timeout(patience.timeout)
            .with_allow_http(self.allow_http);
        if let Some(pem) = &self.ca_pem {
            let certificates = Certificate::from_pem_bundle(pem.as_bytes());
            for certificate in certificates.map_err(|e| refused(&e))? {
                options = options.with_root_certificate(certificate);
            }
        }
        let mut builder = AmazonS3Builder::new()
            .with_region(&self.region)
            .with_bucket_name(&self.bucket)
            .with_access_key_id(&self.access_key_id)
            .with_secret_access_key(&self.secret_access_key)
            // What arrives is what was sent; buckets with object lock ask for it.
            .with_checksum_algorithm(Checksum::SHA256)
            // It cannot tell a conflict with itself from one with somebody else: we try again.
            .with_retry(object_store::RetryConfig { max_retries: 0, ..Default::default() })
            .with_client_options(options);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(token) = &self.session_token {
            builder = builder.with_token(token);
        }
        builder.build().map_err(|e| refused(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let json = r#"{"bucket": "b", "prefix": "p/", "access_key_id": "me",
            "secret_access_key": "TOPSECRET", "session_token": "TOKEN"}"#;
        let config: S3Config = serde_json::from_str(json).unwrap();
        assert_eq!(config.name(), "s3://b/p");
        let client = config.client(Patience::default()).unwrap();
        let shown = format!("{config:?} {client}");
        assert!(shown.contains("me") && !shown.contains("TOPSECRET") && !shown.contains("TOKEN"));
        let http = S3Config { endpoint: Some("http://127.0.0.1:1".to_owned()), ..config };
        let bad_ca = S3Config { ca_pem: Some("-----BEGIN CERTIFICATE-----".to_owned()), ..http };
        if let Err(error) = bad_ca.client(Patience::default()) {
            assert!(!error.to_string().contains("TOPSECRET"), "{error}");
        }
    }
}
