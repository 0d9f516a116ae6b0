//! Who may connect: sempre's own roles always, clients only while they are admitted.

use crate::{ADMIN_ROLE, Encryption, REPLICATION_ROLE};
use std::{net::IpAddr, path::Path};

/// Client lines of a new cluster: local users by their own name, everybody else by password.
pub(crate) const DEFAULT_CLIENT_LINES: &str = "\
# TYPE  DATABASE  USER  ADDRESS  METHOD
local   all       all            peer
host    all       all   all      scram-sha-256
";

/// A database that nobody has. Asked for, it tells whether the server has read that clients are
/// admitted: the file that admits nobody rejects it, any other asks for a password.
pub(crate) const ADMISSION_PROBE: &str = "sempre_admission";

/// The whole `pg_hba.conf`. `clients` are lines for clients (none: nobody is admitted).
///
/// Other members come in by TLS only, where it is on, and show a certificate where the server
/// knows their authority.
pub(crate) fn render(clients: Option<&str>, encryption: Encryption) -> String {
    let own = format!("{ADMIN_ROLE},{REPLICATION_ROLE}");
    let host = if encryption.is_on() { "hostssl" } else { "host" };
    let shown = if encryption == Encryption::Mutual { " clientcert=verify-ca" } else { "" };
    let probe = match clients {
        Some(_) => String::new(),
        None => format!("local {ADMISSION_PROBE} all reject\n"),
    };
    let mut text = format!(
        "# Written by sempre. Client lines are those of your own pg_hba.conf, or of the record.\n\
         {probe}\
         local all,replication {own} scram-sha-256\n\
         {host} all {own} all scram-sha-256{shown}\n\
         {host} replication {REPLICATION_ROLE} all scram-sha-256{shown}\n\
         # Nobody else comes in as one of sempre's own roles, whatever follows.\n\
         local all,replication {own} reject\n\
         host all,replication {own} all reject\n"
    );
    match clients {
        Some(lines) => {
            text.push_str("# clients\n");
            text.push_str(lines);
            if !lines.ends_with('\n') {
                text.push('\n');
            }
        }
        None => text.push_str(
            "# clients are not admitted\n\
             local all,replication all reject\n\
             host all,replication all all reject\n",
        ),
    }
    text
}

/// A `pg_hba.conf` line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pg_hba line `{line}`: {why}")]
pub struct BadLine {
    /// What was given, cut short if it is long.
    pub line: String,
    /// What is wrong with it.
    pub why: String,
}

/// Longer lines are not read by PostgreSQL 14 and older in one piece.
const LINE_MAX: usize = 4096;
const TYPES: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
const METHODS: [&str; 15] = [
    "trust",
    "reject",
    "md5",
    "password",
    "scram-sha-256",
    "gss",
    "sspi",
    "ident",
    "peer",
    "pam",
    "ldap",
    "radius",
    "cert",
    "bsd",
    "oauth",
];

/// Can this line stand in `pg_hba.conf`? Finds what a slip makes: names PostgreSQL itself refuses,
/// such as those of options, show once it has read the file ([`crate::Session::hba_error`]).
pub fn check_hba_line(line: &str) -> Result<(), BadLine> {
    let bad =
        |why: &str| Err(BadLine { line: line.chars().take(80).collect(), why: why.to_owned() });
    if line.len() > LINE_MAX {
        return bad("it is too long");
    }
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return bad("it has characters that would begin another line");
    }
    let rule = line.trim();
    if rule.is_empty() {
        return bad("it is empty");
    }
    if rule.starts_with('#') || rule.matches('"').count() % 2 == 1 {
        return if rule.starts_with('#') { Ok(()) } else { bad("a quote is not closed") };
    }
    let words = words(rule);
    let kind = words[0].as_str();
    if kind.starts_with("include") {
        return Ok(());
    }
    if !TYPES.contains(&kind) {
        return bad(
            "it does not begin with local, host, hostssl, hostnossl, hostgssenc or hostnogssenc",
        );
    }
    let method = match (kind, words.get(3).map(String::as_str)) {
        ("local", method) => method,
        (_, Some(address)) if address.contains('/') => {
            if !is_network(address) {
                return bad("its address is not a network such as 10.0.0.0/8");
            }
            words.get(4).map(String::as_str)
        }
        // An address and its mask, or a name.
        (_, Some(address)) if address.parse::<IpAddr>().is_ok() => {
            if words.get(4).is_none_or(|mask| mask.parse::<IpAddr>().is_err()) {
                return bad("its address needs a mask, such as /32");
            }
            words.get(5).map(String::as_str)
        }
        (_, Some(_)) => words.get(4).map(String::as_str),
        (_, None) => None,
    };
    match method {
        Some(method) if METHODS.contains(&method) => Ok(()),
        Some(method) => bad(&format!("`{method}` is no method of authentication")),
        None => bad("it is not TYPE DATABASE USER [ADDRESS] METHOD"),
    }
}

fn is_network(text: &str) -> bool {
    let Some((ip, bits)) = text.split_once('/') else { return false };
    match (ip.parse::<IpAddr>(), bits.parse::<u8>()) {
        (Ok(ip), Ok(bits)) => bits <= if ip.is_ipv4() { 32 } else { 128 },
        _ => false,
    }
}

/// The words of a line; spaces in quotes and after commas belong to a word.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        quoted ^= c == '"';
        let Some(word) = words.last_mut() else { break };
        if quoted || !c.is_whitespace() {
            word.push(c);
        } else if !word.is_empty() && !word.ends_with(',') {
            words.push(String::new());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The user's lines, with relative names in include directives (PostgreSQL 16) made absolute:
/// our file is in another folder.
pub(crate) fn absolute_includes(text: &str, folder: &Path) -> String {
    let mut result = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let directive = words.next().unwrap_or_default();
        let is_include = ["include", "include_if_exists", "include_dir"].contains(&directive);
        match words.next().map(|name| name.trim_matches('"')) {
            Some(name) if is_include && !name.starts_with('/') => {
                result.push_str(&format!("{directive} \"{}\"", folder.join(name).display()));
            }
            _ => result.push_str(line),
        }
        result.push('\n');
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_client_lines_everybody_else_is_rejected() {
        let closed = render(None, Encryption::Off);
        assert!(closed.trim_end().ends_with("reject"));
        assert!(
            closed.contains("\nlocal sempre_admission all reject\nlocal all,replication "),
            "{closed}"
        );
        let open = render(Some("local all all trust"), Encryption::Mutual);
        assert!(open.contains(
            "hostssl replication sempre_replication all scram-sha-256 clientcert=verify-ca"
        ));
        assert!(open.ends_with("# clients\nlocal all all trust\n"), "{open}");
        assert!(!open.contains(ADMISSION_PROBE), "{open}");
    }

    #[test]
    fn slips_in_lines_are_found() {
        for good in [
            "local all all peer",
            "host all all 10.0.0.0/8 scram-sha-256",
            "host all all 10.0.0.0 255.0.0.0 md5",
            "hostssl \"my db\",other  +group, bob  ::1/128  cert clientcert=verify-full",
            "host all all samenet trust",
            "host replication all .example.com reject",
            "# a comment",
            "include_if_exists more.conf",
        ] {
            assert_eq!(check_hba_line(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "empty"),
            ("   ", "empty"),
            ("hots all all 10.0.0.0/8 trust", "begin with"),
            ("host all all 10.0.0.0/99 trust", "not a network"),
            ("host all all 10.0.0.0 trust", "mask"),
            ("host all all 10.0.0.0/8", "METHOD"),
            ("host all all 10.0.0.0/8 scram", "`scram` is no method"),
            ("local all peer", "METHOD"),
            ("local all all peer\nhost all all all trust", "another line"),
            ("local \"all all peer", "quote"),
        ] {
            let error = check_hba_line(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(check_hba_line(&"x".repeat(10_000)).is_err());
    }

    #[test]
    fn includes_keep_their_folder() {
        let text = absolute_includes("include x.conf\nlocal all all peer\n", Path::new("/etc/pg"));
        assert_eq!(text, "include \"/etc/pg/x.conf\"\nlocal all all peer\n");
    }
}
