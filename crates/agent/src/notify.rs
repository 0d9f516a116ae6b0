//! A word to the service manager (`sd_notify`): ready, alive, stopping. Nothing is said where
//! nobody listens, and a word that does not arrive harms nobody but the service's state.

use std::{
    ffi::OsStr,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Where the manager listens.
const SOCKET: &str = "NOTIFY_SOCKET";
/// How long it waits for a sign of life, µs.
const WATCHDOG: &str = "WATCHDOG_USEC";

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Manager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// As the environment says.
    pub fn from_env() -> Self {
        let socket = std::env::var_os(SOCKET).and_then(|name| match connect(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, "the service manager cannot be told that this runs");
                None
            }
        });
        let watchdog = std::env::var(WATCHDOG).ok().and_then(|text| text.parse().ok());
        Self { socket, watchdog: watchdog.map(Duration::from_micros) }
    }

    /// Every port is open.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// It was told to stop.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    fn say(&self, word: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(word.as_bytes())
        {
            tracing::debug!(%error, word, "the service manager was not told");
        }
    }

    /// Says that this is alive for as long as the loop is: it shows something new with each of
    /// its turns. A loop that hangs is started again by the manager; the database goes on.
    pub async fn stay_alive<T>(&self, mut shown: watch::Receiver<T>) {
        let Some(watchdog) = self.watchdog.filter(|_| self.socket.is_some()) else { return };
        let mut next = Instant::now();
        while shown.changed().await.is_ok() {
            if Instant::now() >= next {
                self.say("WATCHDOG=1");
                next = Instant::now() + watchdog / 3;
            }
        }
    }
}

/// A path, or a name in the abstract space, which begins with `@`.
fn connect(name: &OsStr) -> std::io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold the agent up.
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manager_hears_all_that_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let abstract_name = format!("sempre-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let other = UnixDatagram::bind_addr(&address).unwrap();
        let at = format!("@{abstract_name}");
        for (name, heard) in [(path.as_os_str(), &manager), (OsStr::new(&at), &other)] {
            let told = Manager {
                socket: Some(connect(name).unwrap()),
                watchdog: Some(Duration::from_secs(30)),
            };
            told.ready();
            let (turn, turns) = watch::channel(0);
            turn.send_replace(1);
            // It ends with the loop.
            drop(turn);
            let mut turns = turns;
            turns.mark_changed();
            told.stay_alive(turns).await;
            told.stopping();
            let mut words = Vec::new();
            heard.set_nonblocking(true).unwrap();
            let mut word = [0; 64];
            while let Ok(length) = heard.recv(&mut word) {
                words.push(String::from_utf8(word[..length].to_vec()).unwrap());
            }
            assert!(words.first().is_some_and(|word| word == "READY=1"), "{words:?}");
            assert!(words.last().is_some_and(|word| word == "STOPPING=1"), "{words:?}");
        }
        let nobody = Manager { socket: None, watchdog: None };
        nobody.ready();
        nobody.stay_alive(watch::channel(0).1).await;
        assert!(connect(OsStr::new("/nonexistent/notify")).is_err());
    }
}
