//! REST: Patroni's endpoints, for the load balancers, exporters and operators that are written
//! against them, and sempre's own below `/v1/`. HTTP/1.1.
//!
//! Reading is open. What changes something needs the cluster's REST token, and encryption where
//! it comes from another machine ([`Transport`]). Every limit is a named
//! constant here: garbage, slow clients and large bodies cost a connection at the most.

mod actions;
mod answer;
mod auth;
mod backups;
mod health;
mod patroni;
mod patroni_config;
mod restart;
mod server;
mod transport;
mod v1;

pub use server::{ApiError, ApiServer, serve, serve_with};
pub use transport::{Clear, Transport};

use crate::{
    backend::Backend,
    codes::{self, ActionError},
};
use axum::{
    Router,
    extract::OriginalUri,
    response::Response,
    routing::{delete, get, options, patch, post, put},
};
use std::{sync::Arc, time::Duration};

/// The largest request body, bytes: a configuration with thousands of lines fits.
pub const BODY_MAX: usize = 1 << 20;
/// The longest a request body may take to arrive.
pub const BODY_TIME: Duration = Duration::from_secs(10);
/// The longest any request may take: a switchover that is waited for fits.
pub const REQUEST_TIME: Duration = Duration::from_secs(90);
/// The longest a long poll is held, so that proxies in between do not cut it.
pub const POLL_MAX: Duration = Duration::from_secs(30);
/// Long polls at once. Health checks must always find a connection free.
pub const POLLS_MAX: usize = 256;
/// Actions at once: an operator has one or two under way.
pub const ACTIONS_MAX: usize = 16;

/// What the handlers share.
pub(crate) struct Shared {
    pub backend: Arc<dyn Backend>,
    pub polls: tokio::sync::Semaphore,
    pub actions: tokio::sync::Semaphore,
}

pub(crate) type Context = Arc<Shared>;

macro_rules! routes {
    ($($method:ident $path:literal $handler:path;)*) => {
        /// Every method and path there is; `get` stands for `HEAD` too.
        pub const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        pub(crate) fn router(shared: Context) -> Router {
            Router::new()
                $(.route($path, $method($handler)))*
                .fallback(no_such_page)
                .method_not_allowed_fallback(wrong_method)
                .with_state(shared)
        }
    };
}

routes! {
    get "/" health::check;
    options "/" health::check_code;
    get "/primary" health::check;
    options "/primary" health::check_code;
    get "/master" health::check;
    options "/master" health::check_code;
    get "/read-write" health::check;
    options "/read-write" health::check_code;
    get "/leader" health::check;
    options "/leader" health::check_code;
    get "/standby-leader" health::check;
    options "/standby-leader" health::check_code;
    get "/standby_leader" health::check;
    options "/standby_leader" health::check_code;
    get "/replica" health::check;
    options "/replica" health::check_code;
    get "/read-only" health::check;
    options "/read-only" health::check_code;
    get "/read-only-sync" health::check;
    options "/read-only-sync" health::check_code;
    get "/read-only-synchronous" health::check;
    options "/read-only-synchronous" health::check_code;
    get "/read-only-quorum" health::check;
    options "/read-only-quorum" health::check_code;
    get "/sync" health::check;
    options "/sync" health::check_code;
    get "/synchronous" health::check;
    options "/synchronous" health::check_code;
    get "/quorum" health::check;
    options "/quorum" health::check_code;
    get "/async" health::check;
    options "/async" health::check_code;
    get "/asynchronous" health::check;
    options "/asynchronous" health::check_code;
    get "/health" health::check;
    options "/health" health::check_code;
    get "/liveness" health::check_code;
    options "/liveness" health::check_code;
    get "/readiness" health::check_code;
    options "/readiness" health::check_code;
    get "/patroni" patroni::patroni;
    get "/cluster" patroni::cluster;
    get "/history" patroni::history;
    get "/metrics" patroni::metrics;
    get "/config" patroni_config::get_config;
    patch "/config" patroni_config::patch_config;
    put "/config" patroni_config::put_config;
    post "/switchover" actions::switchover;
    delete "/switchover" actions::cancel_switchover;
    post "/failover" actions::failover;
    post "/restart" restart::restart;
    delete "/restart" restart::cancel_restart;
    post "/reload" actions::reload;
    post "/reinitialize" actions::reinitialize;
    get "/v1/status" v1::status;
    get "/v1/backups" backups::list;
    post "/v1/backups" backups::ask;
    get "/v1/history" v1::history;
    get "/v1/events" v1::events;
    get "/v1/config" v1::get_config;
    patch "/v1/config" v1::patch_config;
    get "/v1/openapi.json" v1::openapi;
    get "/v1/route" v1::route;
    get "/v1/route/verify" v1::verify_route;
    post "/v1/switchover" v1::act;
    delete "/v1/switchover" v1::cancel_switchover;
    post "/v1/failover" v1::act;
    post "/v1/pause" v1::act;
    post "/v1/resume" v1::act;
    post "/v1/restart" v1::act;
    delete "/v1/restart" v1::cancel_restart;
    post "/v1/reload" v1::act;
    post "/v1/reinit" v1::act;
    post "/v1/remove" v1::act;
    post "/v1/token" v1::act;
}

async fn no_such_page(OriginalUri(uri): OriginalUri) -> Response {
    answer::error(&codes::NO_SUCH_PAGE.error(shown_path(&uri), "no page has this path"))
}

async fn wrong_method(OriginalUri(uri): OriginalUri, method: http::Method) -> Response {
    let what = format!("{method} {}", shown_path(&uri));
    answer::error(&codes::WRONG_METHOD.error(what, "the page has other methods"))
}

/// The path, cut to a length that is fit for a message.
fn shown_path(uri: &http::Uri) -> String {
    uri.path().chars().take(100).collect()
}

/// Does an action, within the limit of actions at once.
pub(crate) async fn act(
    shared: &Shared,
    action: crate::Action,
) -> Result<crate::Done, ActionError> {
    let Ok(_permit) = shared.actions.try_acquire() else {
        return Err(codes::BUSY.error(
            "the request was not taken up",
            format!("{ACTIONS_MAX} actions are under way on this member"),
        ));
    };
    tracing::info!(?action, "asked over REST");
    let done = shared.backend.act(action).await;
    if let Err(error) = &done {
        tracing::info!(%error, "not done");
    }
    done
}
