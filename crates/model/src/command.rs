//! The only ways to change the record. Applying is deterministic: every member comes to the same
//! result, so a command carries all it needs, and says what it expects to find.

use crate::{
    backup::BackupChange,
    ids::{Generation, Lsn, MemberId, NodeId, Timeline},
    member::Member,
    policy::{Policy, PolicyError},
    record::{
        Cause, Cluster, EVENTS_MAX, Event, Fenced, HISTORY_MAX, HistoryEntry, JoinToken, Phase,
        Record, Switchover, SyncSet, TOKENS_MAX,
    },
    restart::ScheduledRestart,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A change of the record with the time it was proposed at (shown only).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// ms since 1970 at the proposer.
    pub at_unix_ms: u64,
    /// The change.
    pub change: Change,
}

/// A change of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The first entry: who we are, and the first member.
    Init {
        /// The cluster.
        cluster: Box<Cluster>,
        /// Its policy.
        policy: Box<Policy>,
        /// The first member.
        member: Box<Member>,
    },
    /// PostgreSQL's identity, learned from the first data directory.
    Identify {
        /// System identifier.
        system_identifier: u64,
        /// Major version.
        major_version: u32,
    },
    /// The first primary: it has initialised or adopted its data directory.
    Bootstrap {
        /// Who.
        primary: MemberId,
        /// The timeline of its data. The first generation is not below it, so that every later
        /// promotion finds a number that was never used (a timeline is numbered by its generation).
        #[serde(default)]
        timeline: Timeline,
    },
    /// A new member, or a known one under a new node id, address or tags.
    PutMember {
        /// All of it. A known member keeps its kind.
        member: Box<Member>,
        /// SHA-256 of the join token's secret, when one was used.
        token_hash: Option<String>,
    },
    /// Takes a member out.
    RemoveMember {
        /// Who.
        name: MemberId,
        /// Even the primary.
        force: bool,
    },
    /// A new policy, whole.
    SetPolicy {
        /// The policy.
        policy: Box<Policy>,
        /// The record version it was made from.
        expect_version: Option<u64>,
    },
    /// PostgreSQL parameters: a value, or none to go back to the server's own.
    SetParameters {
        /// By name.
        parameters: BTreeMap<String, Option<String>>,
    },
    /// Client lines of `pg_hba.conf`.
    SetHba {
        /// All of them.
        lines: Vec<String>,
    },
    /// Several changes of the configuration at once: all of them, or none.
    Together(Vec<Change>),
    /// Begins to replace the primary: raises the generation.
    BeginFailover {
        /// The generation to end.
        expect: Generation,
        /// Why.
        cause: Cause,
        /// The operator's or the switchover's choice.
        target: Option<MemberId>,
        /// The operator accepted that commits may be lost.
        allow_data_loss: bool,
        /// When the old primary was last known to serve, ms since 1970.
        served_until_unix_ms: u64,
        /// What was seen, in words.
        evidence: Vec<String>,
    },
    /// Names the new primary of the generation being formed.
    Promote {
        /// The generation being formed.
        generation: Generation,
        /// Who.
        to: MemberId,
        /// Who was fenced, at which position.
        fenced: Vec<Fenced>,
        /// What it enforces from its first moment.
        sync: SyncSet,
        /// Why this one, in words.
        evidence: Vec<String>,
    },
    /// The new primary is promoted, and k of its sync set flushed the end of its recovery.
    ConfirmServing {
        /// Its generation.
        generation: Generation,
        /// Its timeline.
        timeline: Timeline,
        /// Where that timeline begins.
        lsn: Lsn,
    },
    /// A new sync set.
    SetSync {
        /// The generation it is for.
        generation: Generation,
        /// The set it replaces.
        expect: SyncSet,
        /// The new one.
        sync: SyncSet,
        /// What the database is to enforce.
        wanted: SyncSet,
        /// In words.
        why: String,
    },
    /// The primary is to hand over to `to`.
    BeginHandOver {
        /// Of this generation.
        expect: Generation,
        /// To whom.
        to: MemberId,
    },
    /// The hand-over did not work out; the primary goes on.
    AbortHandOver {
        /// Of this generation.
        expect: Generation,
        /// In words.
        why: String,
    },
    /// A wish to change the primary.
    RequestSwitchover(Switchover),
    /// No longer wished.
    CancelSwitchover,
    /// Nothing automatic happens (or: it does again).
    SetPaused(bool),
    /// A database is to be restarted.
    RequestRestart(MemberId),
    /// It was.
    RestartDone(MemberId),
    /// A database is to be restarted at a time.
    ScheduleRestart {
        /// Whose.
        member: MemberId,
        /// When, and what it hangs on.
        wish: ScheduledRestart,
    },
    /// What was scheduled is no longer wished.
    CancelRestart(MemberId),
    /// The time has come.
    EndScheduledRestart {
        /// Whose.
        member: MemberId,
        /// The time of the one that was judged.
        at_unix_ms: u64,
        /// Why it is not done after all; none: it is asked for now.
        dropped: Option<String>,
    },
    /// A member is to get a fresh copy.
    RequestReinit(MemberId),
    /// It has.
    ReinitDone(MemberId),
    /// A right to join.
    IssueToken(JoinToken),
    /// What the record knows of backups.
    Backup(Box<BackupChange>),
    /// Something happened that is worth keeping.
    Note {
        /// The rule that fired.
        rule: String,
        /// In words.
        text: String,
    },
}

/// Why a command did nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejected {
    /// The record went on meanwhile.
    #[error("out of date: {0}")]
    Stale(String),
    /// It makes no sense now.
    #[error("{why}")]
    Refused {
        /// Which of the known reasons.
        kind: Refusal,
        /// In words.
        why: String,
    },
    /// The policy is not valid.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Why a command makes no sense now, for those that act on it rather than read it. The API gives
/// each an error code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// None of those below.
    NotNow,
    /// No such member.
    UnknownMember,
    /// A witness, or `never_primary`.
    NotEligible,
    /// The target is the primary.
    AlreadyPrimary,
    /// It would destroy the primary.
    IsPrimary,
    /// There is no switchover or restart to cancel.
    NothingToCancel,
    /// One is scheduled already.
    AlreadyScheduled,
    /// [`TOKENS_MAX`] are open.
    TooManyTokens,
    /// Never issued, or expired.
    TokenUnknown,
    /// It let somebody in already.
    TokenUsed,
    /// A member of this name is there.
    MemberExists,
}

pub(crate) fn stale(what: impl Into<String>) -> Rejected {
    Rejected::Stale(what.into())
}

pub(crate) fn refused(what: impl Into<String>) -> Rejected {
    refused_as(Refusal::NotNow, what)
}

pub(crate) fn refused_as(kind: Refusal, why: impl Into<String>) -> Rejected {
    Rejected::Refused { kind, why: why.into() }
}

impl Record {
    /// Applies one command. On `Err` nothing changed.
    pub fn apply(&mut self, command: &Command) -> Result<(), Rejected> {
        let mut next = self.clone();
        let event = next.change(command.at_unix_ms, &command.change)?;
        next.version += 1;
        if let Some((rule, text)) = event {
            next.push_event(command.at_unix_ms, rule, text);
        }
        *self = next;
        Ok(())
    }

    fn push_event(&mut self, at_unix_ms: u64, rule: String, text: String) {
        let seq = self.events.last().map_or(1, |e| e.seq + 1);
        self.events.push(Event { seq, at_unix_ms, rule, text });
        if self.events.len() > EVENTS_MAX {
            self.events.remove(0);
        }
    }

    fn expect_generation(&self, expect: Generation) -> Result<(), Rejected> {
        if self.generation == expect {
            Ok(())
        } else {
            Err(stale(format!("generation is {}, not {expect}", self.generation)))
        }
    }

    pub(crate) fn known(&self, name: &MemberId) -> Result<&Member, Rejected> {
        self.members.get(name).ok_or_else(|| {
            refused_as(Refusal::UnknownMember, format!("there is no member `{name}`"))
        })
    }

    fn change(&mut self, at: u64, change: &Change) -> Result<Option<(String, String)>, Rejected> {
        let event = |rule: &str, text: String| Ok(Some((rule.to_owned(), text)));
        match change {
            Change::Init { cluster, policy, member } => {
                if self.cluster.is_some() {
                    return Err(refused("the cluster is initialised already"));
                }
                policy.validate()?;
                self.last_node = member.node;
                self.cluster = Some((**cluster).clone());
                self.policy = (**policy).clone();
                self.members.insert(member.name.clone(), (**member).clone());
                event("init", format!("cluster `{}` made by {}", cluster.name, member.name))
            }
            Change::Identify { system_identifier, major_version } => {
                let cluster = self.cluster.as_mut().ok_or_else(|| refused("not initialised"))?;
                match cluster.system_identifier {
                    Some(known) if known != *system_identifier => {
                        Err(refused(format!("this is cluster {known}, not {system_identifier}")))
                    }
                    _ => {
                        cluster.system_identifier = Some(*system_identifier);
                        cluster.major_version = Some(*major_version);
                        Ok(None)
                    }
                }
            }
            Change::Bootstrap { primary, timeline } => {
                if self.phase != Phase::Forming {
                    return Err(stale("there has been a primary already"));
                }
                if !self.known(primary)?.can_lead() {
                    return Err(refused_as(
                        Refusal::NotEligible,
                        format!("{primary} may not be primary"),
                    ));
                }
                let first = Generation(u64::from(timeline.0));
                self.generation = self.generation.next().max(first);
                self.primary = Some(primary.clone());
                self.phase = Phase::Serving;
                self.sync = SyncSet::default();
                self.push_history(HistoryEntry {
                    generation: self.generation,
                    primary: primary.clone(),
                    from: None,
                    cause: Cause::Bootstrap,
                    timeline: (*timeline).max(Timeline(1)),
                    lsn: Lsn(0),
                    at_unix_ms: at,
                    stall_ms: 0,
                    evidence: vec![],
                });
                event("bootstrap", format!("{primary} is the first primary"))
            }
            Change::PutMember { member, token_hash } => self.put_member(at, member, token_hash),
            Change::RemoveMember { name, force } => {
                self.known(name)?;
                if self.primary.as_ref() == Some(name) && !force {
                    return Err(refused_as(
                        Refusal::IsPrimary,
                        format!("{name} is the primary; switch over first, or force it"),
                    ));
                }
                self.members.remove(name);
                self.restarts.remove(name);
                self.scheduled_restarts.remove(name);
                self.reinits.remove(name);
                self.backups.fills.remove(name);
                self.backups.forget_orders_of(name);
                event("remove", format!("{name} removed"))
            }
            Change::SetPolicy { policy, expect_version } => {
                if expect_version.is_some_and(|v| v != self.version) {
                    return Err(stale("the policy was changed meanwhile"));
                }
                policy.validate()?;
                self.policy = (**policy).clone();
                event("config", "policy changed".into())
            }
            Change::SetParameters { parameters } => {
                for (name, value) in parameters {
                    match value {
                        Some(value) => self.parameters.insert(name.clone(), value.clone()),
                        None => self.parameters.remove(name),
                    };
                }
                let names: Vec<_> = parameters.keys().cloned().collect();
                event("config", format!("PostgreSQL parameters changed: {}", names.join(", ")))
            }
            Change::SetHba { lines } => {
                self.hba = lines.clone();
                event("config", "pg_hba lines changed".into())
            }
            Change::Together(changes) => {
                for change in changes {
                    if matches!(change, Change::Together(_)) {
                        return Err(refused("changes at once are not nested"));
                    }
                    // What is done so far is dropped with the first refusal.
                    if let Some((rule, text)) = self.change(at, change)? {
                        self.push_event(at, rule, text);
                    }
                }
                Ok(None)
            }
            Change::BeginFailover {
                expect,
                cause,
                target,
                allow_data_loss,
                served_until_unix_ms,
                evidence,
            } => {
                self.expect_generation(*expect)?;
                if self.phase == Phase::Forming {
                    return Err(refused("there is no primary to replace yet"));
                }
                if let Some(target) = target {
                    self.known(target)?;
                }
                let from = match &self.phase {
                    Phase::Promoting { from, .. } | Phase::Fencing { from, .. } => {
                        self.primary.clone().or_else(|| from.clone())
                    }
                    _ => self.primary.clone(),
                };
                self.generation = self.generation.next();
                self.primary = None;
                self.switchover = None;
                let text = format!(
                    "generation {}: replacing {} ({})",
                    self.generation,
                    from.as_ref().map_or("nobody", |m| m.as_str()),
                    evidence.join("; ")
                );
                self.phase = Phase::Fencing {
                    from,
                    cause: cause.clone(),
                    target: target.clone(),
                    allow_data_loss: *allow_data_loss,
                    began_unix_ms: at,
                    served_until_unix_ms: *served_until_unix_ms,
                    evidence: evidence.clone(),
                };
                event("begin-failover", text)
            }
            Change::Promote { generation, to, fenced, sync, evidence } => {
                self.expect_generation(*generation)?;
                let Phase::Fencing {
                    from,
                    cause,
                    began_unix_ms,
                    served_until_unix_ms,
                    evidence: seen,
                    ..
                } = self.phase.clone()
                else {
                    return Err(stale(format!("the cluster is {}", self.phase.name())));
                };
                if !self.known(to)?.can_lead() {
                    return Err(refused_as(
                        Refusal::NotEligible,
                        format!("{to} may not be primary"),
                    ));
                }
                self.primary = Some(to.clone());
                self.sync_wanted = sync.clone();
                let seen = seen.into_iter().chain(evidence.iter().cloned()).collect();
                self.phase = Phase::Promoting {
                    from,
                    cause,
                    fenced: fenced.clone(),
                    sync: sync.clone(),
                    began_unix_ms,
                    served_until_unix_ms,
                    evidence: seen,
                };
                event("promote", format!("generation {generation}: {to} ({})", evidence.join("; ")))
            }
            Change::ConfirmServing { generation, timeline, lsn } => {
                self.expect_generation(*generation)?;
                let Phase::Promoting { from, cause, sync, served_until_unix_ms, evidence, .. } =
                    self.phase.clone()
                else {
                    return Err(stale(format!("the cluster is {}", self.phase.name())));
                };
                let Some(primary) = self.primary.clone() else {
                    return Err(stale("nobody is primary"));
                };
                let stall_ms = at.saturating_sub(served_until_unix_ms);
                self.phase = Phase::Serving;
                self.sync = sync;
                self.push_history(HistoryEntry {
                    generation: *generation,
                    primary: primary.clone(),
                    from,
                    cause,
                    timeline: *timeline,
                    lsn: *lsn,
                    at_unix_ms: at,
                    stall_ms,
                    evidence,
                });
                event(
                    "serving",
                    format!(
                        "generation {generation}: {primary} serves, timeline {timeline} from {lsn}, after {stall_ms} ms"
                    ),
                )
            }
            Change::SetSync { generation, expect, sync, wanted, why } => {
                self.expect_generation(*generation)?;
                if self.sync != *expect {
                    return Err(stale("the sync set was changed meanwhile"));
                }
                match &mut self.phase {
                    Phase::Serving | Phase::HandingOver { .. } => self.sync = sync.clone(),
                    // Nobody is let in yet, so nothing relies on the new primary's set yet.
                    Phase::Promoting { sync: first, .. } => *first = wanted.clone(),
                    other => {
                        return Err(stale(format!("the cluster is {}", other.name())));
                    }
                }
                self.sync_wanted = wanted.clone();
                event("sync-set", why.clone())
            }
            Change::BeginHandOver { expect, to } => {
                self.expect_generation(*expect)?;
                if self.phase != Phase::Serving {
                    return Err(stale(format!("the cluster is {}", self.phase.name())));
                }
                if !self.known(to)?.can_lead() {
                    return Err(refused_as(
                        Refusal::NotEligible,
                        format!("{to} may not be primary"),
                    ));
                }
                self.switchover = None;
                self.phase = Phase::HandingOver { to: to.clone(), began_unix_ms: at };
                event("hand-over", format!("handing over to {to}"))
            }
            Change::AbortHandOver { expect, why } => {
                self.expect_generation(*expect)?;
                if !matches!(self.phase, Phase::HandingOver { .. }) {
                    return Err(stale(format!("the cluster is {}", self.phase.name())));
                }
                self.phase = Phase::Serving;
                event("hand-over-aborted", why.clone())
            }
            Change::RequestSwitchover(wish) => {
                if let Some(to) = &wish.to {
                    if !self.known(to)?.can_lead() {
                        return Err(refused_as(
                            Refusal::NotEligible,
                            format!("{to} may not be primary (never_primary or witness)"),
                        ));
                    }
                    if self.primary.as_ref() == Some(to) {
                        return Err(refused_as(
                            Refusal::AlreadyPrimary,
                            format!("{to} is the primary already"),
                        ));
                    }
                }
                self.switchover = Some(wish.clone());
                let to = wish.to.as_ref().map_or("the best standby", |m| m.as_str());
                event("switchover", format!("switchover to {to} requested"))
            }
            Change::CancelSwitchover => {
                if self.switchover.take().is_none() {
                    return Err(refused_as(
                        Refusal::NothingToCancel,
                        "there is no switchover to cancel",
                    ));
                }
                event("switchover", "switchover cancelled".into())
            }
            Change::SetPaused(paused) => {
                self.paused = *paused;
                let text = if *paused { "paused: nothing automatic happens" } else { "resumed" };
                event("pause", text.into())
            }
            Change::RequestRestart(name) => {
                self.known(name)?;
                self.restarts.insert(name.clone(), self.version + 1);
                event("restart", format!("restart of {name} requested"))
            }
            Change::RestartDone(name) => self.restart_done(name),
            Change::ScheduleRestart { member, wish } => self.schedule_restart(member, wish),
            Change::CancelRestart(name) => self.cancel_restart(name),
            Change::EndScheduledRestart { member, at_unix_ms, dropped } => {
                self.end_schedule(member, *at_unix_ms, dropped.as_deref())
            }
            Change::RequestReinit(name) => {
                self.known(name)?;
                if self.primary.as_ref() == Some(name) {
                    return Err(refused_as(
                        Refusal::IsPrimary,
                        format!("{name} is the primary; switch over first"),
                    ));
                }
                self.reinits.insert(name.clone(), self.version + 1);
                event("reinit", format!("fresh copy for {name} requested"))
            }
            Change::ReinitDone(name) => {
                self.reinits.remove(name).ok_or_else(|| stale("no fresh copy was requested"))?;
                event("reinit", format!("{name} has a fresh copy"))
            }
            Change::IssueToken(token) => {
                self.tokens.retain(|t| t.expires_unix_ms > at);
                if self.tokens.len() >= TOKENS_MAX {
                    return Err(refused_as(
                        Refusal::TooManyTokens,
                        format!("{TOKENS_MAX} join tokens are open already"),
                    ));
                }
                self.tokens.push(token.clone());
                event("token", "join token issued".into())
            }
            Change::Backup(change) => self.change_backups(at, change),
            Change::Note { rule, text } => event(rule, text.clone()),
        }
    }

    fn push_history(&mut self, entry: HistoryEntry) {
        self.history.push(entry);
        if self.history.len() > HISTORY_MAX {
            self.history.remove(0);
        }
    }

    /// The node id the next new member gets.
    pub fn next_node(&self) -> NodeId {
        self.last_node + 1
    }
}
