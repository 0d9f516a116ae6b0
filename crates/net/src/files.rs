//! A certificate of the administrator's, shown as its files are now.

use crate::tls::{TrustError, certified};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// How often the files are looked at, when somebody connects: whoever renews them tells nobody.
const LOOK_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Files {
    /// The certificate and its chain, and the key; PEM.
    paths: [PathBuf; 2],
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    shown: Arc<CertifiedKey>,
    modified: [Option<SystemTime>; 2],
    looked: Instant,
}

impl Files {
    /// Reads them.
    pub fn open(chain: &Path, key: &Path) -> Result<Self, TrustError> {
        let paths = [chain.to_owned(), key.to_owned()];
        let modified = modified(&paths);
        let shown = read(&paths)?;
        let now = Now { shown, modified, looked: Instant::now() };
        Ok(Self { paths, now: Mutex::new(now) })
    }

    /// What is to be shown; `every`: how old it may be.
    fn show(&self, every: Duration) -> Arc<CertifiedKey> {
        // Nothing panics half-way in here, so a poisoned lock still guards consistent data.
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.looked.elapsed() >= every {
            now.looked = Instant::now();
            let modified = modified(&self.paths);
            if modified != now.modified {
                let file = self.paths[0].display();
                match read(&self.paths) {
                    Ok(shown) => {
                        tracing::info!(%file, "a new certificate is shown");
                        (now.shown, now.modified) = (shown, modified);
                    }
                    // Half written, or wrong: the old one stays, and it is looked at again.
                    Err(error) => tracing::warn!(%file, %error, "a new certificate is not used"),
                }
            }
        }
        now.shown.clone()
    }
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.show(LOOK_EVERY))
    }
}

fn read(paths: &[PathBuf; 2]) -> Result<Arc<CertifiedKey>, TrustError> {
    let text = |path: &Path| {
        fs::read_to_string(path).map_err(|error| TrustError::Unusable {
            what: "the certificate to show",
            why: format!("{}: {error}", path.display()),
        })
    };
    Ok(Arc::new(certified(&text(&paths[0])?, &text(&paths[1])?)?))
}

fn modified(paths: &[PathBuf; 2]) -> [Option<SystemTime>; 2] {
    [0, 1].map(|index| fs::metadata(&paths[index]).and_then(|file| file.modified()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_files_are_shown_and_half_written_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let [chain, key] = ["chain.pem", "key.pem"].map(|name| folder.path().join(name));
        let mut age = 1_000;
        let mut write = |path: &Path, text: &str| {
            fs::write(path, text).unwrap();
            age -= 1;
            let time = SystemTime::now() - Duration::from_secs(age);
            fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        };
        let make = || rcgen::generate_simple_self_signed(vec!["db".into()]).unwrap();
        let (first, second) = (make(), make());
        write(&chain, &first.cert.pem());
        write(&key, &first.signing_key.serialize_pem());
        let files = Files::open(&chain, &key).unwrap();
        let shown = |every| files.show(every).cert[0].clone();
        assert_eq!(shown(Duration::ZERO), *first.cert.der());
        // The certificate is there, its key not yet.
        write(&chain, &second.cert.pem()[..100]);
        assert_eq!(shown(Duration::ZERO), *first.cert.der());
        write(&chain, &second.cert.pem());
        write(&key, &second.signing_key.serialize_pem());
        assert_eq!(shown(Duration::from_secs(1_000)), *first.cert.der());
        assert_eq!(shown(Duration::ZERO), *second.cert.der());
        fs::remove_file(&key).unwrap();
        assert_eq!(shown(Duration::ZERO), *second.cert.der());
        assert!(Files::open(&chain, &key).is_err());
    }
}
