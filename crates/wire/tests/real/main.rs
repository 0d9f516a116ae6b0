//! Against the real thing: PostgreSQL as the server, psql (libpq) and tokio-postgres as clients.

mod postgres;
mod scram;
mod shell;
mod track;
