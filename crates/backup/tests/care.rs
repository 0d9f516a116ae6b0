//! What a backup says of itself, and how much of the machine it takes.

mod common;

use anyhow::Result;
use common::{Fixture, described, noise, tree};
use sempre_backup::{Backup, Options, Reason, Retention, Writer, Writing, list};
use std::{fs, sync::Arc, time::Instant};

/// Bytes that pack well, and are not the same everywhere.
fn text(seed: u64, bytes: usize) -> Vec<u8> {
    noise(seed, bytes / 16 + 1).iter().flat_map(|byte| [*byte; 16]).take(bytes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_turn_into_noise_are_counted() -> Result<()> {
    const BLOCK: usize = sempre_backup::BLOCK_BYTES as usize;
    let mut fixture = Fixture::quick().await?;
    fixture.put("base/5/1", &text(1, 8 * BLOCK));
    fixture.put("base/5/2", &noise(2, 4 * BLOCK));
    let first = fixture.back_up().await?.stats;
    let counted = |s: sempre_backup::Stats| {
        [s.new_bytes, s.rewritten_bytes, s.noise_bytes, s.turned_bytes].map(|n| n / BLOCK as u64)
    };
    assert_eq!(counted(first), [12, 0, 4, 0]);
    // Two blocks are encrypted, one is changed as usual, one of noise too; one is new.
    let mut one = text(1, 8 * BLOCK);
    one[..2 * BLOCK].copy_from_slice(&noise(3, 2 * BLOCK));
    one[5 * BLOCK] ^= 1;
    fixture.put("base/5/1", &one);
    let mut two = noise(2, 5 * BLOCK);
    two[7] ^= 1;
    fixture.put("base/5/2", &two);
    assert_eq!(counted(fixture.back_up().await?.stats), [5, 4, 4, 2]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_with_an_alarm_is_kept_with_the_one_before_until_it_is_accepted() -> Result<()> {
    let mut fixture = Fixture::quick().await?;
    let mut made = Vec::new();
    for n in 0..5 {
        fixture.put("base/5/1", &noise(n, 300_000));
        let writer = fixture.announce().await?;
        let (writing, backup) = common::copy(writer, &fixture.data(), fixture.now).await?;
        let alarms = if n == 2 { vec!["odd".to_owned()] } else { Vec::new() };
        made.push(writing.publish(Backup { alarms, ..backup }).await?.id);
    }
    let repository = &fixture.repository;
    let rules = Retention { last: 1, ..Retention::default() };
    let plan = repository.plan_retention(&rules, fixture.now).await?;
    let kept: Vec<_> = plan.iter().map(|v| (v.is_kept(), v.reasons.last().copied())).collect();
    assert_eq!(kept[0..2], [(false, None), (true, Some(Reason::BeforeAlarm))]);
    assert_eq!(kept[2..4], [(true, Some(Reason::Alarm)), (false, None)]);
    repository.apply_retention(&plan).await?;
    assert_eq!(repository.accept(&made[2]).await?, made[2]);
    let plan = repository.plan_retention(&rules, fixture.now).await?;
    repository.apply_retention(&plan).await?;
    repository.collect(common::real_now()).await?;
    let left = repository.backups().await?;
    assert_eq!(left.iter().map(|b| &b.id).collect::<Vec<_>>(), [&made[4]]);
    assert!(repository.accepted().await?.is_empty(), "its mark went with it");
    assert!(repository.accept(&made[2]).await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_read_a_second_than_is_allowed() -> Result<()> {
    const RATE: u64 = 4 << 20;
    let mut fixture = Fixture::quick().await?;
    for file in 0..4 {
        fixture.put(&format!("base/5/{file}"), &noise(file, 2 << 20));
    }
    let writer = fixture.announce().await?;
    let options = Options { max_bytes_per_s: Some(RATE), ..Options::default() };
    let began = Instant::now();
    let mut writing = Writing::begin(writer, options, Arc::default());
    let sorted_segments = writing.copy(list(&fixture.data())?).await?;
    // 8 MiB by two threads together.
    let took = began.elapsed().as_secs_f64();
    assert!(took >= 1.9, "{took} s");
    let (id, stats) = (writing.id().to_owned(), writing.stats());
    let backup = Backup { sorted_segments, ..described(id, None, fixture.now, stats) };
    writing.publish(backup).await?;
    assert_eq!(stats.read_bytes, 8 << 20);
    Ok(())
}

/// Two clusters' tools, or an old member that nobody has told yet: both end well.
#[tokio::test(flavor = "multi_thread")]
async fn two_writers_at_once_in_one_repository_harm_nobody() -> Result<()> {
    let mut fixture = Fixture::quick().await?;
    fixture.put("base/5/1", &noise(1, 300_000));
    fixture.back_up().await?;
    let mut made = Vec::new();
    for owner in ["the house/a", "another house/a"] {
        fixture.put("base/5/2", &noise(made.len() as u64 + 2, 300_000));
        let repository = fixture.repository.clone();
        let writer =
            Writer::announce_of(&repository, fixture.now + 1000, true, Some(owner)).await?;
        let copied = common::copy(writer, &fixture.data(), fixture.now + 1000).await?;
        fixture.expected.insert(copied.1.id.clone(), tree(&fixture.data()));
        made.push(copied);
        repository.collect(common::real_now()).await?;
    }
    for (writing, backup) in made {
        writing.publish(backup).await?;
        fixture.repository.collect(common::real_now()).await?;
    }
    assert_eq!(fixture.check_all().await?.len(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_lost_something_is_noticed() -> Result<()> {
    let mut fixture = Fixture::quick().await?;
    fixture.put("base/5/1", &noise(1, 300_000));
    let backup = fixture.back_up().await?;
    let repository = &fixture.repository;
    assert_eq!(repository.probe(&backup).await?, None);
    let pack = fixture.keys("packs/").await?.remove(0);
    let file = fixture.stored().join(&pack);
    let whole = fs::read(&file)?;
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (content, said) in
        [(Some(flipped), "checksum"), (Some(whole[..999].to_vec()), "cut short"), (None, "missing")]
    {
        fs::remove_file(&file)?;
        if let Some(content) = content {
            fs::write(&file, content)?;
        }
        let found = repository.probe(&backup).await?.unwrap_or_default();
        assert!(found.contains(said), "{said}: {found}");
    }
    Ok(())
}
