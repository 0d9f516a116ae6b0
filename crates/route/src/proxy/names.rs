//! Names of settings that no server lists: those with a dot, which applications make up
//! (`set app.user = ...`). They are picked out of the statements that may set them, and the
//! server is asked for each.

/// Names of one session that are kept.
const NAMES_MAX: usize = 64;
/// PostgreSQL's longest name, bytes.
const NAME_MAX: usize = 127;

/// The names that were seen.
#[derive(Debug, Default)]
pub(crate) struct Names {
    names: Vec<String>,
    /// There were more.
    overflow: bool,
}

impl Names {
    /// Takes every name with a dot out of a text; what is none does no harm.
    pub fn collect(&mut self, text: &[u8]) {
        let words = text.split(|byte| !(byte.is_ascii_alphanumeric() || b"_.$".contains(byte)));
        for word in words.filter(|word| word.len() <= NAME_MAX && is_name(word)) {
            let Ok(name) = std::str::from_utf8(word) else { continue };
            if self.names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                continue;
            }
            if self.names.len() == NAMES_MAX {
                self.overflow = true;
                return;
            }
            self.names.push(name.to_owned());
        }
    }

    /// More than can be kept were seen.
    pub fn overflow(&self) -> bool {
        self.overflow
    }

    /// As an array of PostgreSQL.
    pub fn array(&self) -> String {
        format!("{{{}}}", self.names.join(","))
    }
}

fn is_name(word: &[u8]) -> bool {
    let mut parts = word.split(|byte| *byte == b'.');
    let begins = |part: &[u8]| part.first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_');
    word.contains(&b'.') && parts.all(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_dot_are_found() {
        let mut names = Names::default();
        names
            .collect(b"set local App.user_id = '1.5'; select set_config('a.b.c', 'x', false), 7.5");
        names.collect(b"SET app.USER_ID to 3");
        assert_eq!(names.array(), "{App.user_id,a.b.c}");
        for number in 0..100 {
            names.collect(format!("set n.x{number} = 1").as_bytes());
        }
        assert!(names.overflow());
    }
}
