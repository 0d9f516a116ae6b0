//! What became of the work in flight when the server is lost.

use super::pending::{Kind, Whose};
use super::text::{Text, Verb};
use super::{Hints, Tracker};
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

/// A transaction, as the walk over what is in flight knows it.
#[derive(Clone, Copy)]
struct Walk {
    in_block: bool,
    /// The block is one that failed.
    failed: bool,
    /// Work outside a block that waits for its Sync.
    implicit: bool,
}

impl Tracker {
    /// What became of the client's work in flight, were the server lost now.
    ///
    /// It goes by what was sent, whether or not it arrived. What of the answers arrived but was
    /// not given to [`Tracker::heard`] counts as not arrived.
    pub fn outlook(&self) -> Outlook {
        let mut walk = Walk {
            in_block: self.in_block,
            failed: self.status == TransactionStatus::Failed && self.in_block,
            implicit: self.implicit && !self.skipping,
        };
        let mut worst = match (walk.in_block || walk.implicit, self.skipping) {
            (true, _) => Outlook::RolledBack,
            (false, true) => Outlook::Answered,
            (false, false) => Outlook::Quiet,
        };
        let mut in_doubt = 0_usize;
        for pending in self.pending.iter().filter(|pending| pending.whose == Whose::Client) {
            let outlook = if pending.is_answered() {
                walk.failed |= pending.failed && walk.in_block;
                walk.implicit = false;
                Outlook::Answered
            } else {
                match pending.kind {
                    Kind::Query => walk.query(pending.text),
                    Kind::Execute => walk.execute(pending.text),
                    Kind::Sync => walk.sync(),
                    Kind::FunctionCall if walk.in_block => Outlook::RolledBack,
                    Kind::FunctionCall => Outlook::Autocommit,
                    // Nothing runs, but an answer is missing.
                    _ => Outlook::RolledBack,
                }
            };
            in_doubt += usize::from(outlook >= Outlook::Autocommit);
            worst = worst.max(outlook);
        }
        // Several simple queries in a row, each by itself: no id tells about all of them.
        if in_doubt > 1 && worst >= Outlook::Commit { Outlook::Unknown } else { worst }
    }
}

impl Walk {
    /// After these statements.
    fn follow(&mut self, text: Text) {
        let ends = text.hints.any(Hints::COMMITS | Hints::ROLLS_BACK | Hints::TWO_PHASE);
        let begins = text.hints.any(Hints::BEGINS | Hints::CHAINS);
        if ends || begins {
            self.in_block = begins;
            self.failed = false;
        }
    }

    fn query(&mut self, text: Text) -> Outlook {
        let outlook = self.judge(text);
        // A simple query ends an extended cycle that had no Sync, too.
        let outlook = outlook.max(self.sync());
        self.follow(text);
        outlook
    }

    fn execute(&mut self, text: Text) -> Outlook {
        let outlook = if self.in_block || text.hints.any(Hints::TWO_PHASE | Hints::SELF_COMMITS) {
            self.judge(text)
        } else if text.hints.any(Hints::COMMITS) {
            // Outside a block, it commits the cycle's work.
            self.sync()
        } else {
            self.implicit |= !matches!(text.verb, Verb::Begin | Verb::Session | Verb::Empty);
            Outlook::RolledBack
        };
        self.follow(text);
        outlook
    }

    fn sync(&mut self) -> Outlook {
        let in_doubt = std::mem::take(&mut self.implicit) && !self.in_block;
        if in_doubt { Outlook::Autocommit } else { Outlook::Answered }
    }

    /// What these statements can have done by the end of their text.
    fn judge(&self, text: Text) -> Outlook {
        let ends = text.hints.any(Hints::COMMITS | Hints::ROLLS_BACK | Hints::TWO_PHASE);
        if self.failed && text.statements == 1 {
            return Outlook::RolledBack;
        }
        if text.hints.any(Hints::TWO_PHASE) {
            return Outlook::Unknown;
        }
        if self.in_block {
            return match text.hints.any(Hints::COMMITS) {
                // What comes behind the COMMIT may be committed by itself.
                true if text.statements > 1 => Outlook::Unknown,
                true => Outlook::Commit,
                // The statements behind a ROLLBACK are outside.
                false if ends && text.statements > 1 => Outlook::Autocommit,
                false => Outlook::RolledBack,
            };
        }
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
}
