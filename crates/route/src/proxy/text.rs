//! What the text of a statement may do, as far as the proxy must know before it runs.
//!
//! Hints, not parsing: every text that does the thing has the trait; some that do not have it too.
//! What really happened is asked from the server.

/// A set of hints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traits(u8);

impl Traits {
    /// May commit a transaction block.
    pub const COMMITS: Self = Self(1);
    /// Is COMMIT (or END) and nothing else: its answer is known.
    pub const JUST_COMMIT: Self = Self(2);
    /// Is ROLLBACK (or ABORT) and nothing else.
    pub const JUST_ROLLBACK: Self = Self(4);
    /// May begin a transaction block.
    pub const BEGINS: Self = Self(8);
    /// May change what belongs to the session and is undone by a rollback: settings, channels.
    pub const STATE: Self = Self(16);
    /// May change what belongs to the session and is not undone by a rollback: prepared
    /// statements, advisory locks.
    pub const LASTING: Self = Self(32);
    /// May drop prepared statements, ours too.
    pub const DEALLOCATES: Self = Self(64);
    /// Too long to be seen whole.
    pub const UNSEEN: Self = Self(1 | 8 | 16 | 32 | 64);

    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The hints a text gives.
pub(crate) fn traits(text: &[u8]) -> Traits {
    let mut found = Traits::default();
    // Words of the first statement, as far as they matter for "nothing else".
    let mut words = 0_usize;
    let mut first = First::Other;
    let mut plain = true;
    let mut statements = 0_usize;
    let mut at_start = true;
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0c | 0x0b => at += 1,
            b'-' if text.get(at + 1) == Some(&b'-') => {
                at = text[at..].iter().position(|b| *b == b'\n').map_or(text.len(), |n| at + n);
            }
            b'/' if text.get(at + 1) == Some(&b'*') => {
                // Nested ones end late in PostgreSQL; here they end early, which only adds hints.
                at = find(&text[at + 2..], b"*/").map_or(text.len(), |n| at + 2 + n + 2);
            }
            b';' => {
                at_start = true;
                at += 1;
            }
            b if is_word(b) => {
                let end =
                    text[at..].iter().position(|b| !is_word(*b)).map_or(text.len(), |n| at + n);
                let word = &text[at..end];
                if at_start {
                    statements += 1;
                    let (hints, kind) = first_word(word);
                    found = found.with(hints);
                    if statements == 1 {
                        first = kind;
                    }
                    at_start = false;
                } else {
                    found = found.with(any_word(word));
                    words += 1;
                    plain &= word.eq_ignore_ascii_case(b"work")
                        || word.eq_ignore_ascii_case(b"transaction");
                }
                at = end;
            }
            _ => {
                plain = false;
                at_start = false;
                at += 1;
            }
        }
    }
    if statements == 1 && plain && words <= 1 {
        match first {
            First::Commit => found = found.with(Traits::JUST_COMMIT),
            First::Rollback => found = found.with(Traits::JUST_ROLLBACK),
            First::Other => {}
        }
    }
    found
}

/// What a statement is by its first word, for "nothing else".
enum First {
    Commit,
    Rollback,
    Other,
}

fn first_word(word: &[u8]) -> (Traits, First) {
    let mut lower = [0; 10];
    let Some(lower) = lower_case(word, &mut lower) else { return (any_word(word), First::Other) };
    let state = Traits::STATE;
    let traits = match lower {
        b"commit" | b"end" => return (Traits::COMMITS, First::Commit),
        b"rollback" | b"abort" => return (Traits::default(), First::Rollback),
        b"begin" | b"start" => Traits::BEGINS,
        b"set" | b"reset" | b"listen" | b"unlisten" | b"declare" => state,
        // PREPARE TRANSACTION too.
        b"prepare" => Traits::COMMITS.with(state).with(Traits::LASTING),
        b"deallocate" | b"discard" => state.with(Traits::LASTING).with(Traits::DEALLOCATES),
        b"load" | b"execute" => state.with(Traits::LASTING),
        // Code of any kind; a procedure may also commit, but not inside a block.
        b"do" | b"call" => state.with(Traits::LASTING).with(Traits::DEALLOCATES),
        _ => any_word(lower),
    };
    (traits, First::Other)
}

fn any_word(word: &[u8]) -> Traits {
    // The common case first: few words begin with these letters.
    match word.first().map(u8::to_ascii_lowercase) {
        Some(b't' | b's' | b'p') => {}
        _ => return Traits::default(),
    }
    let mut lower = [0; 32];
    let Some(lower) = lower_case(word, &mut lower) else { return Traits::default() };
    match lower {
        b"temp" | b"temporary" | b"set_config" => Traits::STATE,
        _ if lower.starts_with(b"pg_temp") => Traits::STATE,
        _ if lower.starts_with(b"pg_advisory") || lower.starts_with(b"pg_try_advisory") => {
            Traits::LASTING
        }
        _ => Traits::default(),
    }
}

fn lower_case<'a>(word: &[u8], space: &'a mut [u8]) -> Option<&'a [u8]> {
    let space = space.get_mut(..word.len())?;
    space.copy_from_slice(word);
    space.make_ascii_lowercase();
    Some(space)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The string at the front of a message's body.
pub(crate) fn read_string(body: &[u8]) -> Option<&[u8]> {
    body.iter().position(|byte| *byte == 0).map(|end| &body[..end])
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(text: &str, what: Traits) -> bool {
        traits(text.as_bytes()).has(what)
    }

    #[test]
    fn commits_are_seen_wherever_they_stand() {
        for text in [
            "COMMIT",
            " end;",
            "insert into t values (1); commit",
            "/* x */ Commit work ;",
            "-- c\ncommit and chain",
            "prepare transaction 'x'",
            "select ';'; commit",
        ] {
            assert!(has(text, Traits::COMMITS), "{text}");
        }
        assert!(has("commit transaction;", Traits::JUST_COMMIT));
        assert!(has(" COMMIT ; ", Traits::JUST_COMMIT));
        for text in ["commit and chain", "commit; select 1", "commit prepared 'x'", "select 1"] {
            assert!(!has(text, Traits::JUST_COMMIT), "{text}");
        }
        assert!(has("rollback", Traits::JUST_ROLLBACK));
        assert!(!has("rollback to a", Traits::JUST_ROLLBACK));
        assert!(!has("select case when a then b end from t", Traits::COMMITS));
    }

    #[test]
    fn state_is_seen_and_ordinary_statements_have_none() {
        for text in [
            "set x = 1",
            "select set_config('a','b',false)",
            "LISTEN a",
            "reset all",
            "create temp table x()",
            "select 1 into temporary t",
            "discard all",
            "do $$ $$",
            "create table pg_temp.x()",
            "declare c cursor with hold for select 1",
        ] {
            assert!(has(text, Traits::STATE), "{text}");
        }
        for text in [
            "select pg_advisory_lock(1)",
            "prepare a as select 1",
            "select pg_catalog.pg_try_advisory_lock(1)",
        ] {
            assert!(has(text, Traits::LASTING), "{text}");
        }
        for text in [
            "update t set a = 1 where b = 2",
            "select abalance from pgbench_accounts where aid = 7",
            "insert into t values ('a;b')",
            "begin",
            "alter table t set (fillfactor=10)",
        ] {
            assert!(!has(text, Traits::STATE.with(Traits::LASTING)), "{text}");
        }
    }
}
