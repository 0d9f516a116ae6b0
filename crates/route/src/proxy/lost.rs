//! The server is lost: what the client is told of everything that was under way.

use super::{
    attach::NotAttached,
    flow::{Kind, Owner, Pending},
    link::{Farewell, Link},
    pump::Loss,
    resolve::Outcome,
    session::{Over, Session, Xid},
    text::Traits,
};
use crate::{CutReason, farewell, stats::count};
use sempre_model::{Generation, MemberId};
use sempre_wire::pg::{ErrorResponse, Severity, TransactionStatus, sqlstate, write};

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
        self.key.runs(None);
        match &loss {
            Loss::Cut(CutReason::Shutdown) => {
                return Err(Over::Error(farewell::cut_error(&CutReason::Shutdown)));
            }
            Loss::Cut(_) => count(&self.proxy.shared.counters.cut),
            Loss::Ended(Farewell::Told) => return Err(Over::Silent),
            Loss::Ended(_) => count(&self.proxy.shared.counters.server_gone),
        }
        let shutdown = matches!(loss, Loss::Ended(Farewell::Shutdown));
        let Link { member, generation, down, .. } = link;
        let place = Where { member, generation };
        if !down.at_boundary() {
            // Inside a message to the client nothing can be said.
            return Err(Over::Silent);
        }
        // The rest of a message that the old server has the beginning of.
        self.dropping |= !self.up.at_boundary();
        self.collecting = false;
        self.parsing.clear();
        self.portals.clear();
        if self.asking.take().is_some() {
            return Err(not_carriable(
                "The last statement may have changed it, and the server was lost before it could be asked.",
            ));
        }
        if self.secret_is_spent() {
            return Err(not_carriable("Its password passed through routing unseen."));
        }
        if let Some(stuck) = self.carried.stuck() {
            return Err(not_carriable(&format!("It has {stuck}.")));
        }
        if self.withheld.is_some() {
            return self.lost_withheld(&place).await;
        }
        let quiet = self.flow.quiet();
        let pending: Vec<Pending> =
            self.flow.pending().filter(|p| p.owner == Owner::Client).copied().collect();
        let skipping = self.flow.skipping();
        self.flow.clear();
        let status = self.flow.status;
        if status != TransactionStatus::Idle {
            // What a rolled-back transaction has set is gone, but for what outlives a rollback.
            if self.touched.has(Traits::LASTING) {
                return Err(not_carriable(
                    "The lost transaction may have prepared statements or taken advisory locks.",
                ));
            }
        }
        if quiet {
            return self.lost_idle(status);
        }
        self.lost_busy(&place, pending, skipping, shutdown).await
    }

    fn lost_idle(&mut self, status: TransactionStatus) -> Result<(), Over> {
        match status {
            TransactionStatus::Idle if self.touched.has(Traits::STATE.with(Traits::LASTING)) => {
                Err(not_carriable(
                    "The last statements may have changed it, and the server was lost before it could be asked.",
                ))
            }
            TransactionStatus::InBlock => {
                self.touched = Traits::default();
                (self.xid, self.wrote) = (Xid::Unknown, false);
                self.lost_block = true;
                Ok(())
            }
            TransactionStatus::Idle | TransactionStatus::Failed => Ok(()),
        }
    }

    /// Answers every exchange that is under way, in order.
    async fn lost_busy(
        &mut self,
        place: &Where,
        pending: Vec<Pending>,
        skipping: bool,
        shutdown: bool,
    ) -> Result<(), Over> {
        let mut block = self.flow.status != TransactionStatus::Idle;
        let mut failed = self.flow.status == TransactionStatus::Failed;
        // An error was answered in this exchange already.
        let mut told = skipping;
        let mut first = true;
        let mut rest = &pending[..];
        while !rest.is_empty() || first {
            let end = rest.iter().position(Pending::ends_cycle);
            let (exchange, behind) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
            rest = behind;
            if exchange.iter().all(|p| p.kind == Kind::CopyEnd) && !exchange.is_empty() {
                continue;
            }
            let traits = exchange.iter().fold(Traits::default(), |traits, p| traits.with(p.traits));
            // An error whose ReadyForQuery is on its way: only that is missing.
            let only_ready = exchange.len() == 1 && exchange[0].kind == Kind::Sync;
            if told {
                // Inside an exchange that has its error.
            } else if block && !failed && traits.has(Traits::COMMITS) {
                let outcome = match self.is_just_commit(exchange) {
                    true => self.resolve(place).await?,
                    false => Outcome::Unknown("it was sent together with other statements".into()),
                };
                block = false;
                match outcome {
                    Outcome::Committed => {
                        self.answer_committed(exchange);
                        if self.touched.has(Traits::STATE) {
                            return Err(not_carriable(
                                "The committed transaction may have changed it.",
                            ));
                        }
                    }
                    Outcome::RolledBack => self.say_error(&rolled_back()),
                    Outcome::Unknown(why) => self.say_error(&unknown(&why)),
                }
            } else if block {
                if !(only_ready && failed) {
                    self.say_error(&rolled_back());
                }
                failed = true;
            } else if end.is_none() || (first && shutdown) || is_just_begin(traits) {
                self.say_error(&rolled_back());
            } else {
                self.say_error(&unknown("it was not in a transaction block"));
            }
            told = false;
            first = false;
            self.flow.status = match block {
                true => TransactionStatus::Failed,
                false => TransactionStatus::Idle,
            };
            match end {
                Some(_) => write::ready_for_query(&mut self.to_client, self.flow.status),
                None => self.flow.skip(),
            }
        }
        (self.xid, self.wrote, self.completed) = (Xid::Unknown, false, false);
        if !block && self.touched.has(Traits::LASTING) {
            return Err(not_carriable(
                "The lost statements may have prepared statements or taken advisory locks.",
            ));
        }
        self.touched = Traits::default();
        Ok(())
    }

    /// A commit's answer was withheld, and its server is gone.
    async fn lost_withheld(&mut self, place: &Where) -> Result<(), Over> {
        let Some(withheld) = self.withheld.take() else { return Ok(()) };
        let whole = self.flow.pending().all(|p| p.owner != Owner::Client);
        self.flow.clear();
        self.flow.status = TransactionStatus::Idle;
        if !whole || withheld.cycles != 1 {
            return Err(Over::Error(unknown_fatal()));
        }
        self.xid = withheld.xid;
        let outcome = self.resolve(place).await?;
        self.xid = Xid::Unknown;
        match outcome {
            Outcome::Committed => {
                self.to_client.extend_from_slice(&withheld.bytes);
                if self.touched.has(Traits::STATE.with(Traits::LASTING)) {
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

    /// Is everything that is not yet answered in this exchange the COMMIT alone?
    fn is_just_commit(&self, exchange: &[Pending]) -> bool {
        exchange.iter().all(|p| match p.kind {
            Kind::Query | Kind::Execute => p.traits.has(Traits::JUST_COMMIT),
            Kind::Call => false,
            _ => true,
        })
    }

    /// Makes up the answers of an exchange whose COMMIT was done.
    fn answer_committed(&mut self, exchange: &[Pending]) {
        let out = &mut self.to_client;
        for message in exchange {
            match message.kind {
                Kind::Parse => write::parse_complete(out),
                Kind::Bind => write::bind_complete(out),
                Kind::Close => write::close_complete(out),
                Kind::Describe => {
                    if message.named {
                        write::parameter_description(out, &[]);
                    }
                    write::no_data(out);
                }
                Kind::Query if self.completed => {}
                Kind::Query | Kind::Execute => write::command_complete(out, "COMMIT"),
                Kind::Sync | Kind::Call | Kind::CopyEnd => {}
            }
        }
    }
}

/// BEGIN and nothing that could be committed.
fn is_just_begin(traits: Traits) -> bool {
    traits.has(Traits::BEGINS) && !traits.has(Traits::COMMITS)
}

fn error(code: &'static str, message: &str, detail: String, hint: &str) -> ErrorResponse {
    ErrorResponse { severity: Severity::Error, ..ErrorResponse::fatal(code, message, detail, hint) }
}

/// The error of a transaction that is rolled back for certain.
pub(super) fn rolled_back() -> ErrorResponse {
    error(
        sqlstate::SERIALIZATION_FAILURE,
        "the primary has changed, and the transaction was rolled back",
        String::new(),
        "Run the transaction again, in this same session.",
    )
}

fn unknown(why: &str) -> ErrorResponse {
    error(
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
