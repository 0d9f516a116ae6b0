//! `/v1/backups`.

use super::{Context, answer, auth};
use crate::{
    backup::BackupRequest,
    codes::{self, ActionError},
};
use answer::{Query, Response};
use axum::{
    body::Body,
    extract::{OriginalUri, State},
};
use http::HeaderMap;

fn finish(answered: Result<Response, ActionError>) -> Response {
    answered.unwrap_or_else(|error| answer::error(&error))
}

/// `?repository=NAME`: what there is.
pub(crate) async fn list(State(shared): State<Context>, OriginalUri(uri): OriginalUri) -> Response {
    let repository = Query::of(&uri).get("repository").map(str::to_owned);
    let listed = async {
        let _permit = shared.actions.try_acquire().map_err(|_| busy())?;
        let request = BackupRequest::List { repository };
        Ok(answer::json(200, &shared.backend.backups(request).await?))
    };
    finish(listed.await)
}

/// A [`BackupRequest`].
pub(crate) async fn ask(State(shared): State<Context>, headers: HeaderMap, body: Body) -> Response {
    let asked = async {
        auth::check(&shared, &headers)?;
        let body = answer::read_json(body).await?;
        let request: BackupRequest = serde_json::from_value(body).map_err(|why| {
            codes::BAD_REQUEST.error("nothing was done", format!("the body does not fit: {why}"))
        })?;
        let _permit = shared.actions.try_acquire().map_err(|_| busy())?;
        Ok(answer::json(200, &shared.backend.backups(request).await?))
    };
    finish(asked.await)
}

fn busy() -> ActionError {
    codes::BUSY.error("the request was not taken up", "too many others are being worked on")
}
