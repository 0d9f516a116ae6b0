//! The older way to log in with a password: md5 of md5.
//!
//! The stored hash is as good as the password: who has it can log in.

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// What a server keeps of a password, `md5` and 32 digits, as in `pg_authid.rolpassword`.
pub fn stored(user: &[u8], password: &[u8]) -> String {
    digits(&[password, user])
}

/// Is this what a server keeps (rather than a SCRAM verifier)?
pub fn is_stored(text: &str) -> bool {
    text.strip_prefix("md5").is_some_and(|digits| {
        digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// What a client answers to AuthenticationMD5Password. `stored` is from [`stored`].
pub fn answer(stored: &str, salt: [u8; 4]) -> String {
    digits(&[stored.strip_prefix("md5").unwrap_or(stored).as_bytes(), &salt])
}

/// Is it the right answer? Takes as long either way.
pub fn check(stored: &str, salt: [u8; 4], given: &[u8]) -> bool {
    is_stored(stored) && answer(stored, salt).as_bytes().ct_eq(given).into()
}

fn digits(parts: &[&[u8]]) -> String {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    let mut out = String::with_capacity(35);
    out.push_str("md5");
    for byte in hash.finalize() {
        for nibble in [byte >> 4, byte & 0xF] {
            out.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_postgresql_makes() {
        // select rolpassword of: create role ann password 'secret' (password_encryption = md5).
        let kept = stored(b"ann", b"secret");
        assert!(is_stored(&kept), "{kept}");
        assert!(!is_stored("SCRAM-SHA-256$x") && !is_stored("md5short"));
        let given = answer(&kept, [1, 2, 3, 4]);
        assert!(check(&kept, [1, 2, 3, 4], given.as_bytes()));
        assert!(!check(&kept, [1, 2, 3, 5], given.as_bytes()));
        assert!(!check("", [1, 2, 3, 4], given.as_bytes()));
        // md5('abc'): the well-known one.
        assert_eq!(digits(&[b"a", b"bc"]), "md5900150983cd24fb0d6963f7d28e17f72");
    }
}
