//! The server is lost: what the client is told of everything that was under way.

use super::{
    attach::NotAttached,
    link::{Farewell, Link},
    pool::ClientState,
    pump::Loss,
    resolve::Outcome,
    session::{Over, Session, Xid},
};
use crate::{CutReason, farewell, stats::count};
use sempre_model::{Generation, MemberId};
use sempre_wire::pg::{
    ErrorResponse, Severity, TransactionStatus, sqlstate,
    track::{CannotSettle, Hints, Outlook, Pending, Settled, Whose},
    write,
};

/// Which server it was.
pub(super) struct Where {
    pub member: MemberId,
    pub generation: Generation,
}

impl Session<'_> {
    /// Tells the client what became of what was under way. Ok: the session goes on, without a
    /// server.
    pub(super) async fn lost(&mut self, loss: Loss) -> Result<(), Over> {
        let Some(link) = self.link.take() else { return Ok(()) };
        let split = std::mem::take(&mut self.apart.on);
        self.key.runs(None);
        self.entry.info.is(ClientState::Idle);
        self.meter.forget();
        match &loss {
            Loss::Cut(CutReason::Shutdown) => {
                return Err(Over::Error(farewell::cut_error(&CutReason::Shutdown)));
            }
            Loss::Cut(_) => count(&self.proxy.shared.counters.cut),
            Loss::Unsuited => {}
            Loss::Ended(Farewell::Told) => return Err(Over::Silent),
            Loss::Ended(_) => count(&self.proxy.shared.counters.server_gone),
        }
        let shutdown = matches!(loss, Loss::Ended(Farewell::Shutdown));
        let Link { member, generation, down, .. } = link;
        let place = Where { member, generation };
        if !down.at_boundary() || self.broken {
            // Inside a message to the client nothing can be said; and a client that broke the
            // protocol heard what the server had to say.
            return Err(Over::Silent);
        }
        self.open = false;
        self.touched |= self.tracker.take_hints();
        if self.asking.take().is_some() {
            return Err(not_carriable(
                "The last statement may have changed it, and the server was lost before it could be asked.",
            ));
        }
        if self.secret_is_spent() {
            return Err(not_carriable("Its password passed through routing unseen."));
        }
        if let Some(stuck) = self.carried.stuck(self.tracker.statements()) {
            return Err(not_carriable(&format!("It has {stuck}.")));
        }
        if self.withheld.is_some() {
            return self.lost_withheld(&place).await;
        }
        if self.tracker.is_out_of_step() {
            return Err(not_carriable("What it asked for is not known for certain."));
        }
        if let Some(converted) = self.converted.take() {
            return self.lost_converted(*converted, &place).await;
        }
        let outlook = self.tracker.outlook();
        // Nothing is written on a standby: whatever it was, it may be run again.
        if outlook == Outlook::Commit && !split {
            return self.lost_committing(&place).await;
        }
        if outlook == Outlook::Autocommit && !split && self.knows_autocommit() {
            let outcome = self.resolve(&place).await?;
            return self.settle_autocommit(outcome, b"");
        }
        // A rolled-back transaction takes its settings with it, but not what outlives a rollback.
        let in_block = self.tracker.in_block() || self.tracker.status() != TransactionStatus::Idle;
        let lasting = Hints::PREPARED | Hints::ADVISORY | Hints::ANYTHING;
        if self.touched.any(if in_block { lasting } else { Hints::STATE }) {
            return Err(not_carriable(
                "Its last statements may have changed its state, and the server was lost before it could be asked.",
            ));
        }
        let error = match outlook {
            _ if split => self.lost_apart(&loss),
            Outlook::Quiet | Outlook::Answered | Outlook::RolledBack => rolled_back(),
            Outlook::Autocommit if shutdown => rolled_back(),
            Outlook::Autocommit => unknown("It was not in a transaction block"),
            Outlook::Commit | Outlook::Unknown => {
                unknown("Several statements were sent at once, and one of them may have committed")
            }
        };
        self.settle(Settled::Failed(&error))?;
        if split {
            self.come_home();
        }
        Ok(())
    }

    /// Forgets what was under way, of which the client has seen nothing.
    pub(super) fn settle_silently(&mut self) {
        (self.xid, self.touched) = (Xid::Unknown, Hints::NONE);
        // That an error can always be given is what failing means.
        let _ = self.tracker.settle(Settled::Failed(&rolled_back()), &mut Vec::new());
    }

    pub(super) fn settle(&mut self, settled: Settled<'_>) -> Result<(), Over> {
        (self.xid, self.touched) = (Xid::Unknown, Hints::NONE);
        let settled = self.tracker.settle(settled, &mut self.to_client);
        settled.map_err(|CannotSettle| {
            Over::Error(ErrorResponse::fatal(
                sqlstate::TRANSACTION_RESOLUTION_UNKNOWN,
                "terminating connection because answers are lost with the primary",
                "The transaction was committed; what its last statements answered is lost.",
                "Connect again.",
            ))
        })
    }

    /// A COMMIT is on its way.
    async fn lost_committing(&mut self, place: &Where) -> Result<(), Over> {
        // What stands behind the COMMIT, if anything does, ran by itself or not at all.
        let rest = unknown("It was sent behind a COMMIT whose server was lost");
        match self.resolve(place).await? {
            Outcome::Committed => {
                let touched = self.touched;
                self.settle(Settled::Committed { rest: &rest })?;
                match touched.any(Hints::STATE) {
                    true => Err(not_carriable("The committed transaction may have changed it.")),
                    false => Ok(()),
                }
            }
            Outcome::RolledBack => self.settle(Settled::Failed(&rolled_back())),
            Outcome::Unknown(why) => self.settle(Settled::Failed(&unknown(&why))),
        }
    }

    /// A commit's answer was withheld, and its server is gone.
    async fn lost_withheld(&mut self, place: &Where) -> Result<(), Over> {
        let Some(withheld) = self.withheld.take() else { return Ok(()) };
        let touched = self.touched;
        let theirs = |p: &Pending| p.whose == Whose::Client;
        if withheld.cycles != 1 || self.tracker.pending().any(theirs) {
            return Err(Over::Error(unknown_fatal()));
        }
        // Nothing but our own questions is under way.
        self.settle(Settled::Failed(&rolled_back()))?;
        self.xid = withheld.xid;
        let outcome = self.resolve(place).await?;
        self.xid = Xid::Unknown;
        match outcome {
            Outcome::Committed => {
                self.to_client.extend_from_slice(&withheld.bytes);
                if touched.any(Hints::STATE) {
                    return Err(not_carriable("The committed transaction may have changed it."));
                }
                return Ok(());
            }
            Outcome::RolledBack => self.say_error(&rolled_back()),
            Outcome::Unknown(why) => self.say_error(&unknown(&why)),
        }
        write::ready_for_query(&mut self.to_client, TransactionStatus::Idle);
        Ok(())
    }

    fn say_error(&mut self, error: &ErrorResponse) {
        self.to_client.extend_from_slice(&error.encode());
    }
}

/// The error of a transaction that is rolled back for certain.
pub(super) fn rolled_back() -> ErrorResponse {
    ErrorResponse::error(
        sqlstate::SERIALIZATION_FAILURE,
        "the primary has changed, and the transaction was rolled back",
        "",
        "Run the transaction again, in this same session.",
    )
}

pub(super) fn unknown(why: &str) -> ErrorResponse {
    ErrorResponse::error(
        sqlstate::TRANSACTION_RESOLUTION_UNKNOWN,
        "the primary was lost, and whether the statement was committed is not known",
        format!("{why}."),
        "Look whether its effect is there before you run it again; explicit transactions are found out about.",
    )
}

fn unknown_fatal() -> ErrorResponse {
    ErrorResponse { severity: Severity::Fatal, ..unknown("Several statements were under way") }
}

/// The end of a session that another server cannot take over.
pub(super) fn not_carriable(why: &str) -> Over {
    Over::Error(ErrorResponse::fatal(
        sqlstate::ADMIN_SHUTDOWN,
        "terminating connection because the session cannot be carried to the new primary",
        why,
        "Connect again.",
    ))
}

impl From<NotAttached> for Over {
    fn from(not: NotAttached) -> Self {
        match not {
            NotAttached::ClientGone => Over::Silent,
            NotAttached::Error(error) => Over::Error(error),
            NotAttached::Raw(raw) => Over::Raw(raw),
        }
    }
}
