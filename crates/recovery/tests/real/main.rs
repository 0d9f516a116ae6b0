//! Against real PostgreSQL servers. As root, all of it runs as system user `postgres`.

mod alarms;
mod filling;
mod hundred;
mod instant;
mod moments;
mod rig;
#[path = "../../../postgres/tests/real/servers.rs"]
#[allow(dead_code)]
mod servers;
mod wrong_pages;
