//! A router with a fixed table, to measure with: `fixed LISTEN HOST:PORT`, for example
//! `cargo run --release -p sempre-route --example fixed -- 127.0.0.1:6432 127.0.0.1:5432`.
//! Its server is the primary for ever, and always confirms.

use sempre_model::{Generation, MemberId};
use sempre_route::{Mode, Router, Table, Target, Verifier};
use std::sync::Arc;
use tokio::sync::watch;

struct Always;

#[async_trait::async_trait]
impl Verifier for Always {
    async fn verify(&self, _: &MemberId, _: Generation) -> bool {
        true
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(server)) = (arguments.next(), arguments.next()) else {
        return Err("usage: fixed LISTEN HOST:PORT".into());
    };
    let (host, port) = server.rsplit_once(':').ok_or("the server is HOST:PORT")?;
    let target = Target {
        member: MemberId::new("fixed")?,
        hosts: vec![host.into()],
        port: port.parse()?,
        rest_port: None,
    };
    let table = Table { version: 1, primary: Some(target), ..Table::default() };
    let (_keep, table) = watch::channel(Arc::new(table));
    let router = Router::start(vec![listen.parse()?], Mode::ReadWrite, table, Arc::new(Always))?;
    println!("{:?}", router.addresses());
    tokio::signal::ctrl_c().await?;
    println!("{:?}", router.stats());
    router.shutdown().await;
    Ok(())
}
