//! Pages whose checksums are wrong are found while they are copied; those that are only being written are not.

use crate::{
    rig::{Rig, ask, run},
    servers::{Server, folder},
};
use anyhow::Result;
use sempre_backup::{Folder, Identity, Repository, Secret};
use std::{fs::OpenOptions, os::unix::fs::FileExt, sync::Arc};

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_is_told_and_a_busy_one_is_not() -> Result<()> {
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;
    let session = server.start(&server.primary_settings()).await?;
    let mut rig = Rig::of(&server).await?;
    let _keeping = rig.keep_local(&server);
    run(&session, "create table cold as select i from generate_series(1, 50000) i").await?;
    run(&session, "create table busy as select i from generate_series(1, 50000) i").await?;
    // Written all the time, with hardly any buffers: pages go out while they are copied.
    let busy = server.instance.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let writing = tokio::spawn(crate::rig::keep_busy(busy, stopped));
    let mut first = None;
    for _ in 0..3 {
        let made = rig.back_up(&server).await?;
        assert_eq!((made.alarms, made.stats.wrong_pages), (vec![], 0));
        assert!(made.stats.checked_pages > 500, "{:?}", made.stats);
        first.get_or_insert(made.id);
    }
    let _ = stop.send(());
    writing.await??;

    let path = ask(&server, "checkpoint; select pg_relation_filepath('cold')").await?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(server.instance.layout.data_dir.join(&path))?;
    let mut page = [0; 8192];
    // A flipped bit; a page that claims to be of the far future; one that came from elsewhere.
    file.read_exact_at(&mut page, 3 * 8192)?;
    page[8000] ^= 1;
    file.write_all_at(&page, 3 * 8192)?;
    file.write_all_at(&[0xAB; 8192], 9 * 8192)?;
    file.read_exact_at(&mut page, 12 * 8192)?;
    file.write_all_at(&page, 11 * 8192)?;
    let made = rig.back_up(&server).await?;
    let expected = format!("wrong checksums of 3 pages: 3 in {path}, 9 in {path}, 11 in {path}");
    assert_eq!((made.stats.wrong_pages, &made.alarms), (3, &vec![expected.clone()]));
    rig.refuse_wrong_pages = true;
    run(&session, "insert into busy values (1)").await?;
    file.write_all_at(&[0xCD; 8192], 9 * 8192)?;
    let refused = rig.back_up(&server).await.unwrap_err().to_string();
    assert!(refused.contains(&expected) && refused.contains("backup_refuse"), "{refused}");

    // What the backup before has lost is stored anew.
    rig.refuse_wrong_pages = false;
    // Of the first one: what has not changed since is there, and all others refer to it.
    let packs = format!("packs/{}/", first.unwrap_or_default());
    let lost = rig.repository.store.list(&packs).await?.remove(0).key;
    rig.repository.store.delete(&lost).await?;
    let anew = rig.back_up(&server).await?;
    let said = anew.alarms.join("; ");
    assert!(said.contains(&format!("{lost} is missing): everything was stored anew")), "{said}");
    assert_eq!((anew.parent, anew.stats.read_bytes), (None, anew.stats.bytes));
    let sound = rig.repository.verify(Some(&anew.id), Default::default(), Default::default());
    assert_eq!(sound.await?.damages, []);

    // Another cluster's repository takes nothing of this one.
    let identity = Identity::new("id", "other", 7, 1);
    let store = Arc::new(Folder::new(rig.dir.path().join("foreign")));
    rig.repository = Repository::create(store, &Secret::random(), identity).await?;
    let foreign = rig.back_up(&server).await.unwrap_err().to_string();
    assert!(foreign.contains("cluster other (system 7)"), "{foreign}");
    assert!(rig.repository.store.list("writers/").await?.is_empty(), "nothing was written");
    Ok(())
}
