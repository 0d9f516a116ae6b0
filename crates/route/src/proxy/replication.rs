//! Replication connections over TLS of ours: logged in as sessions are, and from then on bytes pass.
//! They are never carried, as a stream is one server's; the client comes again.

use super::{
    Proxy,
    attach::{NotAttached, until_cut},
    link::LoggedIn,
    serve::log_in_first,
    startup::Begun,
    stream::Stream,
};
use crate::stats::count;
use sempre_wire::pg::{TransactionStatus, write};
use tokio::io::{AsyncWriteExt, copy_bidirectional};

/// Serves the client until one side ends, or the connection is cut. An error: it was not let in.
pub(super) async fn run(
    client: &mut Stream,
    proxy: &Proxy,
    begun: &Begun,
) -> Result<(), NotAttached> {
    let pool = proxy.pools.key(begun);
    let (logged_in, said) = log_in_first(client, proxy, begun, &pool).await?;
    let LoggedIn { mut link, parameters, notices, .. } = logged_in;
    let mut welcome = Vec::new();
    write::authentication_ok(&mut welcome);
    welcome.extend_from_slice(&notices);
    for (name, value) in parameters {
        write::parameter_status(&mut welcome, &name, &value);
    }
    write::backend_key_data(&mut welcome, link.process, &link.key);
    write::ready_for_query(&mut welcome, TransactionStatus::Idle);
    welcome.append(&mut link.kept);
    let pass = async {
        client.write_all(&welcome).await?;
        link.stream.write_all(&said).await?;
        copy_bidirectional(client, &mut link.stream).await
    };
    if until_cut(&link.ticket.cut, pass).await.is_none() {
        count(&proxy.shared.counters.cut);
    }
    Ok(())
}
