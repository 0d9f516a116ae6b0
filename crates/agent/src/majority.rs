//! Whether a majority is there to agree to a change.

use crate::{clock, looper::Shown};
use sempre_api::{ActionError, codes};
use sempre_model::MemberId;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time};

/// How long a majority may be away before an order is refused: a moment of a busy machine or of a
/// network that drops packets is no reason to.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked at: silence grows without an event.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits for a majority, for a moment. A Raft leader takes proposals for as long as it believes to
/// lead; without a majority they would hang, and their outcome would not be known.
///
/// # Errors
///
/// SEMPRE-0011: there is none; who is silent is said.
pub async fn there(shown: &watch::Receiver<Arc<Shown>>) -> Result<(), ActionError> {
    let until = time::Instant::now() + PATIENCE;
    loop {
        let Err(why) = look(&shown.borrow()) else { return Ok(()) };
        if time::Instant::now() >= until {
            return Err(codes::NO_QUORUM.error("nothing was changed", why));
        }
        time::sleep(LOOK_EVERY).await;
    }
}

fn look(shown: &Shown) -> Result<(), String> {
    let (record, voters) = (&shown.record, &shown.standing.voters);
    let (now, limit) = (clock::now_ms(), record.policy.detect_ms);
    let answers = |member: &MemberId| {
        *member == shown.me
            || shown.heard.get(member).is_some_and(|h| now.saturating_sub(h.at) < limit)
    };
    let silent: Vec<_> = record
        .members
        .values()
        .filter(|m| voters.contains(&m.node) && !answers(&m.name))
        .map(|m| m.name.as_str())
        .collect();
    if voters.len() - silent.len().min(voters.len()) > voters.len() / 2 || voters.is_empty() {
        return Ok(());
    }
    Err(format!("of {} that vote these are silent: {}", voters.len(), silent.join(", ")))
}
