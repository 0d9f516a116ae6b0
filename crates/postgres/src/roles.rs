//! The roles sempre makes for itself.

use sempre_model::record::Secrets;

/// Superuser, used by agents.
pub const ADMIN_ROLE: &str = "sempre";

/// Streams, clones and rewinds.
pub const REPLICATION_ROLE: &str = "sempre_replication";

/// Functions `pg_rewind` calls on its source.
const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// The database sempre's roles connect to.
pub(crate) const DATABASE: &str = "postgres";

/// Statements, one a line, that make both roles or correct them. The passwords appear only as
/// SCRAM verifiers, so that neither logs nor statistics show them.
pub(crate) fn statements(secrets: &Secrets, exists: bool) -> Vec<String> {
    let verb = if exists { "ALTER" } else { "CREATE" };
    let verifier = |password: &str| postgres_protocol::password::scram_sha_256(password.as_bytes());
    let mut statements = vec![
        format!("{verb} ROLE {ADMIN_ROLE} SUPERUSER LOGIN PASSWORD '{}'", verifier(&secrets.admin)),
        format!(
            "{verb} ROLE {REPLICATION_ROLE} REPLICATION LOGIN PASSWORD '{}'",
            verifier(&secrets.replication)
        ),
    ];
    statements.extend(
        REWIND_FUNCTIONS
            .iter()
            .map(|f| format!("GRANT EXECUTE ON FUNCTION pg_catalog.{f} TO {REPLICATION_ROLE}")),
    );
    statements
}
