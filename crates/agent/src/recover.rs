//! `sempre recover`: re-forms the cluster by hand from this member alone, when the majority is
//! gone for good.

use crate::{
    Config, clock,
    member_dir::{MemberDir, Who},
    setup::Alone,
};
use anyhow::{Context, Result, bail};
use sempre_consensus::{Consensus, ConsensusConfig, RaftConsensus};
use sempre_model::{
    Command, Generation, MemberId, Record,
    command::Change,
    record::{Cause, Phase},
};
use std::{sync::Arc, time::Duration};

/// What would be kept, and what may be lost: shown before anything is done.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// The record as this member knows it.
    pub record: Record,
    /// Members that would be left out; they join again.
    pub dropped: Vec<MemberId>,
    /// What may be lost, in words.
    pub warnings: Vec<String>,
}

/// What re-forming from this member would mean. Reads only; the daemon must not run.
pub fn outlook(config: &Config) -> Result<Outlook> {
    let dir = MemberDir::new(config);
    let who = who(&dir)?;
    let summary = sempre_consensus::inspect(&dir.record())?;
    let record = summary.record;
    let dropped = record.members.keys().filter(|m| **m != who.name).cloned().collect();
    let mut warnings = vec![
        "changes of the record that this member has not heard of are lost".to_owned(),
        "the members left out must never run with their old state again: remove their folders, and let them join anew".to_owned(),
    ];
    if record.last_serving() != Some(&who.name) {
        let last = record.last_serving().map_or("nobody".to_owned(), |m| m.to_string());
        warnings.push(format!(
            "{last} was the last primary, as far as is known here: commits that it acknowledged and {} does not have are lost",
            who.name
        ));
    }
    Ok(Outlook { record, dropped, warnings })
}

/// Does it. The daemon must not run; start it afterwards, and join the others anew.
pub async fn recover(config: &Config) -> Result<Generation> {
    let dir = MemberDir::new(config);
    let mut who = who(&dir)?;
    let before = sempre_consensus::inspect(&dir.record())?.record;
    let node = before.next_node();
    sempre_consensus::reform(&dir.record(), node)?;
    who.node = node;
    dir.set_who(&who)?;
    let consensus =
        RaftConsensus::open(ConsensusConfig::new(dir.record(), node), Arc::new(Alone)).await?;
    wait_for_leader(&consensus).await?;
    let propose = async |change: Change| {
        consensus.propose(Command { at_unix_ms: clock::now_unix_ms(), change }).await
    };
    let mut me = before.member(&who.name).cloned().context("this member is not in the record")?;
    me.node = node;
    propose(Change::PutMember { member: Box::new(me), token_hash: None }).await?;
    for name in before.members.keys().filter(|m| **m != who.name) {
        propose(Change::RemoveMember { name: name.clone(), force: true }).await?;
    }
    if before.paused {
        propose(Change::SetPaused(false)).await?;
    }
    let mut generation = before.generation;
    if before.phase != Phase::Forming {
        // A new generation, with this member as the one to promote: whoever served before is
        // refused from here on.
        let record = propose(Change::BeginFailover {
            expect: before.generation,
            cause: Cause::Recover,
            target: Some(who.name.clone()),
            allow_data_loss: true,
            served_until_unix_ms: clock::now_unix_ms(),
            evidence: vec![format!("re-formed by hand from {}", who.name)],
        })
        .await?;
        generation = record.generation;
    }
    consensus.shutdown().await;
    Ok(generation)
}

async fn wait_for_leader(consensus: &RaftConsensus) -> Result<()> {
    let mut standing = consensus.standing();
    let node = consensus.node();
    let leads = standing.wait_for(|s| s.leader == Some(node));
    tokio::time::timeout(Duration::from_secs(10), leads)
        .await
        .context("the re-formed record has no leader")??;
    Ok(())
}

fn who(dir: &MemberDir) -> Result<Who> {
    match dir.who()? {
        Some(who) => Ok(who),
        None => bail!("{} holds no member; there is nothing to recover from", dir.root().display()),
    }
}
