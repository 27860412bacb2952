//! SCTP by the kernel's own implementation: its packets are translated by address, one flow for each pair of hosts.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    num::NonZeroU32,
    os::fd::OwnedFd,
    thread,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    fabric::{INTERNET, NODE, VNET},
    netns::Netns,
    rig::Rig,
};
use rustix::net::{
    AddressFamily, Protocol, SocketFlags, SocketType, acceptfrom, bind, connect, getpeername, listen,
    socket_with,
};

const SCTP: u8 = 132;
/// The first server's; each of a test has a port of its own: an association that ends holds it for a while.
const PORT: u16 = 9899;

/// A socket of the one-to-one style (RFC 6458 section 4), which is used as a TCP stream is.
fn socket(ns: &Netns) -> Result<OwnedFd> {
    let number = NonZeroU32::new(SCTP.into()).context("a protocol")?;
    let made = ns.run(|| {
        socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            Some(Protocol::from_raw(number)),
        )
    })?;
    made.context("no SCTP: is the module sctp there?")
}

/// Talks with a server that sends everything back; returns whom the server saw.
fn talk(client: (&Netns, Ipv4Addr), server: (&Netns, SocketAddrV4)) -> Result<Ipv4Addr> {
    let at = server.1;
    let listener = socket(server.0)?;
    bind(&listener, &at)?;
    listen(&listener, 4)?;
    let stream = socket(client.0)?;
    // Bound to one address: it tells the other end of no further ones, which no translation by address could follow.
    bind(&stream, &SocketAddrV4::new(client.1, 0))?;
    thread::scope(|scope| {
        let serving = scope.spawn(|| -> Result<Ipv4Addr> {
            let (connection, _) = acceptfrom(&listener)?;
            let seen = SocketAddrV4::try_from(getpeername(&connection)?.context("no peer")?)?;
            let mut connection = TcpStream::from(connection);
            let mut message = vec![0; 1 << 16];
            loop {
                let length = connection.read(&mut message)?;
                if length == 0 {
                    return Ok(*seen.ip());
                }
                connection.write_all(&message[..length])?;
            }
        });
        connect(&stream, &at).with_context(|| format!("an association with {at}"))?;
        let mut stream = TcpStream::from(stream);
        for size in [1, 100, 1400, 8000] {
            let question: Vec<u8> = (0..size).map(|n| n as u8).collect();
            stream.write_all(&question)?;
            let mut answer = vec![0; size];
            stream.read_exact(&mut answer)?;
            ensure!(answer == question, "{size} bytes came back changed");
        }
        drop(stream);
        serving
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_pods_association_with_the_internet_has_the_nodes_address() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    for port in PORT..PORT + 3 {
        let server = SocketAddrV4::new(INTERNET, port);
        let seen = talk((&pod.ns, pod.addr), (&rig.fabric.internet, server))?;
        ensure!(seen == NODE, "the server saw {seen}");
    }
    Ok(())
}

#[test]
fn within_the_vnet_and_between_pods_it_keeps_its_own() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    for (ns, addr) in [(&rig.fabric.vnet, VNET), (&b.ns, b.addr)] {
        let seen = talk((&a.ns, a.addr), (ns, SocketAddrV4::new(addr, PORT)))?;
        ensure!(seen == a.addr, "{addr} saw {seen}");
    }
    Ok(())
}
