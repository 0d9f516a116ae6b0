//! The networks of the lab do what faults rely on.

use sempre_lab::{
    links::{Flow, Link},
    scope,
    topology::{Net, Topology},
};
use std::{net::SocketAddr, path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

/// A packet inside the machine takes microseconds; one not here by then was dropped.
const DROPPED: Duration = Duration::from_millis(200);

/// Does a datagram from `from` come to `to` on `net`?
async fn arrives(topology: &Topology, from: &str, to: &str, net: Net) -> bool {
    let (here, there) = (topology.station(from).unwrap(), topology.station(to).unwrap());
    let address = topology.address(to, net);
    let receiver = there
        .run(async move { Ok(UdpSocket::bind(SocketAddr::new(address, 7000)).await?) })
        .await
        .unwrap();
    here.run(async move {
        let sender = UdpSocket::bind("0.0.0.0:0").await?;
        Ok(sender.send_to(b"hello", (address, 7000)).await?)
    })
    .await
    .unwrap();
    let received =
        there.spawn(async move { timeout(DROPPED, receiver.recv(&mut [0; 16])).await.is_ok() });
    received.join().await.unwrap()
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn cuts_are_silent_one_way_or_both_and_end() {
    scope::run(async {
        let topology = Topology::new(2)?;
        for net in Net::ALL {
            assert!(arrives(&topology, "h1", "h2", net).await);
        }
        topology.links().set([("h1", Net::A, Link { sent: Flow::Drop, ..Link::WHOLE })])?;
        assert!(!arrives(&topology, "h1", "h2", Net::A).await);
        assert!(arrives(&topology, "h2", "h1", Net::A).await);
        assert!(arrives(&topology, "h1", "h2", Net::B).await);

        topology.cut("h1")?;
        assert!(!arrives(&topology, "app", "h1", Net::B).await);
        assert!(arrives(&topology, "app", "h2", Net::B).await);
        let mut links = topology.command("h1", None, "ip");
        let links = sempre_lab::shell::run(links.args(["-brief", "link", "show", "up"]))?;
        assert!(!links.contains("NO-CARRIER"), "the cut is silent: {links}");

        topology.restore("h1")?;
        assert!(arrives(&topology, "h1", "h2", Net::A).await);
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_power_loss_says_nothing_to_the_other_end() {
    scope::run(async {
        let topology = Topology::new(2)?;
        let address = SocketAddr::new(topology.address("h1", Net::A), 7000);
        let (here, there) = (topology.station("h1")?, topology.station("h2")?);
        let listener = here.run(async move { Ok(TcpListener::bind(address).await?) }).await?;
        let mut client = there.run(async move { Ok(TcpStream::connect(address).await?) }).await?;
        let (mut server, _) = here.run(async move { Ok(listener.accept().await?) }).await?;
        let mut sleeper = topology.command("h1", None, "sleep");
        let mut sleeper = sleeper.arg("1000").spawn()?;
        topology.power_off("h1")?;
        assert!(sleeper.wait()?.code().is_none(), "killed by a signal");
        // Even a socket closed by the kernel is not heard of.
        drop(server.shutdown().await);
        drop(server);
        let silent = there.spawn(async move { timeout(DROPPED, client.read_u8()).await.is_err() });
        assert!(silent.join().await?);
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn nothing_is_left_behind_not_even_by_a_panic() {
    let mut name = String::new();
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let topology = Topology::new(1).unwrap();
        name = topology.namespace("h1");
        assert!(Path::new("/run/netns").join(&name).exists());
        panic!("on purpose");
    }));
    assert!(died.is_err());
    assert!(!Path::new("/run/netns").join(&name).exists());
}
