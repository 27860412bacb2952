//! Frames of the sender's own making, for what no honest stack would send.

use std::{mem::size_of_val, os::fd::AsRawFd};

use anyhow::{Context, Result};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::netns::Netns;

/// Sends a frame out of an interface as it stands.
pub fn send(ns: &Netns, interface: &str, frame: &[u8]) -> Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: ns.ifindex(interface)?.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let socket =
        ns.run(|| socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None))??;
    // SAFETY: frame and address are live and their lengths are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    if sent < 0 {
        return Err(std::io::Error::last_os_error()).context("sending a raw frame");
    }
    Ok(())
}

/// A UDP datagram in a frame, checksums right.
pub fn datagram(
    macs: [[u8; 6]; 2],
    addrs: [[u8; 4]; 2],
    ports: [u16; 2],
    ttl: u8,
    data: &[u8],
) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(macs[0], macs[1])
        .ipv4(addrs[0], addrs[1], ttl)
        .udp(ports[0], ports[1]);
    let mut frame = Vec::with_capacity(builder.size(data.len()));
    builder.write(&mut frame, data)?;
    Ok(frame)
}

/// An ARP reply that nobody asked for: "`sender_addr` is at `sender_mac`".
pub fn arp_claim(
    src_mac: [u8; 6],
    sender_mac: [u8; 6],
    sender_addr: [u8; 4],
    target: [u8; 4],
) -> Result<Vec<u8>> {
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REPLY,
        &sender_mac,
        &sender_addr,
        &[0xff; 6],
        &target,
    )?;
    let builder = PacketBuilder::ethernet2(src_mac, [0xff; 6]).arp(arp);
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame)?;
    Ok(frame)
}
