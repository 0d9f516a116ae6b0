//! What a session leaves behind on its server connection is undone, behind its back.

use super::{Place, PoolKey, Pools};
use crate::proxy::{link::Link, talk::Talk};
use sempre_wire::pg::{Side, write};
use std::{sync::Arc, time::Duration};
use tokio::time;

/// How long it may take. A server that does not answer is not worth waiting for.
const RESET_TIMEOUT: Duration = Duration::from_secs(10);

impl Pools {
    /// Gives back a connection whose session is over.
    pub fn reset(self: &Arc<Self>, key: PoolKey, mut link: Link) {
        if self.settings.server_reset.is_empty() {
            self.put(&key, link);
            return;
        }
        let pools = self.clone();
        tokio::spawn(async move {
            match time::timeout(RESET_TIMEOUT, pools.undo(&mut link)).await {
                Ok(true) => pools.put(&key, link),
                _ => {
                    let place: Option<Place> = link.place.take();
                    super::goodbye(link);
                    drop(place);
                    pools.left.notify_waiters();
                }
            }
        });
    }

    async fn undo(&self, link: &mut Link) -> bool {
        let mut question = Vec::new();
        write::query(&mut question, self.settings.server_reset.as_bytes());
        let mut talk = Talk::new(&mut link.stream, Side::Backend, std::mem::take(&mut link.kept));
        let Ok(answers) = talk.ask(&question, 1).await else { return false };
        link.kept = talk.rest();
        for (name, value) in answers.parameters {
            link.reported(&name, &value);
        }
        link.forget_statements();
        answers.errors.is_empty() && link.kept.is_empty()
    }
}
