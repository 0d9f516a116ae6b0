//! Many idle sessions. Alone in its process, so that it measures nothing else.

mod common;
#[path = "common/idle.rs"]
mod idle;

use sempre_route::Style;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_sessions_need_little_memory() {
    idle::measure(Style::Pass).await;
}
