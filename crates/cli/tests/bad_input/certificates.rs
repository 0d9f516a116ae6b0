//! Who may speak on the peers' port, end to end; and that certificates renew themselves.

use crate::{
    common::until,
    rig::{self, Member},
};
use sempre_model::{MemberId, Path as NetPath};
use sempre_net::{Authority, Identity, MEMBER_LIFETIME, Peers, call_stranger};
use std::{
    fs,
    net::TcpStream,
    os::unix::fs::chown,
    sync::Arc,
    time::{Duration, SystemTime},
};

const WITHIN: Duration = Duration::from_secs(5);

/// The cluster's own authority, read from the record of a member that does not run.
fn authority(member: &Member) -> Authority {
    let config = sempre_agent::Config::read(&member.config()).unwrap();
    let record = sempre_agent::recover::outlook(&config).unwrap().record;
    let cluster = record.cluster.unwrap();
    Authority::from_pem(&cluster.ca_certificate, &cluster.ca_key).unwrap()
}

fn id(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

/// Calls `member` as the holder of this identity.
fn call(member: &Member, identity: Identity) -> Result<(), String> {
    let known = sempre_agent::Config::read(&member.config()).unwrap().member(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mine = vec![NetPath { host: "127.0.0.1".into() }];
        let peers = Peers::new(identity.member().clone(), mine, Arc::new(identity)).unwrap();
        peers.set_members([&known]);
        let body = b"1"[..].to_vec().into();
        let called = peers.call(&known.name, "verify", body, WITHIN).await;
        called.map(drop).map_err(|error| error.to_string())
    })
}

#[test]
fn strangers_are_refused_and_logged() {
    let folder = rig::folder();
    let mut member = Member::new(folder.path(), "m1", "").serving(&[]);
    let second = Member::new(folder.path(), "m2", "kind = \"witness\"\n");
    let token = member.sempre(&["token"]).ok().out.clone();
    second.sempre(&["join", token.trim()]).ok();
    member.stop();
    let authority = authority(&member);
    member.start();

    // A good one, as a check of the test itself: this one may call.
    until("m2 may call", || {
        call(&member, Identity::issue(&authority, &id("m2"), MEMBER_LIFETIME).unwrap()).ok()
    });

    // Without a certificate, anything but `join` is refused.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime
        .block_on(call_stranger(
            (&member.address, member.port + 4),
            authority.fingerprint(),
            "verify",
            "1".into(),
            WITHIN,
        ))
        .unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    member.until_logged("needs a member's certificate");

    // Lines about refusals are limited, and begin anew with each start.
    let again = |member: &mut Member| {
        member.stop();
        member.start();
        until("the port is open", || TcpStream::connect((&*member.address, member.port + 4)).ok());
    };

    // Expired.
    again(&mut member);
    let expired = Identity::issue(&authority, &id("m2"), Duration::ZERO).unwrap();
    until("it expires", || {
        (SystemTime::now() > expired.expires_at() + Duration::from_secs(1)).then_some(())
    });
    call(&member, expired).unwrap_err();
    member.until_logged("certificate expired");

    again(&mut member);
    // Of another cluster: everything is as it should be, but its authority.
    let cluster_id = authority.cluster_id().to_owned();
    let foreign = Authority::new("main", &cluster_id).unwrap();
    call(&member, Identity::issue(&foreign, &id("m2"), MEMBER_LIFETIME).unwrap()).unwrap_err();
    // (It does not get so far as to show its own: it does not trust the member's. What a member
    // logs of a forged one is tested in crates/net.)

    again(&mut member);
    // Of a member that was never let in, or was removed.
    call(&member, Identity::issue(&authority, &id("m7"), MEMBER_LIFETIME).unwrap()).unwrap_err();
    member.until_logged("m7 is not a member of this cluster");

    assert!(member.agent_lives());
    member.until("two members, as before", |status| {
        status["members"].as_array().is_some_and(|members| members.len() == 2)
    });
}

/// One near its end, and one past it: replaced by the member itself when it starts, and it works.
#[test]
fn a_certificate_renews_itself() {
    let folder = rig::folder();
    let mut member = Member::new(folder.path(), "m1", "").serving(&[]);
    let mut second = Member::new(folder.path(), "m2", "kind = \"witness\"\n");
    let token = member.sempre(&["token"]).ok().out.clone();
    second.sempre(&["join", token.trim()]).ok();
    second.start();
    member.until("both are heard", |status| status["raft"]["voters"] == 2);
    member.stop();
    second.stop();
    let authority = authority(&member);
    for (member, lifetime) in
        [(&mut member, Duration::ZERO), (&mut second, Duration::from_secs(30))]
    {
        let old = Identity::issue(&authority, &id(&member.name), lifetime).unwrap();
        until("it is due", || old.due_for_renewal(SystemTime::now()).then_some(()));
        let tls = member.root.join("tls");
        old.save(&tls).unwrap();
        let (uid, gid) = rig::member_ids();
        for file in fs::read_dir(&tls).unwrap() {
            chown(file.unwrap().path(), Some(uid), Some(gid)).unwrap();
        }
        member.start();
        member.until_logged("certificate renewed");
        let renewed = Identity::load(&tls).unwrap();
        assert!(!renewed.due_for_renewal(SystemTime::now() + MEMBER_LIFETIME / 2));
    }
    member.until("they agree again", |status| status["writable"] == true);
}
