//! What became of a commit whose answer was lost.
//!
//! The new primary is asked by the transaction's id. An id alone is not enough: a transaction that
//! never reached the new primary leaves its id to be used again there. So with the id we learned
//! the position of a WAL record that carries it. A server whose recovery ended before that position
//! has never seen the transaction, let alone its commit; one whose recovery passed that position
//! knows the id, and cannot have given it to another one.
//!
//! Where recovery ended is `pg_last_wal_replay_lsn()`: it stays as it was when recovery ended. It is
//! the right one only if there was exactly one recovery since: the generation tells that for a
//! change of the primary, together with the server not having crashed since (then it would not
//! know any more that it received WAL).

use super::{
    lost::Where,
    session::{Identity, Over, Session, Xid},
    talk::Talk,
};
use sempre_wire::pg::{Side, write};
use std::time::Duration;
use tokio::time::{self, Instant};

/// How long a transaction that is still in progress is waited for: its old backend may be waiting
/// for standbys.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two questions.
const PROGRESS_PAUSE: Duration = Duration::from_millis(50);

/// The answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    RolledBack,
    /// And why.
    Unknown(String),
}

/// What the new server says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Recovery<'a> {
    /// Where its recovery ended; empty: there was none.
    replayed: &'a str,
    /// It received WAL from another server before it became the primary, and did not crash since.
    received: bool,
    /// Its recovery ended before the record that carries the id.
    before: bool,
}

/// Can the new server be asked by the id? `None`: yes.
fn judge(identity: &Identity, changes: u64, recovery: &Recovery<'_>) -> Option<Outcome> {
    match changes {
        // The same server, and no recovery since.
        0 if recovery.replayed == identity.replayed => None,
        0 if recovery.replayed.is_empty() => {
            Some(Outcome::Unknown("the server does not say where its recovery ended".into()))
        }
        0 if recovery.before => Some(Outcome::RolledBack),
        0 => None,
        1 if !recovery.received || recovery.replayed.is_empty() => Some(Outcome::Unknown(
            "the new primary was restarted, and does not know any more where it took over".into(),
        )),
        1 if recovery.before => Some(Outcome::RolledBack),
        1 => None,
        _ => Some(Outcome::Unknown("the primary has changed more than once".into())),
    }
}

impl Session<'_> {
    /// Finds out what became of the COMMIT that was on its way to `place`.
    pub(super) async fn resolve(&mut self, place: &Where) -> Result<Outcome, Over> {
        let identity = match std::mem::take(&mut self.xid) {
            // It had written nothing, and nothing ran since.
            Xid::None if !self.xid_stale => return Ok(Outcome::RolledBack),
            Xid::Known(identity) => identity,
            Xid::None | Xid::Unknown | Xid::Asked => {
                return Ok(Outcome::Unknown(
                    "its server was lost before the transaction's id was known".into(),
                ));
            }
        };
        let give_up = Instant::now() + PROGRESS_TIMEOUT;
        loop {
            self.attach().await?;
            let outcome = self.ask_outcome(&identity, place).await;
            match outcome {
                Some(Ok(outcome)) => {
                    tracing::info!(xid = identity.xid, ?outcome, "a commit was found out about");
                    return Ok(outcome);
                }
                // In progress.
                Some(Err(())) => {}
                // This server is lost too.
                None => self.link = None,
            }
            if Instant::now() >= give_up {
                return Ok(Outcome::Unknown("the transaction is still in progress".into()));
            }
            time::sleep(PROGRESS_PAUSE).await;
        }
    }

    async fn ask_outcome(
        &mut self,
        identity: &Identity,
        place: &Where,
    ) -> Option<Result<Outcome, ()>> {
        let link = self.link.as_mut()?;
        let changes = link.generation.0.saturating_sub(place.generation.0);
        if changes == 0 && link.member != place.member {
            return Some(Ok(Outcome::Unknown("another server has the same generation".into())));
        }
        let mut talk = Talk::new(&mut link.stream, Side::Backend, std::mem::take(&mut link.kept));
        let mut question = Vec::new();
        write::parse(
            &mut question,
            b"",
            b"select pg_catalog.pg_last_wal_replay_lsn(), \
              pg_catalog.pg_last_wal_receive_lsn() is not null, \
              coalesce(pg_catalog.pg_last_wal_replay_lsn() < $1::pg_catalog.pg_lsn, false)",
            &[],
        );
        write::bind(&mut question, b"", b"", &[Some(identity.lsn.as_bytes())]);
        write::execute(&mut question, b"", 0);
        write::sync(&mut question);
        let answers = talk.ask(&question, 1).await.ok()?;
        let row = answers.rows.first()?;
        let recovery = Recovery {
            replayed: row.first()?.as_deref().unwrap_or_default(),
            received: row.get(1)?.as_deref() == Some("t"),
            before: row.get(2)?.as_deref() == Some("t"),
        };
        let judged = judge(identity, changes, &recovery);
        let outcome = match judged {
            Some(outcome) => Ok(outcome),
            None => {
                let mut question = Vec::new();
                write::parse(
                    &mut question,
                    b"",
                    b"select pg_catalog.pg_xact_status($1::pg_catalog.xid8)",
                    &[],
                );
                write::bind(&mut question, b"", b"", &[Some(identity.xid.as_bytes())]);
                write::execute(&mut question, b"", 0);
                write::sync(&mut question);
                let answers = talk.ask(&question, 1).await.ok()?;
                if let Some((_, _, message)) = answers.errors.first() {
                    Ok(Outcome::Unknown(format!("the new primary says: {message}")))
                } else {
                    match answers.rows.first()?.first()?.as_deref() {
                        Some("committed") => Ok(Outcome::Committed),
                        Some("aborted") => Ok(Outcome::RolledBack),
                        Some("in progress") => Err(()),
                        _ => Ok(Outcome::Unknown("the transaction is too old".into())),
                    }
                }
            }
        };
        link.kept = talk.rest();
        Some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { xid: "7".into(), lsn: "0/5".into(), replayed: "0/1".into() }
    }

    #[test]
    fn a_server_that_never_saw_the_transaction_is_not_asked_by_its_id() {
        let ask = |changes, replayed, received, before| {
            judge(&identity(), changes, &Recovery { replayed, received, before })
        };
        // The same server, alive: it knows.
        assert_eq!(ask(0, "0/1", false, true), None);
        // It crashed: what it recovered counts.
        assert_eq!(ask(0, "0/4", false, true), Some(Outcome::RolledBack));
        assert_eq!(ask(0, "0/6", false, false), None);
        // Another one took over.
        assert_eq!(ask(1, "0/4", true, true), Some(Outcome::RolledBack));
        assert_eq!(ask(1, "0/6", true, false), None);
        // It crashed after it took over; or two took over, one after the other.
        assert!(matches!(ask(1, "0/9", false, false), Some(Outcome::Unknown(_))));
        assert!(matches!(ask(2, "0/9", true, false), Some(Outcome::Unknown(_))));
    }
}
