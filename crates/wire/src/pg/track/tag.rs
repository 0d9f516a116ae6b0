//! What a CommandComplete's tag says.

use super::hints::Hints;

/// A command as its tag shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Begin,
    Commit,
    /// ROLLBACK; of ROLLBACK TO the tag is the same.
    Rollback,
    PrepareTransaction,
    /// DEALLOCATE ALL and DISCARD ALL.
    ForgetStatements,
    /// It reads, or is about the session or the transaction.
    Reads,
    /// It may have written.
    Writes,
}

pub(super) fn command(tag: &[u8]) -> Command {
    let word = tag.split(|byte| *byte == b' ').next().unwrap_or_default();
    match word {
        b"INSERT" | b"UPDATE" | b"DELETE" | b"MERGE" => Command::Writes,
        b"SELECT" | b"SHOW" | b"FETCH" | b"MOVE" | b"SET" | b"RESET" | b"SAVEPOINT"
        | b"RELEASE" | b"DECLARE" | b"CLOSE" | b"EXPLAIN" | b"LISTEN" | b"UNLISTEN" | b"LOAD"
        | b"CHECKPOINT" => Command::Reads,
        b"BEGIN" => Command::Begin,
        b"START" if tag == b"START TRANSACTION" => Command::Begin,
        b"COMMIT" if tag == b"COMMIT" => Command::Commit,
        b"ROLLBACK" if tag == b"ROLLBACK" => Command::Rollback,
        b"PREPARE" if tag == b"PREPARE TRANSACTION" => Command::PrepareTransaction,
        b"PREPARE" => Command::Reads,
        b"DEALLOCATE" | b"DISCARD" if tag.ends_with(b" ALL") => Command::ForgetStatements,
        b"DEALLOCATE" | b"DISCARD" => Command::Reads,
        _ => Command::Writes,
    }
}

/// What state of the session may have changed.
pub(super) fn hints(tag: &[u8]) -> Hints {
    match tag {
        b"SET" | b"RESET" => Hints::SETTINGS,
        b"LISTEN" | b"UNLISTEN" => Hints::LISTENING,
        b"PREPARE" | b"DEALLOCATE" | b"DEALLOCATE ALL" => Hints::PREPARED,
        b"DO" | b"CALL" | b"LOAD" => Hints::ANYTHING,
        _ if tag.starts_with(b"DISCARD") => Hints::ANYTHING,
        _ => Hints::NONE,
    }
}
