//! Who lives where: names, folders, addresses and ports.

use crate::fail::Fail;
use sempre_agent::Config;
use sempre_api::codes;
use sempre_model::member::Ports;
use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

/// Ports from one member to the next.
const STRIDE: u16 = 10;
/// What is added to a member's folder for its sockets.
const SOCKET: &str = "run/.s.PGSQL.65535.lock";

/// One member.
#[derive(Clone, Debug)]
pub struct Spot {
    /// Its config.
    pub config: Config,
    /// The file of it.
    pub file: PathBuf,
    /// Where its agent logs to.
    pub log: PathBuf,
}

/// The whole demo.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything is below.
    pub dir: PathBuf,
    /// The members, `m1` first.
    pub spots: Vec<Spot>,
    base_port: u16,
}

impl Plan {
    /// Member i has the addresses 127.0.1.i and 127.0.2.i, as if on two networks.
    pub fn new(dir: &Path, base_port: u16, members: u8) -> Result<Self, Fail> {
        let last = u32::from(base_port) + u32::from(STRIDE) * (u32::from(members) + 1);
        if base_port < 1024 || last > u32::from(u16::MAX) {
            return Err(Fail::usage(
                format!("--base-port {base_port} cannot be used"),
                format!("{members} members need ports from it up to {last}"),
                "Choose one from 1024 to 65000.",
            ));
        }
        let spots = (1..=members)
            .map(|number| Spot::new(dir, base_port + STRIDE * u16::from(number), number))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { dir: dir.to_owned(), spots, base_port })
    }

    /// Where clients that write are led from.
    pub fn read_write(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base_port))
    }

    /// Where clients that only read are led from.
    pub fn read_only(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base_port + 1))
    }

    /// Host and REST port of every member, on every path.
    pub fn rest_addresses(&self) -> Vec<(String, u16)> {
        let of = |spot: &Spot| {
            let port = spot.config.ports.rest;
            spot.config.addresses.iter().map(move |host| (host.clone(), port)).collect::<Vec<_>>()
        };
        self.spots.iter().flat_map(of).collect()
    }

    /// Are all ports free? Looked at before anything is made.
    pub fn check_ports(&self) -> Result<(), Fail> {
        let mut addresses = vec![self.read_write(), self.read_only()];
        for spot in &self.spots {
            let Ports { database, read_write, read_only, rest, peer } = spot.config.ports;
            for port in [database, read_write, read_only, rest, peer] {
                let hosts = spot.config.addresses.iter().filter_map(|host| host.parse().ok());
                addresses.extend(hosts.map(|host: Ipv4Addr| SocketAddr::from((host, port))));
            }
        }
        for address in addresses {
            if let Err(error) = TcpListener::bind(address) {
                let code = match error.kind() {
                    io::ErrorKind::AddrInUse => codes::PORT_IN_USE,
                    _ => codes::CONFIG_FILE,
                };
                let what = format!("the demo cannot listen on {address}");
                return Err(Fail::coded(code, what, error.to_string()).next(format!(
                    "`ss -ltnp` names who listens there. Choose other ports with --base-port (now {}).",
                    self.base_port
                )));
            }
        }
        Ok(())
    }

    /// Writes the config files.
    pub fn write(&self) -> Result<(), Fail> {
        for spot in &self.spots {
            fs::write(&spot.file, spot.text()).map_err(|error| {
                Fail::new(format!("cannot write {}", spot.file.display()), error.to_string(), "")
            })?;
        }
        Ok(())
    }
}

impl Spot {
    fn new(dir: &Path, port: u16, number: u8) -> Result<Self, Fail> {
        let name = format!("m{number}");
        let home = dir.join(&name);
        let socket = home.join(SOCKET);
        if socket.as_os_str().len() > sempre_guard::SOCKET_PATH_MAX {
            return Err(Fail::usage(
                format!("{} cannot be used", dir.display()),
                format!(
                    "its path is too long for Unix sockets below it, which have at most {} bytes",
                    sempre_guard::SOCKET_PATH_MAX
                ),
                "Name a folder with a shorter path.",
            ));
        }
        let text = text(&home, port, number);
        let config = Config::parse(&text).map_err(|why| {
            Fail::usage(format!("{} cannot be used", dir.display()), why, "Name another folder.")
        })?;
        let log = dir.join(format!("{name}.log"));
        Ok(Self { config, file: dir.join(format!("{name}.toml")), log })
    }

    fn text(&self) -> String {
        let number = self.config.name.as_str().trim_start_matches('m').parse().unwrap_or_default();
        text(&self.config.dir, self.config.ports.database, number)
    }
}

/// The config file, as a person would write it.
fn text(home: &Path, port: u16, number: u8) -> String {
    let home = toml::Value::String(home.display().to_string());
    format!(
        "name = \"m{number}\"\n\
         dir = {home}\n\
         addresses = [\"127.0.1.{number}\", \"127.0.2.{number}\"]\n\
         \n\
         [ports]\n\
         database = {}\n\
         read_write = {}\n\
         read_only = {}\n\
         rest = {}\n\
         peer = {}\n",
        port,
        port + 1,
        port + 2,
        port + 3,
        port + 4
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_do_not_share_ports() {
        let plan = Plan::new(Path::new("/tmp/x"), 7400, 7).unwrap();
        let mut ports = vec![plan.read_write().port(), plan.read_only().port()];
        for spot in &plan.spots {
            let p = spot.config.ports;
            ports.extend([p.database, p.read_write, p.read_only, p.rest, p.peer]);
            assert_eq!(Config::parse(&spot.text()).unwrap(), spot.config);
        }
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), count);
        assert_eq!(plan.spots[2].config.addresses, ["127.0.1.3", "127.0.2.3"]);
    }

    #[test]
    fn what_cannot_work_is_refused_before_anything_is_made() {
        assert!(Plan::new(Path::new("/tmp/x"), 80, 3).is_err());
        assert!(Plan::new(Path::new("/tmp/x"), 65_500, 3).is_err());
        assert!(Plan::new(Path::new(&format!("/tmp/{}", "x".repeat(100))), 7400, 3).is_err());
    }

    #[test]
    fn a_port_in_use_is_named() {
        let plan = (0..50).find_map(|i| {
            let plan = Plan::new(Path::new("/tmp/x"), 21_000 + i * 100, 1).ok()?;
            plan.check_ports().ok().map(|()| plan)
        });
        let plan = plan.unwrap();
        let rest = plan.spots[0].config.ports.rest;
        let _taken = TcpListener::bind(("127.0.2.1", rest)).unwrap();
        let error = format!("{:?}", plan.check_ports().unwrap_err());
        assert!(error.contains(&format!("127.0.2.1:{rest}")), "{error}");
    }
}
