//! Commands that change what the pools do.

use super::Answer;
use crate::proxy::{Proxy, pool::Pools};
use std::time::Duration;
use tokio::time;

/// How often whoever still has a connection is asked for it. (One that is made just when PAUSE
/// begins is not there yet to be asked.)
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Runs a command, on one database or all. None: there is no such command.
pub(super) async fn run(proxy: &Proxy, verb: &str, database: Option<&str>) -> Option<Answer> {
    // Names as PostgreSQL writes them.
    let name = database.map(|name| name.trim_matches('"').as_bytes());
    Some(Answer::Done(match verb {
        "pause" => {
            pause(proxy, name).await;
            "PAUSE"
        }
        "resume" => {
            for pools in proxy.all_pools() {
                pools.paused.send_modify(|paused| match name {
                    Some(name) => {
                        paused.databases.remove(name);
                    }
                    None => *paused = Default::default(),
                });
            }
            "RESUME"
        }
        "reconnect" => {
            for pools in proxy.all_pools() {
                pools.reconnect(name);
                ask_back(pools, name);
            }
            "RECONNECT"
        }
        // Settings come with the process. What was learned from the servers is forgotten.
        "reload" if name.is_none() => {
            proxy.pools.forget_log_ins();
            "RELOAD"
        }
        _ => return None,
    }))
}

/// Lets no client have a server connection, and waits until those that have one have left it:
/// at the end of their transaction, or, with state that cannot be restored, of their session.
async fn pause(proxy: &Proxy, database: Option<&[u8]>) {
    for pools in proxy.all_pools() {
        pools.paused.send_modify(|paused| match database {
            Some(name) => {
                paused.databases.insert(name.to_vec());
            }
            None => paused.all = true,
        });
    }
    let is_paused = || {
        let paused = proxy.pools.paused.borrow();
        database.map_or(paused.all, |name| paused.is(name))
    };
    let fits = |name: &[u8]| database.is_none_or(|wanted| wanted == name);
    for pools in proxy.all_pools() {
        let in_use = || pools.all().iter().any(|pool| fits(&pool.database) && pool.in_use() > 0);
        // Ends too when somebody else says RESUME.
        while is_paused() && in_use() {
            proxy.all_pools().for_each(|pools| ask_back(pools, database));
            let _ = time::timeout(ASK_EVERY, pools.left.notified()).await;
        }
    }
}

/// Asks all clients for their connections.
fn ask_back(pools: &Pools, database: Option<&[u8]>) {
    for server in pools.servers() {
        if server.client() != 0 && database.is_none_or(|name| name == server.database) {
            server.leave();
        }
    }
}
