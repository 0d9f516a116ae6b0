//! What became of the work in flight when the server is lost.

use super::pending::{Kind, Whose};
use super::text::{Text, Verb};
use super::{Copy, Hints, Tracker};
use crate::pg::backend::TransactionStatus;

/// What can have become of what was in flight; of several pieces of work, the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outlook {
    /// There was nothing.
    Quiet,
    /// The client knows the result; at most ReadyForQuery is missing.
    Answered,
    /// Whatever it was, nothing of it was committed, or there was nothing to commit.
    RolledBack,
    /// Work outside a transaction block: committed or not.
    Autocommit,
    /// A transaction block's COMMIT: the transaction's id can tell.
    Commit,
    /// Two-phase commit, or several commits at once: no one id can tell.
    Unknown,
}

/// Where the session can stand, as far as what is not answered leaves it open: any statement may
/// have failed.
#[derive(Clone, Copy, Default)]
struct States {
    /// Outside a block.
    out: bool,
    /// In one.
    block: bool,
    /// In one that failed.
    failed: bool,
}

impl States {
    const ALL: Self = Self { out: true, block: true, failed: true };

    fn or(self, other: Self) -> Self {
        Self {
            out: self.out || other.out,
            block: self.block || other.block,
            failed: self.failed || other.failed,
        }
    }

    /// After a statement failed.
    fn after_error(self) -> Self {
        Self { out: self.out, block: false, failed: self.block || self.failed }
    }

    /// After these statements succeeded.
    fn after(self, text: Text) -> Self {
        let ends = Hints::COMMITS | Hints::ROLLS_BACK | Hints::TWO_PHASE;
        if !text.hints.any(ends | Hints::BEGINS) && text.verb != Verb::RollbackTo {
            return self;
        }
        let chains = text.hints.any(Hints::CHAINS);
        match text.verb {
            _ if text.statements > 1 => Self::ALL,
            Verb::Begin => Self { block: self.out || self.block, out: false, ..self },
            Verb::RollbackTo => Self { block: self.block || self.failed, ..self },
            Verb::Commit | Verb::Rollback if chains => Self { out: self.out, ..Self::ALL },
            Verb::Commit | Verb::Rollback | Verb::PrepareTransaction => {
                Self { out: true, block: false, failed: false }
            }
            Verb::FinishPrepared => self,
            _ => Self::ALL,
        }
    }
}

/// What was sent, read in its order.
#[derive(Clone, Copy)]
struct Walk {
    states: States,
    /// Where an error in the cycle so far leads.
    errors: States,
    /// Work outside a block that waits for its Sync.
    implicit: bool,
}

impl Tracker {
    /// What became of the client's work in flight, were the server lost now.
    ///
    /// It goes by what was sent, whether or not it arrived. What of the answers arrived but was
    /// not given to [`Tracker::heard`] counts as not arrived.
    pub fn outlook(&self) -> Outlook {
        let failed = self.in_block && (self.status == TransactionStatus::Failed || self.skipping);
        let states = States { out: !self.in_block, block: self.in_block && !failed, failed };
        let implicit = self.implicit && !self.skipping;
        let mut walk = Walk { states, errors: states.after_error(), implicit };
        let mut worst = match (self.in_block || implicit, self.skipping) {
            (true, _) => Outlook::RolledBack,
            (false, true) => Outlook::Answered,
            (false, false) => Outlook::Quiet,
        };
        let mut in_doubt = 0_usize;
        let mut copying = self.copy == Copy::In;
        for pending in self.pending.iter().filter(|pending| pending.whose == Whose::Client) {
            let outlook = match pending.kind {
                _ if pending.is_answered() => walk.answered(pending.failed),
                // The oldest waits for data, which the client has not ended.
                Kind::Query if std::mem::take(&mut copying) && pending.text.statements <= 1 => {
                    Outlook::RolledBack
                }
                Kind::Query | Kind::FunctionCall => walk.query(pending.text),
                Kind::Execute => walk.execute(pending.text),
                Kind::Sync => walk.sync(),
                // Nothing runs, but an answer is missing.
                _ => Outlook::RolledBack,
            };
            in_doubt += usize::from(outlook >= Outlook::Autocommit);
            worst = worst.max(outlook);
        }
        // Several simple queries in a row, each by itself: no id tells about all of them.
        if in_doubt > 1 && worst >= Outlook::Commit { Outlook::Unknown } else { worst }
    }
}

impl Walk {
    /// The client knows the result: only ReadyForQuery is missing.
    fn answered(&mut self, failed: bool) -> Outlook {
        if failed {
            self.states = self.states.after_error();
        }
        self.implicit = false;
        self.errors = self.states.after_error();
        Outlook::Answered
    }

    fn query(&mut self, text: Text) -> Outlook {
        // A simple query ends an extended cycle that had no Sync, too.
        let outlook = self.judge(text).max(self.sync());
        self.states = self.states.after(text).or(self.states.after_error());
        self.errors = self.states.after_error();
        outlook
    }

    fn execute(&mut self, text: Text) -> Outlook {
        let by_itself = Hints::TWO_PHASE | Hints::SELF_COMMITS;
        let mut outlook = Outlook::RolledBack;
        if self.states.block || self.states.failed || text.hints.any(by_itself) {
            outlook = self.judge_in_cycle(text);
        }
        if self.states.out {
            if text.hints.any(Hints::COMMITS) {
                // Outside a block, it commits the cycle's work.
                outlook = outlook.max(self.sync_of_work());
            } else if !matches!(text.verb, Verb::Begin | Verb::Session | Verb::Empty) {
                self.implicit = true;
            }
        }
        // What follows in the cycle runs only if this succeeds.
        self.errors = self.errors.or(self.states.after_error());
        self.states = self.states.after(text);
        outlook
    }

    fn sync(&mut self) -> Outlook {
        let outlook = self.sync_of_work();
        self.states = self.states.or(self.errors);
        self.errors = self.states.after_error();
        outlook
    }

    fn sync_of_work(&mut self) -> Outlook {
        let in_doubt = std::mem::take(&mut self.implicit) && self.states.out;
        if in_doubt { Outlook::Autocommit } else { Outlook::Answered }
    }

    /// What these statements can have done by the end of their text, wherever it began.
    fn judge(&self, text: Text) -> Outlook {
        let out = if self.states.out { outside(text) } else { Outlook::RolledBack };
        out.max(self.judge_block(text))
    }

    /// The same for a statement of an extended cycle, which commits only at its end, or by itself.
    fn judge_in_cycle(&self, text: Text) -> Outlook {
        let by_itself = text.hints.any(Hints::TWO_PHASE | Hints::SELF_COMMITS);
        let out = if self.states.out && by_itself { outside(text) } else { Outlook::RolledBack };
        out.max(self.judge_block(text))
    }

    fn judge_block(&self, text: Text) -> Outlook {
        let only_failed = !self.states.block && text.statements == 1;
        match self.states.block || self.states.failed {
            true if !only_failed => inside(text),
            _ => Outlook::RolledBack,
        }
    }
}

/// What statements can have done that began inside a block.
fn inside(text: Text) -> Outlook {
    if text.hints.any(Hints::TWO_PHASE) {
        return Outlook::Unknown;
    }
    match text.hints.any(Hints::COMMITS) {
        // What comes behind the COMMIT may be committed by itself.
        true if text.statements > 1 => Outlook::Unknown,
        true => Outlook::Commit,
        // The statements behind a ROLLBACK are outside.
        false if text.hints.any(Hints::ROLLS_BACK) && text.statements > 1 => Outlook::Autocommit,
        false => Outlook::RolledBack,
    }
}

/// What statements can have done that began outside a block.
fn outside(text: Text) -> Outlook {
    if text.hints.any(Hints::TWO_PHASE) {
        return Outlook::Unknown;
    }
    let ends = text.hints.any(Hints::COMMITS | Hints::ROLLS_BACK);
    match text.verb {
        Verb::Begin if !ends => Outlook::RolledBack,
        Verb::Commit
        | Verb::Rollback
        | Verb::RollbackTo
        | Verb::Savepoint
        | Verb::Session
        | Verb::Empty
            if text.statements <= 1 =>
        {
            Outlook::RolledBack
        }
        _ => Outlook::Autocommit,
    }
}
