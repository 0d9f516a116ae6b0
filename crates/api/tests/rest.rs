//! Information, actions, who may act, the client, and what the server makes of garbage.

mod common;

use common::{FakeAgent, NOW, TOKEN, change_database, change_record, id, silence, snapshot};
use sempre_api::{
    Action, ApiError, ApiServer, Client, ClientError, codes,
    http::{BODY_MAX, ROUTES},
    serve,
};
use sempre_model::restart::{RestartConditions, ScheduledRestart, WantedRole};
use serde_json::{Value, json};
use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

struct Rig {
    agent: Arc<FakeAgent>,
    server: ApiServer,
}

fn rig(me: &str) -> Rig {
    let agent = FakeAgent::new(snapshot(me));
    let server = serve(vec!["127.0.0.1:0".parse().unwrap()], agent.clone()).unwrap();
    Rig { agent, server }
}

impl Rig {
    fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        let mut answer = Vec::new();
        // The server may close before it has read all, or anything, of it.
        let _cut = stream.write_all(bytes).await;
        let _cut = stream.read_to_end(&mut answer).await;
        answer
    }

    async fn ask(
        &self,
        method: &str,
        target: &str,
        authorization: &str,
        body: &str,
    ) -> (u16, String) {
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = String::from_utf8(self.raw(request.as_bytes()).await).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn get(&self, target: &str) -> Value {
        let (code, body) = self.ask("GET", target, "", "").await;
        assert_eq!(code, 200, "{target}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn act(&self, method: &str, target: &str, body: Value) -> (u16, String) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask(method, target, &format!("Authorization: Bearer {TOKEN}\r\n"), &body).await
    }

    fn client(&self, token: &str) -> Client {
        Client::new([format!("http://{}", self.address())], Some(token.into())).unwrap()
    }
}

#[tokio::test]
async fn documents_have_the_fields_that_tools_look_for() {
    let rig = rig("m1");
    let patroni = rig.get("/patroni").await;
    assert_eq!(patroni["state"], "running");
    assert_eq!(patroni["role"], "primary");
    assert_eq!(patroni["server_version"], 150_018);
    assert_eq!(patroni["xlog"], json!({"location": 0x500_0060}));
    assert_eq!(patroni["timeline"], 2);
    assert_eq!(patroni["replication"][0]["application_name"], "m2");
    assert_eq!(patroni["replication"][1]["client_addr"], "10.0.2.3");
    assert_eq!(patroni["dcs_last_seen"], NOW / 1_000 - 1);
    assert_eq!(patroni["database_system_identifier"], "7268616322854375442");
    assert_eq!(patroni["postmaster_start_time"], "2026-01-30 12:06:40+00:00");
    assert_eq!(patroni["patroni"], json!({"version": "0.1.0", "scope": "demo", "name": "m1"}));
    for absent in ["cluster_unlocked", "pause", "pending_restart", "quorum_standby", "tags"] {
        assert!(patroni.get(absent).is_none(), "{absent}");
    }

    rig.agent.change(|s| {
        s.me = id("m2");
        change_record(s, |r| r.members.get_mut(&id("m2")).unwrap().tags.no_route = true);
        change_database(s, "m2", |d| d.pending_restart = vec!["max_connections".into()]);
        silence(s, "m1", 9_000);
    });
    let patroni = rig.get("/patroni").await;
    assert_eq!(patroni["role"], "replica");
    assert_eq!(patroni["replication_state"], "streaming");
    assert_eq!(patroni["quorum_standby"], true);
    assert_eq!(patroni["cluster_unlocked"], true);
    assert_eq!(patroni["pending_restart"], true);
    assert_eq!(patroni["tags"], json!({"noloadbalance": true}));
    assert_eq!(patroni["xlog"]["received_location"], 0x500_0060);
    assert_eq!(patroni["xlog"]["paused"], false);

    let cluster = rig.get("/cluster").await;
    assert_eq!(cluster["scope"], "demo");
    let names: Vec<_> = cluster["members"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    assert_eq!(names, ["m1", "m2", "m3"]);
    assert_eq!(cluster["members"][0]["role"], "leader");
    assert_eq!(cluster["members"][0]["state"], "unknown");
    assert_eq!(
        cluster["members"][2],
        json!({
            "name": "m3", "role": "quorum_standby", "state": "streaming", "host": "10.0.1.3",
            "port": 5432, "api_url": "http://10.0.1.3:8008/patroni", "timeline": 2,
            "receive_lag": 0, "receive_lsn": "0/5000060", "replay_lag": 0,
            "replay_lsn": "0/5000060", "lag": 0, "lsn": "0/5000060",
        })
    );
    let history = rig.get("/history").await;
    assert_eq!(history, json!([[1, 0x300_0000, "member_lost", "2026-01-31T04:00:00+00:00", "m1"]]));
    rig.server.shutdown().await;
}

#[tokio::test]
async fn sempres_own_information() {
    let rig = rig("m1");
    assert_eq!(rig.get("/v1/status").await["primary"], "m1");
    assert_eq!(rig.get("/v1/history").await["history"].as_array().unwrap().len(), 2);
    let events = rig.get("/v1/events?after=1").await;
    assert_eq!((&events["events"][0]["seq"], &events["last"]), (&json!(2), &json!(2)));
    let config = rig.get("/v1/config").await;
    assert_eq!(config["policy"]["lease_ttl_ms"], 2_000);
    assert!(!config.to_string().contains(TOKEN) && !config.to_string().contains("ca_key"));
    assert_eq!(rig.get("/v1/route?after=3&wait_ms=5").await, json!({"after": 3, "wait_ms": 5}));
    let longest = rig.get("/v1/route?after=3&wait_ms=99999999").await;
    assert_eq!(longest["wait_ms"], 30_000);
    assert_eq!(rig.ask("GET", "/v1/route/verify?generation=2", "", "").await.0, 200);
    assert_eq!(rig.ask("GET", "/v1/route/verify?generation=1", "", "").await.0, 503);
    for bad in ["/v1/route/verify", "/v1/route/verify?generation=x", "/v1/events?after=-1"] {
        assert_eq!(rig.ask("GET", bad, "", "").await.0, 400, "{bad}");
    }
    rig.server.shutdown().await;
}

#[tokio::test]
async fn only_the_token_opens_what_changes_something() {
    let rig = rig("m1");
    let changing: Vec<_> =
        ROUTES.iter().filter(|(method, _)| !matches!(*method, "get" | "options")).collect();
    assert!(changing.len() > 15);
    for (method, path) in changing {
        let method = method.to_uppercase();
        for bad in [
            "",
            "Authorization: Bearer wrong\r\n",
            "Authorization: Bearer\r\n",
            "Authorization: Basic eDp4\r\n",
        ] {
            let (code, body) = rig.ask(&method, path, bad, "{}").await;
            assert_eq!(code, 401, "{method} {path} {bad}");
            assert!(body.contains("SEMPRE-0001"), "{body}");
        }
    }
    assert_eq!(rig.agent.asked(), []);
    // Patroni's tools send a user and a password.
    let basic = "Authorization: Basic dTphLXNlY3JldC10b2tlbg==\r\n";
    assert_eq!(rig.ask("POST", "/reload", basic, "").await.0, 202);

    // An empty secret opens nothing.
    rig.agent.change(|s| change_record(s, |r| r.cluster.as_mut().unwrap().secrets.rest.clear()));
    assert_eq!(rig.ask("POST", "/reload", "Authorization: Bearer \r\n", "").await.0, 401);
    rig.agent.change(|s| change_record(s, |r| r.cluster = None));
    assert_eq!(rig.act("POST", "/v1/pause", json!({})).await.0, 503);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn patronis_actions() {
    let rig = rig("m1");
    let later = "2027-01-31T12:00:00+01:00";
    let cases: &[(&str, &str, Value, u16)] = &[
        ("POST", "/switchover", json!({}), 400),
        ("POST", "/switchover", Value::Null, 400),
        ("POST", "/switchover", json!([1]), 400),
        ("POST", "/switchover", json!({"candidate": "m2"}), 400),
        ("POST", "/switchover", json!({"leader": "m1", "candidate": "m1"}), 400),
        ("POST", "/switchover", json!({"leader": "m2"}), 412),
        ("POST", "/switchover", json!({"leader": "m1", "candidate": "m9"}), 412),
        ("POST", "/switchover", json!({"leader": "m1", "candidate": "No Name"}), 412),
        ("POST", "/switchover", json!({"leader": "m1", "scheduled_at": "soon"}), 422),
        (
            "POST",
            "/switchover",
            json!({"leader": "m1", "scheduled_at": "2020-01-31T12:00:00Z"}),
            422,
        ),
        (
            "POST",
            "/switchover",
            json!({"leader": "m1", "scheduled_at": "2027-01-31T12:00:00"}),
            400,
        ),
        ("POST", "/failover", json!({"scheduled_at": later}), 400),
        ("POST", "/failover", json!({"candidate": "m2", "scheduled_at": later}), 400),
        ("POST", "/failover", json!({"candidate": "m9"}), 412),
        ("POST", "/restart", json!({"role": "replica"}), 503),
        ("POST", "/restart", json!({"role": "boss"}), 400),
        ("POST", "/restart", json!({"restart_pending": true}), 503),
        ("POST", "/restart", json!({"postgres_version": "14.1"}), 503),
        ("POST", "/restart", json!({"postgres_version": "x"}), 400),
        ("POST", "/restart", json!({"timeout": -1}), 400),
        ("POST", "/restart", json!({"schedule": "soon"}), 422),
        ("POST", "/restart", json!({"schedule": null}), 422),
        ("POST", "/restart", json!({"schedule": "2020-01-31T12:00:00Z"}), 422),
        ("POST", "/restart", json!({"schedule": "2027-01-31T12:00:00"}), 400),
        ("POST", "/restart", json!({"schedule": later, "role": "boss"}), 400),
        ("POST", "/restart", json!({"what": 1}), 400),
    ];
    for (method, path, body, code) in cases {
        let answer = rig.act(method, path, body.clone()).await;
        assert_eq!(answer.0, *code, "{method} {path} {body}: {}", answer.1);
    }
    assert_eq!(rig.agent.asked(), []);
    assert_eq!(rig.act("DELETE", "/switchover", Value::Null).await.0, 404);
    assert_eq!(rig.act("DELETE", "/restart", Value::Null).await.0, 404);

    let scheduled = json!({"leader": "m1", "candidate": "m2", "scheduled_at": later});
    assert_eq!(rig.act("POST", "/switchover", scheduled).await.0, 202);
    let shown = rig.get("/cluster").await["scheduled_switchover"].clone();
    assert_eq!(shown, json!({"at": "2027-01-31T11:00:00+00:00", "from": "m1", "to": "m2"}));
    assert_eq!(rig.act("DELETE", "/switchover", Value::Null).await.0, 200);
    assert_eq!(
        rig.act("POST", "/restart", json!({"role": "primary", "timeout": "30"})).await.0,
        200
    );
    assert_eq!(rig.act("POST", "/reinitialize", json!({"force": true})).await.0, 200);
    let (code, text) = rig.act("POST", "/switchover", json!({"leader": "m1"})).await;
    assert_eq!((code, text.contains("m3")), (200, true), "{text}");
    assert_eq!(rig.act("POST", "/failover", json!({"candidate": "m2"})).await.0, 200);

    rig.agent.refuse_next(codes::WOULD_LOSE_DATA.error("no failover", "4096 bytes would be lost"));
    let (code, text) = rig.act("POST", "/failover", json!({"candidate": "m1"})).await;
    assert_eq!((code, text.contains("4096 bytes")), (412, true), "{text}");
    rig.agent.refuse_next(codes::NO_QUORUM.error("nothing was changed", "alone"));
    assert_eq!(rig.act("POST", "/failover", json!({"candidate": "m1"})).await.0, 503);
    rig.agent.asked();

    rig.agent.change(|s| change_record(s, |r| r.paused = true));
    assert_eq!(rig.act("POST", "/switchover", json!({"leader": "m2"})).await.0, 400);
    let scheduled = json!({"leader": "m2", "candidate": "m1", "scheduled_at": later});
    assert_eq!(rig.act("POST", "/switchover", scheduled).await.0, 400);
    assert_eq!(rig.act("POST", "/restart", json!({"schedule": later})).await.0, 500);
    assert_eq!(rig.agent.asked(), []);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn a_restart_is_scheduled_and_shown_and_taken_back() {
    let rig = rig("m1");
    let (role, pending) = (Some(WantedRole::Replica), true);
    let only_if = RestartConditions { role, below_version_num: Some(150_019), pending };
    let at_unix_ms = 1_801_393_200_000;
    let wish = ScheduledRestart { at_unix_ms, only_if, timeout_seconds: Some(30) };

    // Its conditions do not hold now; they need not before its time.
    let later = json!({"schedule": "2027-01-31T12:00:00+01:00", "role": "replica",
        "postgres_version": "15.19", "timeout": "30", "restart_pending": true});
    let (code, text) = rig.act("POST", "/restart", later.clone()).await;
    assert_eq!(code, 202, "{text}");
    assert_eq!(rig.agent.asked(), [Action::ScheduleRestart { member: id("m1"), wish }]);
    assert_eq!(rig.act("POST", "/restart", later.clone()).await.0, 409);

    let mut shown = later;
    shown["schedule"] = "2027-01-31T11:00:00+00:00".into();
    shown["timeout"] = 30.into();
    assert_eq!(rig.get("/patroni").await["scheduled_restart"], shown);
    assert_eq!(rig.get("/cluster").await["members"][0]["scheduled_restart"], shown);
    assert!(rig.get("/cluster").await["members"][1].get("scheduled_restart").is_none());
    let status = rig.get("/v1/status").await;
    assert_eq!(status["members"][0]["scheduled_restart"]["at_unix_ms"], at_unix_ms);
    let odd = status["oddities"].to_string();
    assert!(odd.contains("a restart of m1 is scheduled for 2027-01-31 11:00"), "{odd}");
    assert!(odd.contains("`sempre restart m1 --cancel`"), "{odd}");
    rig.agent.change(|s| s.now_unix_ms = at_unix_ms + 1);
    let odd = rig.get("/v1/status").await["oddities"].to_string();
    assert!(odd.contains("a scheduled restart of m1 waits"), "{odd}");

    // One at once is not kept back by it.
    assert_eq!(rig.act("POST", "/restart", json!({})).await.0, 200);
    assert_eq!(rig.act("DELETE", "/restart", Value::Null).await.0, 200);
    assert_eq!(rig.act("DELETE", "/restart", Value::Null).await.0, 404);
    assert!(rig.get("/patroni").await.get("scheduled_restart").is_none());
    rig.server.shutdown().await;
}

#[tokio::test]
async fn a_switchover_that_is_given_up_is_told() {
    let rig = rig("m1");
    *rig.agent.give_up_next.lock().unwrap() = true;
    rig.agent.change(|s| {
        change_record(s, |r| r.events[1].text = "m2 did not catch up".into());
    });
    let body = json!({"leader": "m1", "candidate": "m2"});
    let (code, text) = rig.act("POST", "/switchover", body).await;
    assert_eq!((code, text.contains("m2 did not catch up")), (503, true), "{text}");
    rig.server.shutdown().await;
}

#[tokio::test]
async fn the_configuration_in_patronis_words() {
    let rig = rig("m1");
    let shown = rig.get("/config").await;
    assert_eq!(shown["ttl"], 2);
    assert_eq!(shown["synchronous_mode"], "quorum");

    // What was read can be sent back, as a whole.
    assert_eq!(rig.act("PUT", "/config", shown.clone()).await.0, 200);
    assert_eq!(rig.agent.asked(), []);

    let change = json!({"ttl": 5, "maximum_lag_on_failover": 2_097_152, "strict": true,
        "postgresql": {"parameters": {"work_mem": "8MB", "max_connections": 50}}});
    let (code, body) = rig.act("PATCH", "/config", change).await;
    assert_eq!(code, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["ttl"], &body["maximum_lag_on_failover"]), (&json!(5), &json!(2_097_152)));
    assert_eq!(
        body["postgresql"]["parameters"],
        json!({"max_connections": "50", "work_mem": "8MB"})
    );

    let one_gone = json!({"postgresql": {"parameters": {"work_mem": null}}});
    rig.act("PATCH", "/config", one_gone).await;
    rig.act("PATCH", "/config", json!({"pause": true, "synchronous_mode": false})).await;
    let shown = rig.get("/config").await;
    assert_eq!(shown["postgresql"]["parameters"], json!({"max_connections": "50"}));
    assert_eq!((&shown["pause"], &shown["synchronous_mode"]), (&json!(true), &json!(false)));
    let whole = json!({"postgresql": {"parameters": {}, "pg_hba": ["host all all all md5"]}});
    rig.act("PUT", "/config", whole).await;
    let shown = rig.get("/config").await;
    assert_eq!(shown["postgresql"]["parameters"], json!({}));
    assert_eq!(shown["postgresql"]["pg_hba"], json!(["host all all all md5"]));

    rig.agent.asked();
    for bad in [
        json!({"loop_wait": 99}),
        json!({"ttl": 0.1}),
        json!({"ttl": "x"}),
        json!({"nonsense": 1}),
        json!({"postgresql": {"bin_dir": "/x"}}),
        json!({"postgresql": 1}),
        json!({"synchronous_mode": "perhaps"}),
        json!({}),
        Value::Null,
        // The second does not fit, so the first is not done either.
        json!({"postgresql": {"parameters": {"work_mem": "1MB"}}, "lease_ttl_ms": "1ms"}),
    ] {
        assert_eq!(rig.act("PATCH", "/config", bad.clone()).await.0, 400, "{bad}");
    }
    assert_eq!(rig.agent.asked(), []);
    rig.server.shutdown().await;
}

fn tomorrow() -> ScheduledRestart {
    let only_if = RestartConditions::default();
    ScheduledRestart { at_unix_ms: NOW + 86_400_000, only_if, timeout_seconds: None }
}

#[tokio::test]
async fn the_client_sees_and_acts() {
    let rig = rig("m1");
    let client = rig.client(TOKEN);
    assert_eq!(client.status().await.unwrap().primary, Some(id("m1")));
    assert_eq!(client.history().await.unwrap().len(), 2);
    let events = client.events(0, Duration::ZERO).await.unwrap();
    assert_eq!((events.events.len(), events.last), (2, 2));

    let actions = [
        Action::Pause,
        Action::Resume,
        Action::Reload,
        Action::Restart { member: id("m2") },
        Action::ScheduleRestart { member: id("m2"), wish: tomorrow() },
        Action::CancelRestart { member: id("m2") },
        Action::Reinit { member: id("m3"), from_backup: None },
        Action::Remove { member: id("w1"), force: false },
        Action::IssueToken { ttl_seconds: 60 },
        Action::Switchover { to: Some(id("m2")), at_unix_ms: Some(NOW + 1) },
        Action::CancelSwitchover,
        Action::Failover { to: id("m2"), allow_data_loss: true },
        Action::SetPolicy(vec![("lease_ttl_ms".into(), "5s".into())]),
        Action::SetParameters([("work_mem".to_owned(), Some("8MB".to_owned()))].into()),
        Action::SetHba(vec!["host all all all md5".into()]),
    ];
    for action in &actions {
        client.act(action).await.unwrap_or_else(|error| panic!("{action:?}: {error}"));
    }
    assert_eq!(rig.agent.asked(), actions);

    for (action, code) in [
        (Action::Restart { member: id("m9") }, codes::UNKNOWN_MEMBER),
        (Action::CancelRestart { member: id("m9") }, codes::UNKNOWN_MEMBER),
        (Action::ScheduleRestart { member: id("m9"), wish: tomorrow() }, codes::UNKNOWN_MEMBER),
        (Action::SetPolicy(vec![("lease_tll_ms".into(), "5s".into())]), codes::UNKNOWN_POLICY_KEY),
        (Action::SetPolicy(vec![("lease_ttl_ms".into(), "x".into())]), codes::BAD_POLICY_VALUE),
        (Action::SetPolicy(vec![("lease_ttl_ms".into(), "1".into())]), codes::POLICY_CONTRADICTION),
        (Action::IssueToken { ttl_seconds: 0 }, codes::BAD_REQUEST),
    ] {
        let error = client.act(&action).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    assert_eq!(rig.agent.asked(), []);
    let stranger = rig.client("wrong").act(&Action::Pause).await.unwrap_err();
    assert_eq!(stranger.code(), codes::UNAUTHORISED);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn the_client_goes_on_to_the_next_member() {
    let rig = rig("m1");
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let urls = [format!("http://{dead}"), format!("http://{}", rig.address())];
    let client = Client::new(urls, Some(TOKEN.into())).unwrap();
    assert_eq!(client.status().await.unwrap().cluster, "demo");
    client.act(&Action::Pause).await.unwrap();
    assert_eq!(rig.agent.asked(), [Action::Pause]);

    let alone = Client::new([format!("http://{dead}")], None).unwrap();
    let error = alone.status().await.unwrap_err();
    assert!(error.to_string().contains(&dead.to_string()), "{error}");
    assert_eq!(error.code(), codes::UNREACHABLE);
    let nobody = Client::new(Vec::<String>::new(), None).unwrap();
    assert!(matches!(nobody.status().await, Err(ClientError::Unreachable { .. })));
    rig.server.shutdown().await;
}

#[tokio::test]
async fn followers_are_told_of_new_events() {
    let rig = rig("m1");
    let client = rig.client(TOKEN);
    let waiting = tokio::spawn(async move { client.events(2, Duration::from_secs(20)).await });
    rig.agent.change(|s| {
        change_record(s, |r| {
            let event = r.events[1].clone();
            r.events.push(sempre_model::record::Event { seq: 3, ..event });
        });
    });
    let events = waiting.await.unwrap().unwrap();
    assert_eq!((events.events[0].seq, events.last), (3, 3));
    rig.server.shutdown().await;
}

#[tokio::test]
async fn garbage_is_harmless() {
    let rig = rig("m1");
    let huge = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200_000));
    let headers = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(5_000));
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/pause HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/pause HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        &[0xff; 10_000],
        huge.as_bytes(),
        headers.as_bytes(),
    ] {
        let answer = rig.raw(bytes).await;
        let head = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        assert!(answer.is_empty() || head.starts_with("HTTP/1.1 4"), "{head}");
    }
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    for (method, target, body, code) in [
        ("POST", "/v1/failover", "{", 400),
        ("POST", "/v1/failover", "\"to\"", 400),
        ("POST", "/v1/failover", "{\"to\": \"\\u0000\"}", 400),
        ("PATCH", "/v1/config", "{\"policy\": {\"strict\": {}}}", 400),
        ("PATCH", "/v1/config", "{\"plicy\": {}}", 400),
        ("PATCH", "/v1/config", "{}", 400),
        ("GET", "/nonsense", "", 404),
        ("GET", "/v1/", "", 404),
        ("GET", "/../../etc/passwd", "", 404),
        ("DELETE", "/v1/pause", "", 405),
        ("POST", "/", "", 405),
        ("BREW", "/cluster", "", 405),
    ] {
        let (got, text) = rig.ask(method, target, &token, body).await;
        assert_eq!(got, code, "{method} {target} {body}: {text}");
        assert!(text.contains("SEMPRE-00"), "{method} {target}: {text}");
    }
    let large = format!("{{\"hba\": [\"{}\"]}}", "x".repeat(BODY_MAX));
    assert_eq!(rig.ask("PATCH", "/v1/config", &token, &large).await.0, 413);
    assert_eq!(rig.agent.asked(), []);
    assert_eq!(rig.ask("GET", "/primary", "", "").await.0, 200);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let rig = rig("m1");
    let taken = rig.address();
    let other = "127.0.0.1:0".parse().unwrap();
    let error = serve(vec![other, taken], rig.agent.clone()).unwrap_err();
    assert!(matches!(&error, ApiError::Listen { address, code, .. }
        if *address == taken && *code == codes::PORT_IN_USE));
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
    assert!(matches!(serve(vec![], rig.agent.clone()), Err(ApiError::NoAddress)));

    // Several addresses at once, and free again after the end.
    let both = serve(vec![other, other], rig.agent.clone()).unwrap();
    assert_ne!(both.addresses()[0], both.addresses()[1]);
    both.shutdown().await;
    rig.server.shutdown().await;
    serve(vec![taken], rig.agent.clone()).unwrap().shutdown().await;
}

#[test]
fn without_a_runtime_there_is_no_server() {
    let agent = FakeAgent::new(snapshot("m1"));
    let served = serve(vec!["127.0.0.1:0".parse().unwrap()], agent);
    assert!(matches!(served, Err(ApiError::NoRuntime)));
}

#[tokio::test]
async fn the_openapi_document_names_every_route_and_no_other() {
    let rig = rig("m1");
    let document = rig.get("/v1/openapi.json").await;
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (method.clone(), path.clone()))
        })
        .collect();
    let served: BTreeSet<_> =
        ROUTES.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, served);
    for name in Action::NAMES {
        assert!(served.contains(&("post".into(), format!("/v1/{name}"))), "{name}");
    }
    // Every reference leads somewhere, and every operation says what it is.
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
    for (method, path) in served {
        let operation = &document["paths"][&path][&method];
        assert!(operation["summary"].is_string() && operation["responses"].is_object(), "{path}");
    }
    // The schema of the status has exactly its fields.
    let fields =
        |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let status = rig.get("/v1/status").await;
    let schemas = &document["components"]["schemas"];
    assert_eq!(fields(&schemas["Status"]["properties"]), fields(&status));
    assert_eq!(fields(&schemas["Member"]["properties"]), fields(&status["members"][0]));
    rig.server.shutdown().await;
}
