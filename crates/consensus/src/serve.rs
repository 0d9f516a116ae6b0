//! Answers to the calls of other members.

use crate::{
    api::CallKind,
    error::ServeError,
    machine,
    raft::{Barred, RaftConsensus, Taken},
    types::{Proposal, Types},
    wire::{
        self, Append, AppendAnswer, AskVote, Barrier, BarrierAnswer, Call, Install, InstallAnswer,
        Propose, ProposeAnswer, VoteAnswer,
    },
};
use openraft::{
    Entry,
    raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Display, time::Duration};
use tokio::time::Instant;

/// Nobody's call is worked on for longer, whatever it asks for.
const WITHIN_MAX: Duration = Duration::from_secs(10);

fn fault(error: impl Display) -> ServeError {
    ServeError::Fault { what: error.to_string() }
}

fn deadline(within_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(within_ms).min(WITHIN_MAX)
}

fn encode<T: Serialize>(kind: CallKind, answer: &T) -> Result<Vec<u8>, ServeError> {
    wire::encode(kind, answer).map_err(|why| ServeError::Fault { what: why })
}

impl RaftConsensus {
    fn read_call<T: DeserializeOwned>(&self, kind: CallKind, body: &[u8]) -> Result<T, ServeError> {
        let call: Call<T> = wire::decode(kind, body)?;
        match call.to == self.node {
            true => Ok(call.call),
            false => Err(ServeError::WrongNode { wanted: call.to, here: self.node }),
        }
    }

    pub(crate) async fn answer(&self, kind: CallKind, body: &[u8]) -> Result<Vec<u8>, ServeError> {
        match kind {
            CallKind::AppendEntries => {
                let answer = self.answer_append(self.read_call(kind, body)?).await?;
                encode(kind, &answer)
            }
            CallKind::Vote => {
                let ask: AskVote = self.read_call(kind, body)?;
                let request = VoteRequest::new(ask.vote.into(), ask.last.map(Into::into));
                let (theirs, current) = (request.last_log_id, self.running.current().await);
                let answer = current.raft.vote(request).await.map_err(fault)?;
                if !answer.vote_granted && answer.last_log_id > theirs {
                    self.running.stand_instead(current);
                }
                let answer = VoteAnswer {
                    vote: answer.vote.into(),
                    granted: answer.vote_granted,
                    last: answer.last_log_id.map(Into::into),
                };
                encode(kind, &answer)
            }
            CallKind::InstallSnapshot => {
                let install: Install = self.read_call(kind, body)?;
                let snapshot = machine::to_raft(&install.snapshot).map_err(fault)?;
                let raft = self.running.current().await.raft;
                let answer = raft
                    .install_full_snapshot(install.vote.into(), snapshot)
                    .await
                    .map_err(fault)?;
                encode(kind, &InstallAnswer { vote: answer.vote.into() })
            }
            CallKind::Propose => {
                let propose: Propose = self.read_call(kind, body)?;
                let deadline = deadline(propose.within_ms);
                let proposal = Proposal::new(propose.id, propose.command);
                let answer = match self.take(proposal, deadline).await {
                    Taken::Applied(record) => ProposeAnswer::Applied(Box::new((*record).clone())),
                    Taken::Rejected(why) => ProposeAnswer::Rejected(why),
                    Taken::NotLeader => ProposeAnswer::NotLeader,
                    Taken::Unknown(why) => ProposeAnswer::Unknown(why),
                    Taken::Fault(what) => return Err(ServeError::Fault { what }),
                };
                encode(kind, &answer)
            }
            CallKind::ReadBarrier => {
                let barrier: Barrier = self.read_call(kind, body)?;
                let answer = match self.bar(deadline(barrier.within_ms)).await {
                    Barred::ReadAt(index) => BarrierAnswer::ReadAt(index),
                    Barred::Unconfirmed => BarrierAnswer::Unconfirmed,
                    Barred::Fault(what) => return Err(ServeError::Fault { what }),
                };
                encode(kind, &answer)
            }
        }
    }

    async fn answer_append(&self, append: Append) -> Result<AppendAnswer, ServeError> {
        let request = AppendEntriesRequest::<Types> {
            vote: append.vote.into(),
            prev_log_id: append.previous.map(Into::into),
            entries: append.entries.into_iter().map(Entry::from).collect(),
            leader_commit: append.committed.map(Into::into),
        };
        let answer =
            self.running.current().await.raft.append_entries(request).await.map_err(fault)?;
        Ok(match answer {
            AppendEntriesResponse::Success => AppendAnswer::Success,
            AppendEntriesResponse::PartialSuccess(upto) => {
                AppendAnswer::Partial(upto.map(Into::into))
            }
            AppendEntriesResponse::Conflict => AppendAnswer::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendAnswer::HigherVote(vote.into()),
        })
    }
}
