//! No two promotions ever take the same timeline number, whatever they know of each other.

use crate::servers::{Server, folder, member, until};
use anyhow::Result;
use sempre_model::{
    Command, Generation, Member, MemberKind, Record, Timeline, command::Change, member::Ports,
};
use sempre_postgres::{CloneOptions, Session};

/// A standby of `of` that streams.
async fn standby(root: &std::path::Path, name: &str, of: &Server) -> Result<(Server, Session)> {
    let mut server = Server::empty(root, name);
    server.instance.clone_from(&of.as_upstream(), &CloneOptions::default(), |_| ()).await?;
    let session = server.start(&server.standby_settings(Some(of))).await?;
    until("it streams", async || Ok(session.observe().await?.streaming_from.is_some())).await?;
    Ok((server, session))
}

/// Fences a standby, as before every promotion.
async fn fence(server: &Server, session: &Session) -> Result<()> {
    server.reconfigure(session, &server.standby_settings(None)).await?;
    until("it is fenced", async || Ok(session.fence_position().await?.is_some())).await
}

/// Promotes as the agent does for `generation`, and says which timeline it got.
async fn promote(server: &Server, session: &Session, generation: Generation) -> Result<Timeline> {
    server.instance.reserve_timelines(Timeline(u32::try_from(generation.0)?))?;
    session.promote().await?;
    session.checkpoint().await?;
    Ok(session.position().await?.0)
}

/// The first generation of a cluster whose first primary has this data.
fn first_generation(server: &Server) -> Result<Generation> {
    let mut record = Record::default();
    let put = Member {
        name: member("a"),
        node: 1,
        kind: MemberKind::Data,
        paths: vec![sempre_model::Path { host: "127.0.0.1".into() }],
        ports: Ports::default(),
        zone: None,
        tags: Default::default(),
        own_certificate: false,
    };
    let put = Change::PutMember { member: Box::new(put), token_hash: None };
    let timeline = server.instance.control_data()?.timeline;
    let bootstrap = Change::Bootstrap { primary: member("a"), timeline };
    for change in [put, bootstrap] {
        record.apply(&Command { at_unix_ms: 1, change })?;
    }
    assert_eq!(record.history[0].timeline, timeline);
    Ok(record.generation)
}

/// Two standbys of `primary` are promoted at different generations, the first one unheard.
async fn two_promotions(root: &std::path::Path, primary: &mut Server) -> Result<[Timeline; 2]> {
    let first = first_generation(primary)?.next();
    let on_primary = primary.session().await?;
    on_primary.ensure_slots(&[member("b"), member("c")].into()).await?;
    let (b, on_b) = standby(root, "b", primary).await?;
    let (c, on_c) = standby(root, "c", primary).await?;
    fence(&b, &on_b).await?;
    fence(&c, &on_c).await?;
    let timelines = [promote(&b, &on_b, first).await?, promote(&c, &on_c, first.next()).await?];
    // Each is the number of its generation: as unique as that is.
    assert_eq!(timelines.map(|t| u64::from(t.0)), [first.0, first.0 + 1]);
    Ok(timelines)
}

#[tokio::test]
async fn two_standbys_promoted_at_different_generations_get_different_timelines() -> Result<()> {
    let root = folder();
    let mut a = Server::new(root.path(), "a").await;
    a.start(&a.primary_settings()).await?;
    assert_eq!(two_promotions(root.path(), &mut a).await?, [Timeline(2), Timeline(3)]);
    Ok(())
}

#[tokio::test]
async fn also_when_the_first_primary_was_adopted_on_a_high_timeline() -> Result<()> {
    let root = folder();
    let mut a = Server::new(root.path(), "a").await;
    // It was restored and promoted twice before sempre knew it.
    for expected in [2, 3] {
        let session = a.start(&a.standby_settings(None)).await?;
        session.promote().await?;
        session.checkpoint().await?;
        assert_eq!(session.position().await?.0, Timeline(expected));
        a.stop();
    }
    a.start(&a.primary_settings()).await?;
    assert_eq!(two_promotions(root.path(), &mut a).await?, [Timeline(4), Timeline(5)]);
    Ok(())
}
