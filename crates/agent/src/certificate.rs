//! Keeps the member's certificate: renewed in time, and made out to the addresses it has.
//!
//! One certificate serves all: calls of members, the database, REST. PostgreSQL uses the very
//! files, and reads them again at a reload.

use crate::{
    looper::Event,
    member_dir::MemberDir,
    peers::{RENEW, RenewRequest},
};
use anyhow::{Context, Result};
use sempre_consensus::Consensus;
use sempre_model::Member;
use sempre_net::{Authority, Identity, MEMBER_LIFETIME, Peers, create_request};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::mpsc;

/// How often the certificate's age is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(3_600);
/// How soon a renewal that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// How long another member may take to sign.
const SIGN_WITHIN: Duration = Duration::from_secs(5);

/// Where this machine's own programs reach the member.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The addresses a member's certificate is made out to.
pub fn certificate_addresses(member: &Member) -> Vec<String> {
    let paths = member.paths.iter().map(|path| path.host.clone());
    let mut list: Vec<_> = paths.chain(LOOPBACK.map(str::to_owned)).collect();
    list.sort();
    list.dedup();
    list
}

/// Renews the certificate.
pub struct Renewal {
    /// What is renewed.
    pub identity: Arc<Identity>,
    /// Where it is kept.
    pub dir: MemberDir,
    /// Who may sign.
    pub peers: Arc<Peers>,
    /// Where the authority's key is.
    pub consensus: Arc<dyn Consensus>,
    /// The addresses it is to have.
    pub addresses: Vec<String>,
}

impl Renewal {
    /// Renews in the last third of the certificate's life, or when the addresses have changed,
    /// and has the database read it again.
    pub async fn keep(self, events: mpsc::Sender<Event>) {
        loop {
            let due = self.identity.due_for_renewal(SystemTime::now());
            let mut pause = CHECK_EVERY;
            if due || !self.identity.covers(&self.addresses) {
                match self.renew().await {
                    // The loop is gone when it cannot be told.
                    Ok(()) => drop(events.send(Event::Rewrite).await),
                    Err(error) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "the certificate could not be renewed yet"
                        );
                        pause = RETRY_AFTER;
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn renew(&self) -> Result<()> {
        let me = self.identity.member();
        let (key, request) = create_request(me)?;
        let record = self.consensus.record().borrow().clone();
        let certificate = match &record.cluster {
            // Every member holds the authority's key, so it can help itself.
            Some(cluster) => Authority::from_pem(&cluster.ca_certificate, &cluster.ca_key)?
                .sign_for(&request, me, &self.addresses, MEMBER_LIFETIME)?,
            None => {
                let other = record.members.keys().find(|m| *m != me).context("no other member")?;
                let body = serde_json::to_vec(&RenewRequest { request })?;
                let bytes = self.peers.call(other, RENEW, body.into(), SIGN_WITHIN).await?;
                serde_json::from_slice(&bytes)?
            }
        };
        self.identity.swap(&key, &certificate)?;
        self.identity.save(&self.dir.tls())?;
        tracing::info!(addresses = self.addresses.join(", "), "certificate renewed");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sempre_model::{MemberId, MemberKind, Path, Tags, member::Ports};

    #[test]
    fn a_certificate_names_every_path_and_the_loopback() {
        let member = Member {
            name: MemberId::new("a").unwrap(),
            node: 1,
            kind: MemberKind::Data,
            paths: ["10.0.0.1", "127.0.0.1", "db1"].map(|h| Path { host: h.into() }).into(),
            ports: Ports::default(),
            zone: None,
            tags: Tags::default(),
            own_certificate: false,
        };
        let addresses = certificate_addresses(&member);
        assert_eq!(addresses, ["10.0.0.1", "127.0.0.1", "::1", "db1", "localhost"]);
        let authority = Authority::new("x", "0123").unwrap();
        let with = |list: &[String]| {
            Identity::issue_for(&authority, &member.name, list, MEMBER_LIFETIME).unwrap()
        };
        assert!(with(&addresses).covers(&addresses));
        assert!(!with(&[]).covers(&addresses));
        // What cannot be in a certificate is left out, and not asked for again and again.
        let odd = ["not a name".to_owned()];
        assert!(with(&odd).covers(&odd));
    }
}
