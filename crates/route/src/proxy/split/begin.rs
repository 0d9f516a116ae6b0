//! Reads the one statement that matters here: BEGIN. Pure.
//!
//! A text that is not understood whole (a comment in it, a second statement) is none: its
//! transaction is the primary's, which is never wrong.

/// Words of a BEGIN that are read; there is no sense in more.
const WORDS_MAX: usize = 24;

/// What a BEGIN says about its transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Begin {
    /// READ ONLY or READ WRITE; none: as the session's default is.
    pub read_only: Option<bool>,
    /// Is its isolation level SERIALIZABLE? None: as the session's default is.
    pub serializable: Option<bool>,
}

impl Begin {
    /// The text, if it is one BEGIN or START TRANSACTION and nothing else.
    pub fn read(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let text = text.strip_suffix(b";").unwrap_or(text);
        if !text.iter().all(|b| b.is_ascii_alphabetic() || b.is_ascii_whitespace() || *b == b',') {
            return None;
        }
        let words = text.split(|byte| !byte.is_ascii_alphabetic()).filter(|word| !word.is_empty());
        let words: Vec<_> = words.take(WORDS_MAX + 1).map(<[u8]>::to_ascii_lowercase).collect();
        if words.len() > WORDS_MAX {
            return None;
        }
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let mut rest = match &words[..] {
            [b"begin", b"work" | b"transaction", rest @ ..] => rest,
            [b"start", b"transaction", rest @ ..] | [b"begin", rest @ ..] => rest,
            _ => return None,
        };
        let mut begin = Self::default();
        // The last word on a matter counts, as in PostgreSQL.
        while !rest.is_empty() {
            rest = match rest {
                [b"read", b"only", rest @ ..] => {
                    begin.read_only = Some(true);
                    rest
                }
                [b"read", b"write", rest @ ..] => {
                    begin.read_only = Some(false);
                    rest
                }
                [b"isolation", b"level", b"serializable", rest @ ..] => {
                    begin.serializable = Some(true);
                    rest
                }
                [b"isolation", b"level", b"repeatable", b"read", rest @ ..]
                | [b"isolation", b"level", b"read", b"committed" | b"uncommitted", rest @ ..] => {
                    begin.serializable = Some(false);
                    rest
                }
                [b"not", b"deferrable", rest @ ..] | [b"deferrable", rest @ ..] => rest,
                _ => return None,
            };
        }
        Some(begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_understood_whole_counts() {
        let read = |text: &str| Begin::read(text.as_bytes());
        let said = |read_only, serializable| Some(Begin { read_only, serializable });
        assert_eq!(read("begin"), said(None, None));
        assert_eq!(read(" BEGIN READ ONLY; "), said(Some(true), None));
        assert_eq!(read("start transaction\n read only"), said(Some(true), None));
        assert_eq!(read("begin work read only, read write"), said(Some(false), None));
        assert_eq!(
            read("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"),
            said(Some(true), Some(false))
        );
        assert_eq!(
            read("begin isolation level read committed, read only, not deferrable"),
            said(Some(true), Some(false))
        );
        assert_eq!(
            read("begin isolation level serializable, read only, deferrable"),
            said(Some(true), Some(true))
        );
        for other in [
            "",
            "start",
            "commit",
            "begin; select 1",
            "begin read only; insert into t values (1)",
            "begin /* read only */",
            "begin read",
            "begin read only now",
            "select 'begin read only'",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
        assert_eq!(read(&format!("begin {}", "read only ".repeat(20))), None);
    }
}
