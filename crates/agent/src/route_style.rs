//! How this member's routers treat their clients, by its config file.

use crate::{
    config::{Config, Route, RouteStyle},
    credentials::DatabaseCredentials,
    executor::Executor,
    vouching::Voucher,
};
use anyhow::{Context, Result};
use sempre_net::{Identity, https_client, https_server, server_for};
use sempre_route::{ALPN, ClientTls, ProxySettings, ServerTls, Style, Table, Vouching};
use std::{fs, path::Path, sync::Arc};
use tokio::sync::watch;

/// The style. An error: a certificate cannot be read.
pub fn of(
    config: &Config,
    identity: &Arc<Identity>,
    executor: Arc<Executor>,
    table: watch::Receiver<Arc<Table>>,
) -> Result<Style> {
    let route = &config.route;
    if route.style == RouteStyle::Pass {
        return Ok(Style::Pass);
    }
    let why = "`[route]` in the config file";
    let server_tls = server_tls(route, identity).context(why)?;
    let vouching = route.client_ca_file.is_some().then(|| -> Arc<dyn Vouching> {
        Arc::new(Voucher::new(executor.clone(), server_tls.clone()))
    });
    Ok(Style::Proxy(ProxySettings {
        client_tls: Some(client_tls(route, identity).context(why)?),
        vouching,
        server_tls: ServerTls::AsClient(Arc::new(server_tls)),
        credentials: Some(Arc::new(DatabaseCredentials::new(executor, config.kind, table))),
        admin_users: route.admin_users.clone(),
        pool: route.pool.clone(),
        split: route.splitting(),
        resolve_autocommit: route.resolve_autocommit,
        ..ProxySettings::default()
    }))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// With a certificate of the administrator's, or else the member's; both follow their renewals.
fn client_tls(route: &Route, identity: &Arc<Identity>) -> Result<ClientTls> {
    let own = route.cert_file.as_deref().zip(route.key_file.as_deref());
    let mut config = match &route.client_ca_file {
        None => https_server(identity.clone(), own)?,
        Some(file) => server_for(identity.clone(), own, &read(file)?)?,
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    let always = own.is_some() || route.require_tls;
    Ok(ClientTls { config: Arc::new(config), always, required: route.require_tls })
}

fn server_tls(route: &Route, identity: &Identity) -> Result<rustls::ClientConfig> {
    let others = route.database_ca_file.as_deref().map(read).transpose()?;
    let mut config = https_client(Some(identity.ca_pem()), others.as_deref())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}
