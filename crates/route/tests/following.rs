//! A stand-alone router follows members' REST endpoints (here: small real HTTP servers).

mod common;

use bytes::Bytes;
use common::*;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use sempre_model::{Generation, MemberId};
use sempre_route::{
    Follower, Mode, Router, Standby, TABLE_PATH, Table, TableAnswer, Target, VERIFY_PATH,
    VerifyAnswer,
};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};

/// A member's REST endpoint as far as routing needs it.
struct Member {
    name: MemberId,
    port: u16,
    says: Arc<Mutex<Says>>,
    serving: JoinHandle<()>,
}

#[derive(Clone)]
struct Says {
    table: Table,
    /// It holds the lease of the table's generation.
    holds: bool,
}

impl Member {
    async fn start(name: &str, table: Table) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let name = MemberId::new(name).unwrap();
        let says = Arc::new(Mutex::new(Says { table, holds: false }));
        let (member, shared) = (name.clone(), says.clone());
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (member, shared) = (member.clone(), shared.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let (member, shared) = (member.clone(), shared.clone());
                        async move { Ok::<_, Infallible>(answer(request, member, shared).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { name, port, says, serving }
    }

    fn say(&self, change: impl FnOnce(&mut Says)) {
        change(&mut self.says.lock().unwrap());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    member: MemberId,
    says: Arc<Mutex<Says>>,
) -> Response<Full<Bytes>> {
    let query = request.uri().query().unwrap_or_default();
    let number = |name: &str| {
        let value = query.split('&').find_map(|pair| pair.strip_prefix(name)).unwrap();
        value.trim_start_matches('=').parse::<u64>().unwrap()
    };
    let (status, body) = match request.uri().path() {
        TABLE_PATH => {
            for _ in 0..number("wait_ms") / 10 {
                if says.lock().unwrap().table.version != number("after") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let Says { table, holds } = says.lock().unwrap().clone();
            let answer = TableAnswer { member, confirmed: holds, table };
            (StatusCode::OK, serde_json::to_vec(&answer).unwrap())
        }
        VERIFY_PATH => {
            let generation = Generation(number("generation"));
            let Says { table, holds } = says.lock().unwrap().clone();
            let holds = holds && table.generation == generation;
            let answer = VerifyAnswer { member, generation, holds };
            let status = if holds { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (status, serde_json::to_vec(&answer).unwrap())
        }
        other => panic!("{other} is not asked for"),
    };
    Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stand_alone_router_follows_a_failover() {
    let pair = pair();
    let old = Member::start("old", table(1, None)).await;
    let new = Member::start("new", table(1, None)).await;
    let with_rest =
        |server: &Server, rest: u16| Target { rest_port: Some(rest), ..server.target() };
    let first = Table {
        version: 2,
        standbys: vec![Standby {
            target: with_rest(&pair.new, new.port),
            lag_bytes: 0,
            follows: true,
        }],
        ..table(1, Some(with_rest(&pair.old, old.port)))
    };
    // Told of one member only, and of an address where nobody is; it learns of the other.
    let (tables, verifier) =
        Follower::start(vec![("127.0.0.1".into(), old.port), ("127.0.0.9".into(), old.port)], None);
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let router = Router::start(listen, Mode::ReadWrite, tables.clone(), verifier.clone()).unwrap();
    let dsn = dsn(router.addresses()[0], "disable");

    // The table names the primary, but its agent does not confirm yet.
    old.say(|says| says.table = first.clone());
    until("followed", || tables.borrow().primary.is_some()).await;
    let held = dsn.clone();
    let client = tokio::spawn(async move { connect(&held).await });
    until("asked", || router.stats().unverified > 0).await;
    old.say(|says| says.holds = true);
    let (client, connection) = client.await.unwrap().unwrap();
    assert_eq!(server_of(&client).await, "old");
    assert!(verifier.verify(&old.name, Generation(1)).await);
    assert!(!verifier.verify(&old.name, Generation(2)).await, "not that generation");
    assert!(!verifier.verify(&new.name, Generation(1)).await, "not that member");

    // The old primary's machine goes; a new generation begins.
    drop(old);
    new.say(|says| {
        says.table = Table { version: 9, ..table(2, Some(with_rest(&pair.new, new.port))) };
        says.holds = true;
    });
    let error = connection.await.unwrap().unwrap_err();
    assert_eq!(error.as_db_error().unwrap().code().code(), "57P01");
    let (client, _connection) = connect(&dsn).await.unwrap();
    assert_eq!(server_of(&client).await, "new");

    // All agents silent: the session goes on, the table stays, nobody new is let in.
    drop(new);
    let dsn = dsn.clone();
    let late = tokio::spawn(async move { connect(&dsn).await.map(|_| ()) });
    until("held", || router.stats().held == 1).await;
    assert_eq!(server_of(&client).await, "new");
    assert_eq!(tables.borrow().generation, Generation(2));
    router.shutdown().await;
    assert!(late.await.unwrap().is_err());
}
