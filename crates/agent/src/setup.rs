//! `init` and `join`: what happens once in a member's life, before its daemon runs.

use crate::{
    Config,
    certificate::certificate_addresses,
    clock,
    member_dir::{MemberDir, Who},
    peers::{JoinAnswer, JoinRequest},
};
use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use sempre_api::{Code, codes};
use sempre_consensus::{
    CallKind, Consensus, ConsensusConfig, RaftConsensus, Transport, TransportError,
};
use sempre_model::{
    Command, NodeId, Policy,
    command::Change,
    record::{Cluster, Secrets},
};
use sempre_net::{
    Authority, Identity, JoinToken, MEMBER_LIFETIME, METHOD_JOIN, call_stranger, create_request,
};
use std::{sync::Arc, time::Duration};

/// How long one address of a token is tried.
const JOIN_WITHIN: Duration = Duration::from_secs(10);

/// Makes the cluster, with this member as its first one. The database is made (or adopted) when
/// the daemon runs.
///
/// Returns the passwords it made, for whoever sets up more (the demo); nobody else shows them.
pub async fn init(config: &Config, cluster: &str, policy: Policy) -> Result<Secrets> {
    let dir = MemberDir::new(config);
    refuse_twice(&dir)?;
    if config.kind == sempre_model::MemberKind::Witness {
        bail!("the first member needs a database; a witness joins later");
    }
    policy.validate()?;
    dir.create()?;
    // Part of host names in certificates, so hexadecimal.
    let id: String = (0..8).map(|_| format!("{:02x}", rand::random::<u8>())).collect();
    let authority = Authority::new(cluster, &id)?;
    let member = config.member(1);
    let addresses = certificate_addresses(&member);
    Identity::issue_for(&authority, &config.name, &addresses, MEMBER_LIFETIME)?.save(&dir.tls())?;
    let consensus =
        RaftConsensus::open(ConsensusConfig::new(dir.record(), 1), Arc::new(Alone)).await?;
    consensus.form().await?;
    let secrets = Secrets { admin: random(24), replication: random(24), rest: random(24) };
    let change = Change::Init {
        cluster: Box::new(Cluster {
            name: cluster.to_owned(),
            id: id.clone(),
            system_identifier: None,
            major_version: None,
            ca_certificate: authority.cert_pem().to_owned(),
            ca_key: authority.key_pem().to_owned(),
            secrets: secrets.clone(),
        }),
        policy: Box::new(policy),
        member: Box::new(member),
    };
    consensus.propose(Command { at_unix_ms: clock::now_unix_ms(), change }).await?;
    consensus.shutdown().await;
    // Last: only now is the member complete.
    dir.set_who(&Who::new(config.name.clone(), 1, id, true))?;
    Ok(secrets)
}

/// Joins a cluster with a token. The database is copied when the daemon runs: from another member, or
/// from this repository (empty: the only one).
pub async fn join(
    config: &Config,
    token: &JoinToken,
    from_backup: Option<String>,
) -> Result<NodeId> {
    let dir = MemberDir::new(config);
    refuse_twice(&dir)?;
    dir.create()?;
    let (key, request) = create_request(&config.name)?;
    let body = serde_json::to_vec(&JoinRequest {
        secret_hash: token.secret_hash(),
        member: config.member(0),
        request,
        from_backup,
    })?;
    let mut tried = Vec::new();
    for (host, port) in token.hosts() {
        let answer = call_stranger(
            (&host, port),
            &token.ca_fingerprint,
            METHOD_JOIN,
            Bytes::from(body.clone()),
            JOIN_WITHIN,
        )
        .await;
        let bytes = match answer {
            Ok(bytes) => bytes,
            Err(sempre_net::StrangerError::Answered {
                error: sempre_net::RpcError::Refused(why),
                ..
            }) => {
                // The member that refuses names the code at the end of its words.
                let code = Code::named_in(&why).unwrap_or(codes::REFUSED);
                let why = why.trim_end_matches(&format!(" ({code})"));
                return Err(code.error(format!("{} cannot join", config.name), why).into());
            }
            Err(e) => {
                tried.push(e.to_string());
                continue;
            }
        };
        let answer: JoinAnswer = serde_json::from_slice(&bytes).context(
            "the answer to join cannot be read; is the other member of another version?",
        )?;
        let identity = Identity::new(&key, &answer.certificate, &answer.ca_certificate)?;
        identity.save(&dir.tls())?;
        dir.set_who(&Who::new(config.name.clone(), answer.node, answer.cluster_id, false))?;
        return Ok(answer.node);
    }
    let what = format!("{} could not join: no address of the token answered", config.name);
    let next = "Check that `sempre run` runs on these members, and that their peer port can be reached from here.";
    let foreign = tried.iter().any(|why| why.contains(sempre_net::FOREIGN_AUTHORITY));
    let error = match foreign {
        true => codes::PEER_REFUSED.error(what, tried.join("\n")),
        false => codes::UNREACHABLE.error(what, tried.join("\n")).next(next),
    };
    Err(error.into())
}

fn refuse_twice(dir: &MemberDir) -> Result<()> {
    let Some(who) = dir.who()? else { return Ok(()) };
    let what = format!("{} holds member {} already", dir.root().display(), who.name);
    let why = format!("it is of cluster {}", who.cluster_id);
    let next = "`sempre run` starts it; or choose another `dir` in the config file.";
    Err(codes::MEMBER_EXISTS.error(what, why).next(next).into())
}

/// A random word of `bytes` bytes.
fn random(bytes: usize) -> String {
    let raw: Vec<u8> = (0..bytes).map(|_| rand::random::<u8>()).collect();
    URL_SAFE_NO_PAD.encode(raw)
}

/// A first member calls nobody.
pub(crate) struct Alone;

#[async_trait::async_trait]
impl Transport for Alone {
    async fn call(
        &self,
        to: NodeId,
        _: CallKind,
        _: Vec<u8>,
        _: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        Err(TransportError::Unreachable { to, why: "there is only one member".into() })
    }
}
