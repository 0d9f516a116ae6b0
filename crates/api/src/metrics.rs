//! Prometheus metrics.
use crate::Snapshot;
/// The text.
pub fn render(_snapshot: &Snapshot) -> String {
    String::new()
}
