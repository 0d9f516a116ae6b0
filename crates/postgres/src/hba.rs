//! Who may connect: sempre's own roles always, clients only while they are admitted.

use crate::{ADMIN_ROLE, Encryption, REPLICATION_ROLE};
use std::path::Path;

/// Client lines of a new cluster: local users by their own name, everybody else by password.
pub(crate) const DEFAULT_CLIENT_LINES: &str = "\
# TYPE  DATABASE  USER  ADDRESS  METHOD
local   all       all            peer
host    all       all   all      scram-sha-256
";

/// The whole `pg_hba.conf`. `clients` are lines for clients (none: nobody is admitted).
///
/// Other members come in by TLS only, where it is on, and show a certificate where the server
/// knows their authority.
pub(crate) fn render(clients: Option<&str>, encryption: Encryption) -> String {
    let own = format!("{ADMIN_ROLE},{REPLICATION_ROLE}");
    let host = if encryption.is_on() { "hostssl" } else { "host" };
    let shown = if encryption == Encryption::Mutual { " clientcert=verify-ca" } else { "" };
    let mut text = format!(
        "# Written by sempre. Client lines are those of your own pg_hba.conf, or of the record.\n\
         local all {own} scram-sha-256\n\
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
        assert!(render(None, Encryption::Off).trim_end().ends_with("reject"));
        let open = render(Some("local all all trust"), Encryption::Mutual);
        assert!(open.contains(
            "hostssl replication sempre_replication all scram-sha-256 clientcert=verify-ca"
        ));
        assert!(open.ends_with("# clients\nlocal all all trust\n"), "{open}");
    }

    #[test]
    fn includes_keep_their_folder() {
        let text = absolute_includes("include x.conf\nlocal all all peer\n", Path::new("/etc/pg"));
        assert_eq!(text, "include \"/etc/pg/x.conf\"\nlocal all all peer\n");
    }
}
