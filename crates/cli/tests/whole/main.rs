//! The whole program on real PostgreSQL: clusters made, used, broken and looked after as an
//! operator would, each test with members of its own.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../../backup/tests/common/s3.rs"]
#[allow(dead_code)]
mod s3;

mod adoption;
mod alone;
mod archive;
mod backups;
mod beside;
mod care;
mod certificates;
mod disaster;
mod drills;
mod durability;
mod files;
mod from_backup;
mod hand_over;
mod logical;
mod measured;
mod repositories;
mod restarts;
mod served;
mod tags;
mod warm;
mod witness;
mod zones;
