//! `sempre demo`.
use crate::{arguments::DemoHow, connect::Scene, fail::Fail};
/// Stub.
pub fn run(_: &Scene, _: &DemoHow) -> Result<(), Fail> {
    Err(Fail::new("not yet", "", ""))
}
