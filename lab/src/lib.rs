//! Real databases in network namespaces on two networks, faults, and checkers.
//!
//! - [`topology`], [`links`], [`process`], [`disk`], [`station`]: hosts and what can go wrong with them
//! - [`load`]: what an application sees; [`probe`]: never two members that take writes
//! - [`rig`]: a running cluster; [`sempre`] and [`patroni`] are two makes of it
//! - [`plain`]: PostgreSQL alone; [`cost`]: what managing it takes
//! - [`faults`]: each fault by name; [`runner`]: causes one under load and checks; [`report`]: tables
//!
//! Everything a lab makes is removed when it is dropped, also on a panic, and on SIGINT and SIGTERM
//! inside [`scope::run`]; what a killed lab left is removed by the next one.

pub mod client;
pub mod cost;
pub mod disk;
pub mod faults;
pub mod http;
pub mod links;
pub mod load;
pub mod patroni;
pub mod plain;
pub mod probe;
pub mod process;
pub mod report;
pub mod rig;
pub mod runner;
pub mod scope;
pub mod sempre;
pub mod shell;
pub mod station;
pub mod topology;
