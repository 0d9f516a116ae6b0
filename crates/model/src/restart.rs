//! Restarts that are to come: the wish, what it hangs on, and how the record keeps it.

use crate::{
    command::{Refusal, Rejected, refused, refused_as, stale},
    ids::MemberId,
    member::MemberKind,
    observation::{Database, Role},
    record::Record,
};
use serde::{Deserialize, Serialize};

/// A restart at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledRestart {
    /// Not before, ms since 1970.
    pub at_unix_ms: u64,
    /// Judged when the time has come.
    #[serde(default)]
    pub only_if: RestartConditions,
    /// What its operator said of how long it may take, seconds. It is shown again, nothing more.
    #[serde(default)]
    pub timeout_seconds: Option<u64>,
}

/// What must hold for a restart to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestartConditions {
    /// The database has this role.
    pub role: Option<WantedRole>,
    /// The server is older than this `server_version_num`.
    pub below_version_num: Option<u32>,
    /// A parameter waits for it.
    pub pending: bool,
}

/// A role that a restart may ask for, in Patroni's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantedRole {
    /// Out of recovery.
    Primary,
    /// A standby.
    Replica,
    /// The first standby of a standby cluster. There are none here, so it never holds.
    StandbyLeader,
}

impl WantedRole {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            WantedRole::Primary => "primary",
            WantedRole::Replica => "replica",
            WantedRole::StandbyLeader => "standby_leader",
        }
    }
}

impl RestartConditions {
    /// The first condition that does not hold for this database, in words.
    pub fn unmet(&self, database: Option<&Database>) -> Option<String> {
        let is = |role| match (role, database) {
            (WantedRole::Primary, Some(d)) => d.role == Role::Primary,
            (WantedRole::Replica, Some(d)) => {
                d.role == Role::Standby || (d.has_data && d.role != Role::Primary)
            }
            _ => false,
        };
        if let Some(role) = self.role.filter(|role| !is(*role)) {
            return Some(format!("it is no {}", role.name()));
        }
        let version = database.and_then(|d| d.version_num);
        if let Some(limit) = self.below_version_num
            && version.is_none_or(|version| version >= limit)
        {
            return Some("its PostgreSQL is not older than asked for".into());
        }
        let pending = database.is_some_and(|d| !d.pending_restart.is_empty());
        (self.pending && !pending).then(|| "no parameter waits for a restart".into())
    }
}

/// What an applied change leaves in the events: its rule and its words.
type Told = Result<Option<(String, String)>, Rejected>;

fn told(text: String) -> Told {
    Ok(Some(("restart".into(), text)))
}

impl Record {
    pub(crate) fn schedule_restart(&mut self, name: &MemberId, wish: &ScheduledRestart) -> Told {
        if self.known(name)?.kind == MemberKind::Witness {
            return Err(refused(format!("{name} is a witness, and has no database")));
        }
        if self.scheduled_restarts.contains_key(name) {
            let why = format!("a restart of {name} is scheduled already");
            return Err(refused_as(Refusal::AlreadyScheduled, why));
        }
        self.scheduled_restarts.insert(name.clone(), wish.clone());
        told(format!("restart of {name} scheduled"))
    }

    pub(crate) fn cancel_restart(&mut self, name: &MemberId) -> Told {
        self.known(name)?;
        self.scheduled_restarts.remove(name).ok_or_else(|| {
            let why = format!("no restart of {name} is scheduled");
            refused_as(Refusal::NothingToCancel, why)
        })?;
        told(format!("scheduled restart of {name} cancelled"))
    }

    /// The time has come: it is asked for, or dropped for a reason. `at_unix_ms` says which one
    /// was judged, as it may be another by now.
    pub(crate) fn end_schedule(
        &mut self,
        name: &MemberId,
        at_unix_ms: u64,
        dropped: Option<&str>,
    ) -> Told {
        if self.scheduled_restarts.get(name).is_none_or(|wish| wish.at_unix_ms != at_unix_ms) {
            return Err(stale(format!("this restart of {name} is not scheduled any more")));
        }
        self.scheduled_restarts.remove(name);
        match dropped {
            Some(why) => told(format!("scheduled restart of {name} dropped: {why}")),
            None => {
                self.restarts.insert(name.clone(), self.version + 1);
                told(format!("restart of {name} begins as scheduled"))
            }
        }
    }

    /// A database that was restarted has what a later restart was to bring, as with Patroni.
    pub(crate) fn restart_done(&mut self, name: &MemberId) -> Told {
        self.restarts.remove(name).ok_or_else(|| stale("no restart was requested"))?;
        let text = match self.scheduled_restarts.remove(name) {
            Some(_) => format!("{name} restarted; the restart scheduled for later is dropped"),
            None => format!("{name} restarted"),
        };
        told(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Member, Path, Tags, command::Change, member::Ports};

    fn name(text: &str) -> MemberId {
        MemberId::new(text).unwrap()
    }

    fn record() -> Record {
        let mut record = Record::default();
        for (member, node, kind) in [("m1", 1, MemberKind::Data), ("w1", 2, MemberKind::Witness)] {
            let member = Member {
                name: name(member),
                node,
                kind,
                paths: vec![Path { host: member.into() }],
                ports: Ports::default(),
                zone: None,
                tags: Tags::default(),
                own_certificate: false,
            };
            record.members.insert(member.name.clone(), member);
        }
        record
    }

    fn apply(record: &mut Record, change: Change) -> Result<String, Rejected> {
        record.apply(&Command { at_unix_ms: 1, change })?;
        Ok(record.events.last().unwrap().text.clone())
    }

    fn schedule(member: &str) -> Change {
        let wish =
            ScheduledRestart { at_unix_ms: 9, only_if: Default::default(), timeout_seconds: None };
        Change::ScheduleRestart { member: name(member), wish }
    }

    fn end(at_unix_ms: u64, dropped: Option<&str>) -> Change {
        let dropped = dropped.map(str::to_owned);
        Change::EndScheduledRestart { member: name("m1"), at_unix_ms, dropped }
    }

    fn kind(refused: Result<String, Rejected>) -> Refusal {
        match refused.unwrap_err() {
            Rejected::Refused { kind, .. } => kind,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn one_is_kept_for_each_member_until_it_is_due_or_taken_back() {
        let mut record = record();
        assert_eq!(kind(apply(&mut record, schedule("m9"))), Refusal::UnknownMember);
        assert_eq!(kind(apply(&mut record, schedule("w1"))), Refusal::NotNow);
        let cancel = || Change::CancelRestart(name("m1"));
        assert_eq!(kind(apply(&mut record, cancel())), Refusal::NothingToCancel);

        apply(&mut record, schedule("m1")).unwrap();
        assert_eq!(kind(apply(&mut record, schedule("m1"))), Refusal::AlreadyScheduled);
        apply(&mut record, cancel()).unwrap();
        assert!(record.scheduled_restarts.is_empty() && record.restarts.is_empty());

        apply(&mut record, schedule("m1")).unwrap();
        assert!(matches!(apply(&mut record, end(8, None)), Err(Rejected::Stale(_))));
        apply(&mut record, end(9, None)).unwrap();
        assert!(record.scheduled_restarts.is_empty());
        assert_eq!(record.restarts[&name("m1")], record.version);
        assert_eq!(apply(&mut record, Change::RestartDone(name("m1"))).unwrap(), "m1 restarted");

        apply(&mut record, schedule("m1")).unwrap();
        let text = apply(&mut record, end(9, Some("it is no replica"))).unwrap();
        assert_eq!(text, "scheduled restart of m1 dropped: it is no replica");
        assert!(record.restarts.is_empty());
    }

    #[test]
    fn a_restart_by_hand_and_the_end_of_a_member_leave_none_behind() {
        let mut record = record();
        apply(&mut record, schedule("m1")).unwrap();
        apply(&mut record, Change::RequestRestart(name("m1"))).unwrap();
        assert_eq!(record.scheduled_restarts.len(), 1, "not before it is done");
        let text = apply(&mut record, Change::RestartDone(name("m1"))).unwrap();
        assert!(text.contains("dropped") && record.scheduled_restarts.is_empty(), "{text}");

        apply(&mut record, schedule("m1")).unwrap();
        apply(&mut record, Change::RemoveMember { name: name("m1"), force: false }).unwrap();
        assert!(record.scheduled_restarts.is_empty());
    }

    #[test]
    fn a_record_from_before_there_were_any_is_read() {
        let mut old = serde_json::to_value(record()).unwrap();
        old.as_object_mut().unwrap().remove("scheduled_restarts").unwrap();
        assert_eq!(serde_json::from_value::<Record>(old).unwrap(), record());
        let wish: ScheduledRestart = serde_json::from_str(r#"{"at_unix_ms": 7}"#).unwrap();
        assert_eq!((wish.only_if, wish.timeout_seconds), (RestartConditions::default(), None));
    }

    #[test]
    fn conditions_are_those_of_the_database_as_it_is() {
        let database = |role, pending: &[&str]| Database {
            role,
            has_data: true,
            version_num: Some(150_018),
            pending_restart: pending.iter().map(|p| (*p).to_owned()).collect(),
            ..Database::default()
        };
        let (primary, standby) = (database(Role::Primary, &[]), database(Role::Standby, &["x"]));
        let role = |role| RestartConditions { role: Some(role), ..Default::default() };
        let below = |num| RestartConditions { below_version_num: Some(num), ..Default::default() };
        let pending = RestartConditions { pending: true, ..Default::default() };
        for (conditions, for_primary, for_standby) in [
            (RestartConditions::default(), true, true),
            (role(WantedRole::Primary), true, false),
            (role(WantedRole::Replica), false, true),
            (role(WantedRole::StandbyLeader), false, false),
            (below(150_018), false, false),
            (below(150_019), true, true),
            (pending, false, true),
        ] {
            let met = |database| conditions.unmet(database).is_none();
            assert_eq!(met(Some(&primary)), for_primary, "{conditions:?}");
            assert_eq!(met(Some(&standby)), for_standby, "{conditions:?}");
            assert_eq!(met(None), conditions == Default::default(), "{conditions:?}");
        }
    }
}
