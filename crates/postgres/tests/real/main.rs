//! Against real PostgreSQL servers. As root, all of it runs as system user `postgres`.

mod adopting;
mod configuring;
mod encrypting;
mod fencing;
mod inspecting;
mod logical;
mod rejoining;
mod servers;
mod timelines;
mod wal_ends;
