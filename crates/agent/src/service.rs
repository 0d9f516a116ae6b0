//! What REST and routing ask of the agent.

use crate::{
    backups::{self, Orders, Reached},
    clock,
    looper::{Event, Shown},
    majority,
    peers::{VERIFY, holds},
    route_view,
    warmth::Followers,
};
use async_trait::async_trait;
use bytes::Bytes;
use sempre_api::{
    Action, ActionError, AgentView, Backend, BackupRequest, Code, PoolView, RaftView, Seen,
    Snapshot, action::Done, apply_policy_changes, codes,
};
use sempre_consensus::{Consensus, ProposeError};
use sempre_decide::{LeaderView, leader, restart::standbys_first, sync::fences_needed};
use sempre_model::{
    Command, Generation, MemberId, Phase, Record,
    command::Change,
    record::{Cause, JoinToken as TokenRecord, Switchover},
    restart::ScheduledRestart,
};
use sempre_net::{Identity, JoinToken, Peers};
use sempre_postgres::Instance;
use sempre_route::{Router, Table, Verifier};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, UNIX_EPOCH},
};
use tokio::sync::{mpsc, watch};

/// A peer answers whether it holds the lease within this time, or it does not.
const VERIFY_WITHIN: Duration = Duration::from_millis(800);

/// The agent, as REST sees it.
pub struct Service {
    pub consensus: Arc<dyn Consensus>,
    pub shown: watch::Receiver<Arc<Shown>>,
    pub table: watch::Receiver<Arc<Table>>,
    pub identity: Arc<Identity>,
    pub events: mpsc::Sender<Event>,
    pub routers: Mutex<Vec<Arc<Router>>>,
    /// Routers beside applications.
    pub followers: Followers,
    /// PostgreSQL's programs here, to ask them; none on a witness.
    pub instance: Option<Instance>,
    /// How repositories are reached.
    pub reached: Reached,
}

impl Service {
    async fn propose(&self, change: Change) -> Result<Arc<Record>, ActionError> {
        majority::there(&self.shown).await?;
        let command = Command { at_unix_ms: clock::now_unix_ms(), change };
        self.consensus.propose(command).await.map_err(not_proposed)
    }

    async fn agreed(&self, change: Change, message: String) -> Result<Done, ActionError> {
        let record = self.propose(change).await?;
        Ok(Done { message, version: record.version, data: serde_json::Value::Null })
    }

    fn routers(&self) -> MutexGuard<'_, Vec<Arc<Router>>> {
        self.routers.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn record(&self) -> Arc<Record> {
        self.shown.borrow().record.clone()
    }

    async fn switchover(&self, wish: Switchover) -> Result<Done, ActionError> {
        let what = "no switchover was begun";
        let shown = self.shown.borrow().clone();
        let record = &shown.record;
        if record.phase != Phase::Serving {
            return Err(codes::BUSY.error(what, format!("the cluster is {}", record.phase.name())));
        }
        let primary = record
            .primary
            .clone()
            .ok_or_else(|| codes::REFUSED.error(what, "there is no primary"))?;
        if let Some(to) = &wish.to {
            known(record, to, what)?;
        }
        // A scheduled one is judged when its time comes.
        if wish.at_unix_ms.is_none() {
            let voters = BTreeSet::new();
            leader::target(&view(&shown, &voters), &primary, &wish)
                .map_err(|why| target_error(&wish, record, &primary, what, why))?;
        }
        let to = wish.to.as_ref().map_or("the best standby".to_owned(), |m| m.to_string());
        let message = match wish.at_unix_ms {
            None => format!("switchover from {primary} to {to} requested"),
            Some(at) => {
                format!(
                    "switchover from {primary} to {to} scheduled at {}",
                    sempre_api::units::show_time(at)
                )
            }
        };
        self.agreed(Change::RequestSwitchover(wish), message).await
    }

    async fn failover(&self, to: MemberId, allow_data_loss: bool) -> Result<Done, ActionError> {
        let what = "no failover was begun";
        let shown = self.shown.borrow().clone();
        let record = &shown.record;
        let member = known(record, &to, what)?;
        if !member.can_lead() {
            return Err(codes::NOT_ELIGIBLE.error(what, format!("{to} may not be primary")));
        }
        if record.primary.as_ref() == Some(&to) {
            return Err(codes::ALREADY_PRIMARY.error(what, format!("{to} is the primary")));
        }
        let wish = Switchover { to: Some(to.clone()), at_unix_ms: None };
        let orderly = record.phase == Phase::Serving
            && record.primary.as_ref().is_some_and(|primary| {
                let voters = BTreeSet::new();
                leader::target(&view(&shown, &voters), primary, &wish).is_ok()
            });
        if orderly && !allow_data_loss {
            // The primary still answers: it can hand over everything, which loses nothing.
            let message = format!("the primary answers, so it hands over to {to} in good order");
            return self.agreed(Change::RequestSwitchover(wish), message).await;
        }
        if !allow_data_loss {
            would_lose(&shown, &to).map_err(|why| codes::WOULD_LOSE_DATA.error(what, why))?;
        }
        let change = Change::BeginFailover {
            expect: record.generation,
            cause: Cause::Manual,
            target: Some(to.clone()),
            allow_data_loss,
            served_until_unix_ms: clock::now_unix_ms(),
            evidence: vec![format!(
                "asked for by hand{}",
                if allow_data_loss { ", data loss accepted" } else { "" }
            )],
        };
        self.agreed(change, format!("failover to {to} begun")).await
    }

    async fn remove(&self, name: MemberId, force: bool) -> Result<Done, ActionError> {
        let what = format!("{name} was not removed");
        let shown = self.shown.borrow().clone();
        known(&shown.record, &name, &what)?;
        // By force it is fenced and replaced like any that is lost: its lease is not renewed.
        if shown.record.primary.as_ref() == Some(&name) && !force {
            let why = format!("{name} is the primary");
            return Err(codes::IS_PRIMARY.error(what, why));
        }
        let left: Vec<_> = shown.record.members.keys().filter(|m| **m != name).collect();
        let limit = shown.record.policy.detect_ms;
        let alive = left
            .iter()
            .filter(|m| shown.heard.get(**m).is_some_and(|h| clock::now_ms() - h.at < limit))
            .count();
        if !force && alive < left.len() / 2 + 1 {
            let why =
                format!("only {alive} of the {} members that would be left answer", left.len());
            return Err(codes::BREAKS_MAJORITY.error(what, why));
        }
        let change = Change::RemoveMember { name: name.clone(), force };
        self.agreed(change, format!("{name} removed")).await
    }

    /// Some parameters, when raised, must be in force on standbys before they are on the primary:
    /// a standby with a lower one stops replaying.
    fn check_restart(&self, member: &MemberId) -> Result<(), ActionError> {
        let what = format!("{member} was not restarted");
        let shown = self.shown.borrow().clone();
        known(&shown.record, member, &what)?;
        let voters = BTreeSet::new();
        let first = standbys_first(&view(&shown, &voters), member);
        let Some(next) = first.first() else { return Ok(()) };
        let names: Vec<_> = first.iter().map(|m| m.as_str()).collect();
        let why = format!(
            "a parameter that is pending must be in force on standbys first: {}",
            names.join(", ")
        );
        Err(codes::REFUSED.error(what, why).next(format!("`sempre restart {next}` first")))
    }

    /// What it hangs on is judged when its time comes.
    async fn schedule_restart(
        &self,
        member: MemberId,
        wish: ScheduledRestart,
    ) -> Result<Done, ActionError> {
        let what = format!("no restart of {member} was scheduled");
        let record = self.record();
        known(&record, &member, &what)?;
        if record.paused {
            return Err(codes::PAUSED.error(what, "the cluster is paused"));
        }
        if wish.at_unix_ms < clock::now_unix_ms() {
            return Err(codes::BAD_REQUEST.error(what, "the time is in the past"));
        }
        let at = sempre_api::units::show_time(wish.at_unix_ms);
        let message = format!("restart of {member} scheduled at {at}");
        self.agreed(Change::ScheduleRestart { member, wish }, message).await
    }

    async fn token(&self, ttl_seconds: u64) -> Result<Done, ActionError> {
        let record = self.record();
        let addresses = record
            .members
            .values()
            .flat_map(|m| m.paths.iter().map(|p| address(&p.host, m.ports.peer)))
            .collect();
        let fingerprint = sempre_net::fingerprint_of_pem(self.identity.ca_pem())
            .map_err(|e| codes::INTERNAL.error("no join token was made", e.to_string()))?;
        let token = JoinToken::new(addresses, &fingerprint);
        let expires_unix_ms = clock::now_unix_ms() + ttl_seconds * 1_000;
        let entry = TokenRecord { hash: token.secret_hash(), expires_unix_ms, used_by: None };
        let record = self.propose(Change::IssueToken(entry)).await?;
        Ok(Done {
            message: format!("join token, good once, for {ttl_seconds} s"),
            version: record.version,
            data: serde_json::json!({
                "token": token.to_string(), "expires_unix_ms": expires_unix_ms
            }),
        })
    }

    /// A parameter that PostgreSQL does not know would keep every member from starting again.
    async fn check_known(&self, action: &Action) -> Result<(), ActionError> {
        let parts = match action {
            Action::Together(parts) => parts.as_slice(),
            one => std::slice::from_ref(one),
        };
        let named = |part: &Action| match part {
            Action::SetParameters(parameters) => parameters.clone(),
            _ => Default::default(),
        };
        let set: std::collections::BTreeMap<_, _> =
            parts.iter().flat_map(named).filter_map(|(n, v)| Some((n, v?))).collect();
        // One that may not be set at all is refused by name first.
        if set.is_empty()
            || set.iter().any(|(n, v)| sempre_postgres::check_parameter(n, v).is_err())
        {
            return Ok(());
        }
        let data = |instance: &&Instance| instance.layout.data_dir.join("PG_VERSION").exists();
        let Some(instance) = self.instance.as_ref().filter(data) else { return Ok(()) };
        instance.check_parameters(&set).await.map_err(|error| match error {
            sempre_postgres::Error::Parameter(bad) => {
                codes::BAD_PARAMETER.error("no parameter was changed", bad.to_string())
            }
            other => codes::INTERNAL.error("the parameters cannot be checked", other.to_string()),
        })
    }
}

/// What a change of the configuration comes to in the record, checked, and in words.
fn configuration(record: &Record, action: Action) -> Result<(Change, String), ActionError> {
    Ok(match action {
        Action::Pause => {
            let message = "paused: nothing automatic happens until `sempre resume`";
            (Change::SetPaused(true), message.into())
        }
        Action::Resume => (Change::SetPaused(false), "resumed".into()),
        Action::SetPolicy(changes) => {
            let policy = apply_policy_changes(&record.policy, &changes)?;
            let change = Change::SetPolicy { policy: Box::new(policy), expect_version: None };
            let keys: Vec<_> = changes.iter().map(|(k, v)| format!("{k} = {v}")).collect();
            (change, keys.join(", "))
        }
        Action::SetParameters(parameters) => {
            for (name, value) in &parameters {
                sempre_postgres::check_parameter(name, value.as_deref().unwrap_or("0")).map_err(
                    |e| {
                        let what = format!("`{name}` was not changed");
                        codes::BAD_PARAMETER.error(what, e.to_string())
                    },
                )?;
            }
            let message = format!("{} PostgreSQL parameters changed", parameters.len());
            (Change::SetParameters { parameters }, message)
        }
        Action::SetHba(lines) => {
            for line in &lines {
                sempre_postgres::check_hba_line(line).map_err(|error| {
                    codes::BAD_HBA.error("the pg_hba lines were not changed", error.to_string())
                })?;
            }
            (Change::SetHba { lines }, "pg_hba lines changed".into())
        }
        Action::Together(actions) => {
            let all: Result<Vec<_>, _> =
                actions.into_iter().map(|action| configuration(record, action)).collect();
            let (changes, messages): (Vec<_>, Vec<_>) = all?.into_iter().unzip();
            (Change::Together(changes), messages.join("; "))
        }
        other => {
            let why = format!("{other:?} is no change of the configuration");
            return Err(codes::BAD_REQUEST.error("the configuration was not changed", why));
        }
    })
}

fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn known<'a>(
    record: &'a Record,
    name: &MemberId,
    what: &str,
) -> Result<&'a sempre_model::Member, ActionError> {
    record.member(name).ok_or_else(|| {
        let names: Vec<_> = record.members.keys().map(|m| m.as_str()).collect();
        codes::UNKNOWN_MEMBER
            .error(what, format!("there is no member `{name}`; there are {}", names.join(", ")))
    })
}

fn target_error(
    wish: &Switchover,
    record: &Record,
    primary: &MemberId,
    what: &str,
    why: String,
) -> ActionError {
    let code: Code = match &wish.to {
        None => codes::NO_CANDIDATE,
        Some(to) if to == primary => {
            return codes::ALREADY_PRIMARY.error(what, format!("{to} is the primary"));
        }
        Some(to) if record.member(to).is_some_and(|m| !m.can_lead()) => codes::NOT_ELIGIBLE,
        Some(_) => codes::TARGET_LAGS,
    };
    code.error(what, why)
}

fn view<'a>(shown: &'a Shown, voters: &'a BTreeSet<MemberId>) -> LeaderView<'a> {
    LeaderView {
        record: &shown.record,
        me: &shown.me,
        now: clock::now_ms(),
        now_unix_ms: clock::now_unix_ms(),
        started: shown.started,
        since: shown.since,
        since_before_start: shown.since_before_start,
        voters,
        heard: &shown.heard,
    }
}

/// May acknowledged commits be lost if `to` takes over now? The error says how many bytes.
fn would_lose(shown: &Shown, to: &MemberId) -> Result<(), String> {
    let record = &shown.record;
    let limit = record.policy.detect_ms;
    let fresh = |m: &MemberId| {
        shown.heard.get(m).is_some_and(|h| clock::now_ms().saturating_sub(h.at) < limit)
    };
    let lsn_of = |m: &MemberId| {
        shown.heard.get(m).and_then(|h| h.observation.database.as_ref()).map(|d| d.lsn)
    };
    let last = record.primary.as_ref().or(record.last_serving());
    let known_end = last.and_then(&lsn_of);
    let own = lsn_of(to).ok_or_else(|| format!("{to} is not heard"))?;
    let behind = known_end.map(|end| end.bytes_since(own));
    let lost = |why: String| match behind {
        Some(bytes) => Err(format!(
            "{why}; {to} is {bytes} bytes behind the last position known of the primary, and so much may be lost"
        )),
        None => Err(format!("{why}; how much may be lost is not known")),
    };
    let Some(needed) = fences_needed(&record.sync) else {
        return match behind {
            // The primary itself is there: a hand-over of everything is possible with a switchover.
            Some(0) if last.is_some_and(fresh) => Ok(()),
            _ => lost("no standby is known to have every commit".into()),
        };
    };
    let reachable = record.sync.members.iter().filter(|m| fresh(m)).count();
    if reachable < needed {
        return lost(format!(
            "{needed} members of the sync set must be reached to be sure, {reachable} are"
        ));
    }
    let best = record.sync.members.iter().filter(|m| fresh(m)).filter_map(&lsn_of).max();
    let slack = record.policy.switchover_max_lag_bytes;
    if best.is_some_and(|best| best.bytes_since(own) > slack) {
        return lost(format!("{to} is not the most advanced standby"));
    }
    Ok(())
}

/// Why a change is not in the record, as it is told.
pub(crate) fn not_proposed(error: ProposeError) -> ActionError {
    let what = "nothing was changed";
    match error {
        ProposeError::Rejected(why) => why.into(),
        ProposeError::NoLeader { .. } => codes::NO_QUORUM.error(what, error.to_string()),
        ProposeError::TimedOut { .. } => {
            codes::TIMED_OUT.error("the outcome is not known", error.to_string())
        }
        ProposeError::Fault { .. } => codes::INTERNAL.error(what, error.to_string()),
    }
}

#[async_trait]
impl Backend for Service {
    fn snapshot(&self) -> Snapshot {
        let shown = self.shown.borrow().clone();
        let now = clock::now_ms();
        let name_of =
            |node| shown.record.members.values().find(|m| m.node == node).map(|m| m.name.clone());
        let seen = shown
            .heard
            .iter()
            .map(|(name, heard)| {
                let age_ms = now.saturating_sub(heard.at);
                (name.clone(), Seen { age_ms, observation: heard.observation.clone() })
            })
            .collect();
        let reachable = shown
            .heard
            .values()
            .filter(|h| now.saturating_sub(h.at) < shown.record.policy.detect_ms)
            .filter(|h| shown.standing.voters.contains(&h.observation.node))
            .count();
        let quorum = shown.standing.leader.is_some() && reachable > shown.standing.voters.len() / 2;
        Snapshot {
            record: shown.record.clone(),
            me: shown.me.clone(),
            raft_leader: shown.standing.leader.and_then(name_of),
            raft: RaftView {
                term: shown.standing.term,
                voters: shown.standing.voters.clone(),
                learners: shown.standing.learners.clone(),
                applied: shown.standing.applied_index,
                last_log: shown.standing.last_log_index,
                contact_age_ms: quorum.then_some(0),
            },
            seen,
            paths: shown.paths.clone(),
            agent: AgentView {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                guard_pid: u32::try_from(shown.guard.guard_pid)
                    .ok()
                    .filter(|pid| *pid > 0 && shown.guard.connected),
                uptime_ms: now.saturating_sub(shown.started),
            },
            route: route_view::counters(&self.routers()),
            database_started_unix_ms: shown.guard.postmaster.as_ref().map(|p| {
                let ago = now.saturating_sub(p.started_at.0 / 1_000_000);
                clock::now_unix_ms().saturating_sub(ago)
            }),
            certificate_expires_unix_ms: self
                .identity
                .expires_at()
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|d| u64::try_from(d.as_millis()).ok()),
            now_unix_ms: clock::now_unix_ms(),
        }
    }

    fn pools(&self) -> Vec<PoolView> {
        route_view::pools(&self.routers())
    }

    async fn act(&self, action: Action) -> Result<Done, ActionError> {
        match action {
            Action::Switchover { to, at_unix_ms } => {
                self.switchover(Switchover { to, at_unix_ms }).await
            }
            Action::CancelSwitchover => {
                self.agreed(Change::CancelSwitchover, "switchover cancelled".into()).await
            }
            Action::Failover { to, allow_data_loss } => self.failover(to, allow_data_loss).await,
            action @ (Action::Pause | Action::Resume) => {
                let (change, message) = configuration(&self.record(), action)?;
                self.agreed(change, message).await
            }
            Action::Restart { member } => {
                self.check_restart(&member)?;
                let message = format!("restart of {member} requested");
                self.agreed(Change::RequestRestart(member), message).await
            }
            Action::ScheduleRestart { member, wish } => self.schedule_restart(member, wish).await,
            Action::CancelRestart { member } => {
                let message = format!("scheduled restart of {member} cancelled");
                self.agreed(Change::CancelRestart(member), message).await
            }
            Action::Reload => {
                let _ = self.events.send(Event::Rewrite).await;
                Ok(Done::said("the configuration is written and loaded again"))
            }
            Action::Reinit { member, from_backup } => {
                let what = format!("{member} gets no fresh copy");
                let record = self.record();
                known(&record, &member, &what)?;
                if record.primary.as_ref() == Some(&member) {
                    let why = format!("{member} is the primary");
                    return Err(codes::IS_PRIMARY.error(what, why));
                }
                let message = format!("fresh copy for {member} requested");
                let fill = from_backup.map(|from| backups::fill(&member, &from));
                let reinit = Change::RequestReinit(member);
                let change = match fill {
                    Some(fill) => Change::Together(vec![fill, reinit]),
                    None => reinit,
                };
                self.agreed(change, message).await
            }
            Action::Remove { member, force } => self.remove(member, force).await,
            action @ (Action::SetPolicy(_)
            | Action::SetParameters(_)
            | Action::SetHba(_)
            | Action::Together(_)) => {
                self.check_known(&action).await?;
                let (change, message) = configuration(&self.record(), action)?;
                self.agreed(change, message).await
            }
            Action::IssueToken { ttl_seconds } => self.token(ttl_seconds).await,
        }
    }

    async fn backups(&self, request: BackupRequest) -> Result<serde_json::Value, ActionError> {
        let (consensus, shown) = (self.consensus.clone(), self.shown.clone());
        let orders = Orders { consensus, shown, reached: self.reached.clone() };
        orders.answer(request).await
    }

    async fn route(&self, after: u64, wait: Duration, warming: bool) -> serde_json::Value {
        if warming {
            self.followers.warming();
        }
        let mut table = self.table.clone();
        if after != 0 {
            let newer = table.wait_for(|t| t.version != after);
            let _ = tokio::time::timeout(wait, newer).await;
        }
        let table = table.borrow().clone();
        let shown = self.shown.borrow().clone();
        let answer = sempre_route::TableAnswer {
            member: shown.me.clone(),
            confirmed: holds(&shown, table.generation),
            table: (*table).clone(),
        };
        serde_json::to_value(answer).unwrap_or_default()
    }

    fn verify_route(&self, generation: u64) -> bool {
        holds(&self.shown.borrow(), Generation(generation))
    }
}

/// Asks this member's own loop, or the other member over the peer network.
pub struct PeerVerifier {
    pub peers: Arc<Peers>,
    pub shown: watch::Receiver<Arc<Shown>>,
    /// The agent's: connections to other members are served where they are opened, and carry
    /// heartbeats too.
    pub agent: tokio::runtime::Handle,
}

#[async_trait]
impl Verifier for PeerVerifier {
    async fn verify(&self, member: &MemberId, generation: Generation) -> bool {
        let shown = self.shown.borrow().clone();
        if *member == shown.me {
            return holds(&shown, generation);
        }
        let Ok(body) = serde_json::to_vec(&generation) else { return false };
        let (peers, member) = (self.peers.clone(), member.clone());
        let asked = self.agent.spawn(async move {
            peers.call(&member, VERIFY, Bytes::from(body), VERIFY_WITHIN).await.ok()
        });
        let answer = asked.await.ok().flatten();
        answer.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bad `pg_hba` line leaves the policy and the parameters of the same request as they were.
    #[test]
    fn a_configuration_is_changed_as_a_whole_or_not_at_all() {
        let mut record = Record::default();
        let policy = |value: &str| Action::SetPolicy(vec![("strict".into(), value.into())]);
        let hba = |line: &str| Action::SetHba(vec![line.into()]);
        let parameters = || Action::SetParameters([("work_mem".into(), Some("9MB".into()))].into());

        let bad = Action::Together(vec![policy("true"), parameters(), hba("host\nhost")]);
        assert_eq!(configuration(&record, bad).unwrap_err().code, codes::BAD_HBA);

        let good = Action::Together(vec![policy("true"), parameters(), hba("local all all peer")]);
        let (change, _) = configuration(&record, good).unwrap();
        record.apply(&Command { at_unix_ms: 1, change }).unwrap();
        assert!(record.policy.strict && record.hba.len() == 1 && record.parameters.len() == 1);
        assert_eq!((record.version, record.events.len()), (1, 3));

        // What only the record can refuse undoes the rest, too.
        let change = Change::Together(vec![Change::SetPaused(true), Change::CancelSwitchover]);
        record.apply(&Command { at_unix_ms: 2, change }).unwrap_err();
        assert_eq!((record.version, record.paused), (1, false));
    }
}
