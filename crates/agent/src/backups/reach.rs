//! How this member gets at a repository: everybody who works for it gets the same [`Place`].

use sempre_backup::serve::Server;
use sempre_model::{
    MemberId, Record,
    backup::{OnMember, StoreAt},
};
use sempre_recovery::{Place, Reach};
use std::{path::PathBuf, sync::Arc};

/// What this member needs for it.
#[derive(Clone)]
pub struct Reached {
    /// Who we are.
    pub me: MemberId,
    /// Our certificate.
    pub tls: PathBuf,
    /// What we serve ourselves.
    pub server: Arc<Server>,
}

impl Reached {
    /// A repository, with what opens it.
    pub fn place(&self, record: &Record, name: &str) -> Option<Place> {
        let place = place_of(record, name, self.tls.clone())?;
        let (store, reach) = self.store(record, place.store);
        Some(Place { store, reach, ..place })
    }

    /// A store, as this member gets at it. A folder that it serves is asked for, too: whoever can
    /// write the record could name that folder, and so work past the rules it is served by.
    pub fn store(&self, record: &Record, at: StoreAt) -> (StoreAt, Option<Reach>) {
        let at = match at {
            StoreAt::Folder(folder) if self.server.governs(&folder) => {
                StoreAt::Member(OnMember { member: self.me.clone(), folder })
            }
            at => at,
        };
        let reach = Reach::of(&at, record, self.tls.clone());
        (at, reach)
    }
}

/// A repository, with what opens it, for who has the certificate in the folder `tls`.
pub(crate) fn place_of(record: &Record, name: &str, tls: PathBuf) -> Option<Place> {
    let known = record.backups.repositories.get(name)?;
    let (store, key) = (known.store.clone(), known.key.clone());
    let next_key = record.backups.next_keys.get(name).cloned();
    let reach = Reach::of(&store, record, tls);
    Some(Place { name: name.to_owned(), store, key, next_key, reach })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sempre_backup::serve::Rule;
    use std::os::unix::fs::symlink;

    /// The record may name a folder that this member serves by rules, under any name: it is asked for all the
    /// same.
    #[test]
    fn a_folder_that_is_served_is_not_worked_in_past_its_rules() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("served");
        std::fs::create_dir_all(folder.join("packs")).unwrap();
        symlink(&folder, dir.path().join("link")).unwrap();
        let rule = Rule {
            folder: folder.clone(),
            window_days: Some(30),
            quota_bytes: None,
            confirm_clock: None,
        };
        let server = Arc::new(Server::new("w1", vec![rule], &dir.path().join("notes")));
        let me = MemberId::new("w1").unwrap();
        let reached = Reached { me: me.clone(), tls: dir.path().into(), server };
        let below = |name: &str| StoreAt::Folder(dir.path().join(name));
        for name in ["served", "served/packs", "link", "link/packs", "served/../served", "."] {
            let (at, _) = reached.store(&Record::default(), below(name));
            assert!(matches!(&at, StoreAt::Member(on) if on.member == me), "{name}: {at:?}");
        }
        let (at, reach) = reached.store(&Record::default(), below("other"));
        assert_eq!((at, reach), (below("other"), None));
    }
}
