//! Log-ins that need no server connection, as the servers let the same user in lately.

use super::{
    Proxy,
    attach::NotAttached,
    auth::{Asking, Secret},
    link::{Link, LoggedIn, NoLink},
    pool::{Asked, PoolKey},
    serve::log_in_first,
    startup::Begun,
    stream::Stream,
    talk::Talk,
};
use sempre_wire::pg::{Authentication, Backend, Side};

/// What a client gets that is in.
pub(super) struct Welcome {
    /// None: it gets a server connection when it needs one.
    pub link: Option<Link>,
    pub secret: Secret,
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
    pub notices: Vec<u8>,
}

/// Logs a client in, with a server connection or without, and says what it sent behind that.
pub(super) async fn log_in_pooled(
    client: &mut Stream,
    proxy: &Proxy,
    begun: &Begun,
    pool: &PoolKey,
) -> Result<(Welcome, Vec<u8>), NotAttached> {
    if let Some((asked, parameters)) = proxy.pools.lets_in(pool)
        && let Some((secret, rest)) = prove(client, proxy, begun, asked).await?
    {
        let mut parameters = parameters.to_vec();
        for (name, value) in &mut parameters {
            if name == b"application_name" {
                *value = begun.application_name().to_vec();
            }
        }
        return Ok((Welcome { link: None, secret, parameters, notices: Vec::new() }, rest));
    }
    let (logged_in, rest) = log_in_first(client, proxy, begun, pool).await?;
    let LoggedIn { link, secret, parameters, notices } = logged_in;
    let known = Asked::of(&secret);
    if let Some(asked) = known {
        proxy.pools.was_let_in(pool, asked, parameters.clone());
    }
    // Who has not proved yet who it is takes no place away from anybody. So places are counted now.
    let place = match proxy.pools.try_enter(pool) {
        Some(place) => Some(place),
        // It can come back.
        None if known.is_some() => None,
        None => {
            let entered = proxy.pools.enter(pool, client.tcp()).await;
            Some(entered.map_err(|not| match not.error() {
                Some(error) => NotAttached::Error(error),
                None => NotAttached::ClientGone,
            })?)
        }
    };
    let link = place.map(|place| {
        proxy.pools.make_room(pool);
        Link { place: Some(place), ..link }
    });
    Ok((Welcome { link, secret, parameters, notices }, rest))
}

/// Asks the client for its password, as the servers would. None: a server has to.
pub(super) async fn prove(
    client: &mut Stream,
    proxy: &Proxy,
    begun: &Begun,
    asked: Asked,
) -> Result<Option<(Secret, Vec<u8>)>, NotAttached> {
    let Ok(Backend::Authentication(request)) = Backend::decode(b'R', asked.request()) else {
        return Ok(None);
    };
    let mut talk = Talk::new(client, Side::Frontend, Vec::new());
    if request == Authentication::Ok {
        return Ok(Some((Secret::None, talk.rest())));
    }
    let mut asking = Asking {
        talk: &mut talk,
        user: begun.user(),
        credentials: proxy.settings.credentials.as_deref(),
        end_point: begun.shown.end_point.as_deref(),
    };
    match asking.secret(&request).await {
        Ok(Some(secret)) => Ok(Some((secret, talk.rest()))),
        // Nothing was said to the client so far.
        Ok(None) | Err(NoLink::NotYet(_)) => Ok(None),
        Err(NoLink::ClientGone) => Err(NotAttached::ClientGone),
        Err(NoLink::Error(error)) => Err(NotAttached::Error(error)),
        Err(NoLink::Refused(raw)) => Err(NotAttached::Raw(raw)),
    }
}
