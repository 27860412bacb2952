//! Checksums, whoever computes them: the sender, the card that sends, the card that receives, or nobody because the wire is
//! a pair of veth.

use std::{fs::File, io::Read, net::SocketAddrV4, os::unix::fs::OpenOptionsExt};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    fabric::{INTERNET, NODE, PARTNER, VNET},
    netns::Netns,
    offload,
    ping::Pinger,
    rig::Rig,
    stream,
    talk::{SILENCE, Udp},
    walk::Walk,
};
use etherparse::{Icmpv4Type, icmpv4::DestUnreachableHeader};

const UNREACHABLE: Icmpv4Type = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);

#[test]
fn no_receiver_and_no_kernel_finds_a_wrong_checksum() -> Result<()> {
    let complaints = kernel_complaints()?;
    for (sending, receiving) in [(true, true), (true, false), (false, true), (false, false)] {
        let rig = Rig::causeway()?;
        let (a, b) = (rig.pod("a")?, rig.pod("b")?);
        let fabric = &rig.fabric;
        let ends = [
            (&rig.node.ns, "eth0"),
            (&fabric.router, "node"),
            (&fabric.internet, "eth0"),
            (&a.ns, "eth0"),
        ];
        for (ns, interface) in ends {
            offload::set(ns, interface, offload::TX_CHECKSUM, sending)?;
            offload::set(ns, interface, offload::RX_CHECKSUM, receiving)?;
        }
        for (ns, to, seen) in [
            (&fabric.internet, INTERNET, NODE),
            (&fabric.vnet, VNET, a.addr),
            (&b.ns, b.addr, a.addr),
        ] {
            let walk = Walk::direct(&a.ns, ns, SocketAddrV4::new(to, 7));
            walk.tcp(&rig)?.expect_carried(seen)?;
            walk.udp(&rig)?.expect_carried(seen)?;
            walk.ping(&rig)?.expect_carried(seen)?;
            stream::exchange(&a.ns, ns, SocketAddrV4::new(to, 9), 4 << 20)?;
            is_refused(&a.ns, to)?;
        }
        is_refused(&fabric.partner, a.addr)?;
        let walk = Walk::direct(&fabric.partner, &a.ns, SocketAddrV4::new(a.addr, 7));
        walk.tcp(&rig)?.expect_carried(PARTNER)?;
        for ns in [
            &a.ns,
            &b.ns,
            &rig.node.ns,
            &fabric.router,
            &fabric.vnet,
            &fabric.internet,
            &fabric.partner,
        ] {
            for group in ["Tcp", "Udp", "Icmp"] {
                let errors = ns.snmp(group, "InCsumErrors")?;
                ensure!(
                    errors == 0,
                    "{errors} wrong {group} checksums, {sending} {receiving}"
                );
            }
        }
    }
    ensure!(
        kernel_complaints()? == complaints,
        "the kernel complains of a checksum: see dmesg"
    );
    Ok(())
}

/// Nobody listens there, and the sender is told: an error about its datagram.
fn is_refused(client: &Netns, by: std::net::Ipv4Addr) -> Result<()> {
    let ears = Pinger::new(client, 1)?;
    let socket = Udp::connect(client, SocketAddrV4::new(by, 81))?;
    for _ in 0..3 {
        socket.0.send(b"anybody there?")?;
        let heard = ears.hear(SILENCE, |message| message.icmp == UNREACHABLE)?;
        ensure!(heard.is_some_and(|heard| heard.from == by), "{by} says nothing");
        // It is an error of the socket too; the next call would return it.
        socket.0.take_error()?;
    }
    Ok(())
}

/// Messages of `__skb_checksum_complete` and `netdev_rx_csum_fault` in the kernel's log so far.
fn kernel_complaints() -> Result<usize> {
    let mut log = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .context("reading the kernel's log")?;
    let mut found = 0;
    let mut record = vec![0; 8192];
    // A record a read; EPIPE: the oldest ones were overwritten meanwhile.
    loop {
        match log.read(&mut record) {
            Ok(len) => {
                let text = String::from_utf8_lossy(&record[..len]);
                found += usize::from(text.contains("csum failure"));
            }
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return Ok(found),
        }
    }
}
