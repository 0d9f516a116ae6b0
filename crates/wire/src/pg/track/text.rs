//! Reads the text of statements: not to understand them, only to see what kind they are.
//!
//! The lexer knows strings, quoted names, dollar quotes and comments, so that `'; set x'` is no
//! SET. Where the text's meaning depends on what is not known here (a backslash behind what may
//! be half a character), it says so with [`Text::UNKNOWN`]'s hints. What a function does that a statement calls by another
//! name, no text shows.

use super::hints::Hints;

/// What a statement is, by its first words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verb {
    /// There is none.
    #[default]
    Empty,
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END.
    Commit,
    /// ROLLBACK, ABORT.
    Rollback,
    /// ROLLBACK TO.
    RollbackTo,
    /// SAVEPOINT, RELEASE.
    Savepoint,
    /// PREPARE TRANSACTION.
    PrepareTransaction,
    /// COMMIT PREPARED, ROLLBACK PREPARED.
    FinishPrepared,
    /// SELECT, VALUES, TABLE, WITH, FETCH, SHOW, EXPLAIN, DECLARE, MOVE, CLOSE.
    Read,
    /// INSERT, UPDATE, DELETE, MERGE.
    Write,
    /// COPY.
    Copy,
    /// SET, RESET, DISCARD, LISTEN, UNLISTEN, PREPARE, DEALLOCATE, LOAD.
    Session,
    /// EXECUTE of a statement prepared by SQL.
    Execute,
    /// Anything else (DO, CALL, what defines or maintains).
    Other,
}

/// A text's statements in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Text {
    /// The first statement.
    pub verb: Verb,
    /// How many statements there are.
    pub statements: u16,
    /// Of all statements together.
    pub hints: Hints,
}

impl Text {
    /// Nothing is known about it.
    pub const UNKNOWN: Self = Self {
        verb: Verb::Other,
        statements: u16::MAX,
        hints: Hints::ANYTHING.with(Hints::SELF_COMMITS).with(Hints::COMMITS),
    };

    /// Reads a whole text; `standard_strings`: see [`TextScan::new`].
    pub fn of(text: &[u8], standard_strings: bool) -> Self {
        let mut scan = TextScan::new(standard_strings);
        scan.feed(text);
        scan.finish()
    }

    /// Is this the one statement of its text?
    pub fn is_only(&self, verb: Verb) -> bool {
        self.verb == verb && self.statements == 1
    }

    /// Does it end a failed transaction block, by itself and for good?
    pub fn ends_block(&self) -> bool {
        matches!(self.verb, Verb::Commit | Verb::Rollback | Verb::PrepareTransaction)
            && self.statements == 1
            && !self.hints.any(Hints::CHAINS)
    }
}

impl Hints {
    const fn with(self, other: Self) -> Self {
        // BitOr is not const.
        Self::from_bits(self.bits() | other.bits())
    }
}

/// The longest name PostgreSQL keeps, bytes, and a bit; longer words are cut.
const WORD_MAX: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Inside {
    #[default]
    Nothing,
    /// `'...'`; with backslash escapes (`E'...'`) or without.
    String {
        escapes: bool,
    },
    /// Behind a backslash in a string with escapes.
    Escape,
    /// `"..."`
    Name,
    /// `$tag` up to the second `$`.
    DollarTag,
    /// `$tag$...`; this many bytes of the closing `$tag$` were seen.
    Dollar {
        matched: u8,
    },
    LineComment,
    BlockComment {
        depth: u16,
    },
}

/// Reads a text that comes in parts.
#[derive(Clone, Debug)]
pub struct TextScan {
    standard_strings: bool,
    inside: Inside,
    /// The byte before, where two make a token (`--`, `/*`, `*/`).
    before: u8,
    word: [u8; WORD_MAX],
    word_length: usize,
    tag: [u8; WORD_MAX],
    tag_length: usize,
    /// Words of this statement so far, up to a few.
    words: u8,
    /// This statement is about transactions: more words matter.
    verb: Verb,
    negated: bool,
    read: bool,
    hints: Hints,
    all: Text,
}

impl TextScan {
    /// At the beginning of a text. `standard_strings`: the setting `standard_conforming_strings`;
    /// without it, a backslash escapes in every string.
    pub fn new(standard_strings: bool) -> Self {
        Self {
            standard_strings,
            inside: Inside::Nothing,
            before: 0,
            word: [0; WORD_MAX],
            word_length: 0,
            tag: [0; WORD_MAX],
            tag_length: 0,
            words: 0,
            verb: Verb::Empty,
            negated: false,
            read: false,
            hints: Hints::NONE,
            all: Text::default(),
        }
    }
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The same, looked up.
const IS_WORD: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_word(byte as u8);
        byte += 1;
    }
    table
};

impl TextScan {
    /// Takes more of the text.
    pub fn feed(&mut self, mut text: &[u8]) {
        while let Some((&byte, rest)) = text.split_first() {
            // The long stretches first.
            if let Inside::String { .. } = self.inside {
                let plain = text.iter().position(|b| matches!(b, b'\'' | b'\\'));
                let plain = plain.unwrap_or(text.len());
                if plain > 0 {
                    self.before = text[plain - 1];
                    text = &text[plain..];
                    continue;
                }
            }
            if self.inside == Inside::Nothing && IS_WORD[usize::from(byte)] {
                let end = text.iter().position(|byte| !IS_WORD[usize::from(*byte)]);
                let (word, rest) = text.split_at(end.unwrap_or(text.len()));
                self.push_words(word);
                self.before = word[word.len() - 1];
                text = rest;
                continue;
            }
            self.step(byte);
            self.before = byte;
            text = rest;
        }
    }

    /// What the text was.
    pub fn finish(mut self) -> Text {
        self.end_word();
        // An open string or comment is an error of syntax: nothing of it runs.
        self.end_statement();
        self.all
    }

    fn step(&mut self, byte: u8) {
        match self.inside {
            Inside::Nothing => self.plain(byte),
            Inside::String { escapes } => match byte {
                // A doubled quote ends the string here and begins the next at once.
                b'\'' => self.leave(),
                _ if escapes => {
                    self.inside = Inside::Escape;
                    // As half a character of some encodings it would be no backslash.
                    if self.before >= 0x80 {
                        self.hints |= Text::UNKNOWN.hints;
                    }
                }
                _ => {}
            },
            Inside::Escape => self.inside = Inside::String { escapes: true },
            Inside::Name => match byte {
                b'"' => {
                    self.seen_anywhere();
                    self.word_length = 0;
                    self.words = self.words.saturating_add(1);
                    self.leave();
                }
                _ => self.push_word(byte),
            },
            Inside::DollarTag => match byte {
                b'$' => {
                    self.push_tag(byte);
                    self.inside = Inside::Dollar { matched: 0 };
                }
                _ if is_word(byte) && !(self.tag_length == 1 && byte.is_ascii_digit()) => {
                    self.push_tag(byte);
                }
                // A parameter, `$1`.
                _ => {
                    self.leave();
                    self.plain(byte);
                }
            },
            Inside::Dollar { matched } => {
                let matched = usize::from(matched);
                let tag = &self.tag[..self.tag_length];
                let matched = if byte == tag[matched] {
                    matched + 1
                } else {
                    // Only its first byte is a `$`: no shorter match can be inside another.
                    usize::from(byte == b'$')
                };
                if matched == self.tag_length {
                    self.leave();
                } else {
                    self.inside = Inside::Dollar { matched: matched as u8 };
                }
            }
            Inside::LineComment => {
                if matches!(byte, b'\n' | b'\r') {
                    self.leave();
                }
            }
            Inside::BlockComment { depth } => match (self.before, byte) {
                (b'/', b'*') => {
                    self.inside = Inside::BlockComment { depth: depth.saturating_add(1) };
                    // `/*/` opens one, and closes none.
                    self.before = 0;
                }
                (b'*', b'/') if depth == 1 => self.leave(),
                (b'*', b'/') => {
                    self.inside = Inside::BlockComment { depth: depth - 1 };
                }
                _ => {}
            },
        }
    }

    fn leave(&mut self) {
        self.inside = Inside::Nothing;
    }

    fn plain(&mut self, byte: u8) {
        if is_word(byte) || (byte == b'$' && self.word_length > 0) {
            self.push_word(byte);
            return;
        }
        let escapes = !self.standard_strings || (self.word_length == 1 && self.word[0] == b'e');
        self.end_word();
        match byte {
            b'\'' => self.inside = Inside::String { escapes },
            b'"' => self.inside = Inside::Name,
            b'$' => {
                self.tag_length = 0;
                self.push_tag(byte);
                self.inside = Inside::DollarTag;
            }
            b'-' if self.before == b'-' => self.inside = Inside::LineComment,
            b'*' if self.before == b'/' => self.inside = Inside::BlockComment { depth: 1 },
            b';' => self.end_statement(),
            _ => {}
        }
    }

    fn push_words(&mut self, bytes: &[u8]) {
        let from = self.word_length.min(WORD_MAX);
        let taken = bytes.len().min(WORD_MAX - from);
        let into = &mut self.word[from..from + taken];
        into.copy_from_slice(&bytes[..taken]);
        into.make_ascii_lowercase();
        self.word_length += bytes.len();
    }

    fn push_word(&mut self, byte: u8) {
        if self.word_length < WORD_MAX {
            self.word[self.word_length] = byte.to_ascii_lowercase();
        }
        self.word_length += 1;
    }

    fn push_tag(&mut self, byte: u8) {
        if self.tag_length < WORD_MAX {
            self.tag[self.tag_length] = byte;
            self.tag_length += 1;
        } else {
            // Too long to remember: where it ends is not known.
            self.hints |= Text::UNKNOWN.hints;
        }
    }

    fn end_word(&mut self) {
        if self.word_length == 0 {
            return;
        }
        if self.words == 0 {
            self.first_word();
        } else if self.words < 12 {
            self.next_word();
        }
        self.seen_anywhere();
        self.words = self.words.saturating_add(1);
        self.word_length = 0;
    }

    fn word(&self) -> &[u8] {
        &self.word[..self.word_length.min(WORD_MAX)]
    }

    /// Words that matter anywhere.
    fn seen_anywhere(&mut self) {
        let word = self.word();
        let hint = match word {
            b"temp" | b"temporary" => Hints::TEMPORARY,
            b"hold" => Hints::HELD,
            _ if word.len() < 7 => return,
            _ if word.starts_with(b"pg_temp") => Hints::TEMPORARY,
            _ if !word.contains(&b'_') => return,
            _ if contains(word, b"set_config") => Hints::SETTINGS,
            _ if contains(word, b"advisory") => Hints::ADVISORY,
            _ => return,
        };
        self.hints |= hint;
    }

    fn first_word(&mut self) {
        let (verb, hints) = match self.word() {
            b"select" | b"values" | b"table" | b"with" | b"fetch" | b"show" | b"explain"
            | b"declare" | b"move" | b"close" => (Verb::Read, Hints::NONE),
            b"insert" | b"update" | b"delete" | b"merge" => (Verb::Write, Hints::NONE),
            b"copy" => (Verb::Copy, Hints::NONE),
            b"begin" | b"start" => (Verb::Begin, Hints::BEGINS),
            b"commit" | b"end" => (Verb::Commit, Hints::NONE),
            b"rollback" | b"abort" => (Verb::Rollback, Hints::NONE),
            b"savepoint" | b"release" => (Verb::Savepoint, Hints::NONE),
            b"prepare" => (Verb::Session, Hints::NONE),
            b"set" | b"reset" => (Verb::Session, Hints::SETTINGS),
            b"listen" | b"unlisten" => (Verb::Session, Hints::LISTENING),
            b"deallocate" => (Verb::Session, Hints::PREPARED),
            b"discard" | b"load" => (Verb::Session, Hints::ANYTHING),
            b"execute" => (Verb::Execute, Hints::NONE),
            b"do" | b"call" => (Verb::Other, Hints::ANYTHING.with(Hints::SELF_COMMITS)),
            _ => (Verb::Other, Hints::SELF_COMMITS),
        };
        self.verb = verb;
        self.hints |= hints;
        self.read = self.word() == b"prepare";
    }

    /// Words behind the first, where they matter.
    fn next_word(&mut self) {
        let second_of_prepare = self.words == 1 && self.read;
        match (self.verb, self.word()) {
            (Verb::Session, b"transaction") if second_of_prepare => {
                self.verb = Verb::PrepareTransaction;
            }
            (Verb::Session, _) if second_of_prepare => self.hints |= Hints::PREPARED,
            (Verb::Rollback, b"to") => self.verb = Verb::RollbackTo,
            (Verb::Commit | Verb::Rollback, b"prepared") => self.verb = Verb::FinishPrepared,
            (Verb::Commit | Verb::Rollback, b"no") => self.negated = true,
            (Verb::Commit | Verb::Rollback, b"chain") if !self.negated => {
                self.hints |= Hints::CHAINS;
            }
            (Verb::Begin, b"read") => self.read = true,
            (Verb::Begin, b"only") if self.read => self.hints |= Hints::READ_ONLY,
            _ => {}
        }
    }

    fn end_statement(&mut self) {
        // A statement that begins with a quoted name or a string is none, but counts.
        if self.words > 0 {
            self.hints |= match self.verb {
                Verb::Commit => Hints::COMMITS,
                Verb::Rollback => Hints::ROLLS_BACK,
                Verb::PrepareTransaction => Hints::TWO_PHASE,
                Verb::FinishPrepared => Hints::TWO_PHASE,
                _ => Hints::NONE,
            };
            if self.all.statements == 0 {
                self.all.verb = self.verb;
            }
            self.all.statements = self.all.statements.saturating_add(1);
        }
        self.all.hints |= self.hints;
        self.hints = Hints::NONE;
        (self.words, self.verb, self.negated, self.read) = (0, Verb::Empty, false, false);
    }
}

fn contains(word: &[u8], part: &[u8]) -> bool {
    word.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_known() {
        use Verb::*;
        let none = Hints::NONE;
        for (text, verb, statements, hints) in [
            ("", Empty, 0, none),
            (" ; ; -- nothing", Empty, 0, none),
            ("SELECT abalance FROM pgbench_accounts WHERE aid = $1;", Read, 1, none),
            ("UPDATE t\nSET a = 'x; commit', b = \"set\"", Write, 1, none),
            ("insert into t select E'it\\'s; reset all' --; set x\n, 1", Write, 1, none),
            ("select $$; set x$$, $a$;listen y; $$ $a $a$, a$b$c", Read, 1, none),
            ("select 1 /* ; set x /* nested */ ; */ ; ; select 2", Read, 2, none),
            ("/* c */ -- d\n ( SET x = 1", Session, 1, Hints::SETTINGS),
            ("select 1;Reset all", Read, 2, Hints::SETTINGS),
            ("select '--'; set x = 1", Read, 2, Hints::SETTINGS),
            ("select '/*'; set x = 1", Read, 2, Hints::SETTINGS),
            ("select 'it''s', \"a\"\"b\"; set x = 1", Read, 2, Hints::SETTINGS),
            ("select \"set_config\"('a', 'b', false)", Read, 1, Hints::SETTINGS),
            (
                "with x as (select pg_catalog.SET_CONFIG('a','b',true)) table x",
                Read,
                1,
                Hints::SETTINGS,
            ),
            ("select pg_try_advisory_lock_shared(1)", Read, 1, Hints::ADVISORY),
            ("create temp table x ()", Other, 1, Hints::TEMPORARY.with(Hints::SELF_COMMITS)),
            ("select 1 into pg_temp.x", Read, 1, Hints::TEMPORARY),
            ("declare c cursor with hold for select 1", Read, 1, Hints::HELD),
            ("LISTEN a", Session, 1, Hints::LISTENING),
            ("unlisten *", Session, 1, Hints::LISTENING),
            ("prepare p as select 1", Session, 1, Hints::PREPARED),
            ("deallocate p", Session, 1, Hints::PREPARED),
            ("discard all", Session, 1, Hints::ANYTHING),
            ("load 'x'", Session, 1, Hints::ANYTHING),
            ("do $x$ begin commit; end $x$", Other, 1, Hints::ANYTHING.with(Hints::SELF_COMMITS)),
            ("CALL p()", Other, 1, Hints::ANYTHING.with(Hints::SELF_COMMITS)),
            ("execute p", Execute, 1, none),
            ("vacuum", Other, 1, Hints::SELF_COMMITS),
            ("begin", Begin, 1, Hints::BEGINS),
            (
                "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
                Begin,
                1,
                Hints::BEGINS.with(Hints::READ_ONLY),
            ),
            ("begin read write", Begin, 1, Hints::BEGINS),
            ("commit", Commit, 1, Hints::COMMITS),
            ("END WORK", Commit, 1, Hints::COMMITS),
            ("commit and chain", Commit, 1, Hints::COMMITS.with(Hints::CHAINS)),
            ("commit work and no chain", Commit, 1, Hints::COMMITS),
            ("commit /* and chain */", Commit, 1, Hints::COMMITS),
            ("commit prepared 'x'", FinishPrepared, 1, Hints::TWO_PHASE),
            ("rollback prepared 'x'", FinishPrepared, 1, Hints::TWO_PHASE),
            ("prepare transaction 'x'", PrepareTransaction, 1, Hints::TWO_PHASE),
            ("prepare/**/transaction 'x'", PrepareTransaction, 1, Hints::TWO_PHASE),
            ("abort", Rollback, 1, Hints::ROLLS_BACK),
            ("rollback /* x */ work to savepoint a", RollbackTo, 1, none),
            ("savepoint a", Savepoint, 1, none),
            (
                "begin; insert into t values (1); commit",
                Begin,
                3,
                Hints::BEGINS.with(Hints::COMMITS),
            ),
            ("select 'a\\'; set x = 1; --'", Read, 2, Hints::SETTINGS),
            ("select e'\u{e9}\\'; commit --'", Read, 1, Text::UNKNOWN.hints),
        ] {
            assert_eq!(Text::of(text.as_bytes(), true), Text { verb, statements, hints }, "{text}");
            // In parts it is the same.
            let mut scan = TextScan::new(true);
            text.as_bytes().chunks(1).for_each(|byte| scan.feed(byte));
            assert_eq!(scan.finish(), Text { verb, statements, hints }, "{text}");
        }
        let old = Text::of(b"select 'a\\'; set x = 1; --'; commit", false);
        assert_eq!((old.statements, old.hints), (2, Hints::COMMITS));
        assert!(
            Text::of(b"rollback", true).ends_block() && Text::of(b"commit;", true).ends_block()
        );
        assert!(!Text::of(b"rollback to a", true).ends_block());
        assert!(!Text::of(b"rollback and chain", true).ends_block());
        assert!(!Text::of(b"rollback; select 1", true).ends_block());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_no_cut_matters(
            text in proptest::collection::vec(proptest::prop_oneof![
                proptest::sample::select(vec!["'", "\"", "$", "$a$", "--", "/*", "*/", ";", "\\",
                    "\n", " ", "e'", "set", "commit", "set_config", "and", "chain", "1", "to"])
                    .prop_map(|s: &str| s.as_bytes().to_vec()),
                proptest::collection::vec(proptest::prelude::any::<u8>(), 1..90),
            ], 0..40),
            cut in 1_usize..30,
        ) {
            use proptest::prelude::*;
            let text = text.concat();
            let mut scan = TextScan::new(true);
            text.chunks(cut).for_each(|part| scan.feed(part));
            prop_assert_eq!(scan.finish(), Text::of(&text, true));
        }
    }
    use proptest::strategy::Strategy as _;
}
