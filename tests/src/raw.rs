//! Frames and packets of the sender's own making, for what no honest stack would send.

use std::{
    mem::size_of_val,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type, IpNumber,
    Ipv4Header, Ipv6Header, PacketBuilder,
};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socket_with};

use crate::{craft, netns::Netns};

/// Sends frames out of one interface as they stand.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    address: libc::sockaddr_ll,
}

impl Sender {
    /// Opens a socket for an interface.
    pub fn new(ns: &Netns, interface: &str) -> Result<Self> {
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
        Ok(Self { socket, address })
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: frame and address are live and their lengths are given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.address).cast(),
                size_of_val(&self.address) as u32,
            )
        };
        if sent < 0 {
            return Err(std::io::Error::last_os_error()).context("sending a raw frame");
        }
        Ok(())
    }
}

/// Sends a frame out of an interface as it stands.
pub fn send(ns: &Netns, interface: &str, frame: &[u8]) -> Result<()> {
    Sender::new(ns, interface)?.send(frame)
}

/// Sends packets of one family as they stand, one after the other, by the namespace's routes. Of IPv4 the kernel writes the
/// header's checksum and length, and an identification where it is zero (raw(7)).
pub fn send_ip(ns: &Netns, packets: &[Vec<u8>]) -> Result<()> {
    let is_ipv6 = |packet: &Vec<u8>| packet.first().is_some_and(|first| first >> 4 == 6);
    let family = if packets.first().is_some_and(is_ipv6) {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let socket = ns.run(|| {
        let protocol = Some(rustix::net::ipproto::RAW);
        socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
    })??;
    for packet in packets {
        let to = destination(packet).context("shorter than a header")?;
        rustix::net::sendto(&socket, packet, SendFlags::empty(), &SocketAddr::new(to, 0))
            .with_context(|| format!("sending {} bytes to {to}", packet.len()))?;
    }
    Ok(())
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    if packet.first()? >> 4 == 6 {
        let octets: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
        return Some(octets.into());
    }
    let octets: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    Some(octets.into())
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

/// An IPv4 packet of any protocol in a frame, header checksum right.
pub fn packet(macs: [[u8; 6]; 2], addrs: [[u8; 4]; 2], protocol: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let header = Ipv4Header::new(
        payload.len().try_into()?,
        64,
        IpNumber(protocol),
        addrs[0],
        addrs[1],
    )?;
    framed(macs, header, payload)
}

/// An IPv6 packet in a frame, of which `next` is the header behind the first.
pub fn ipv6(
    macs: [[u8; 6]; 2],
    addrs: [[u8; 16]; 2],
    hop_limit: u8,
    next: u8,
    payload: &[u8],
) -> Result<Vec<u8>> {
    let ethernet = Ethernet2Header {
        source: macs[0],
        destination: macs[1],
        ether_type: EtherType::IPV6,
    };
    let header = Ipv6Header {
        payload_length: payload.len().try_into()?,
        next_header: IpNumber(next),
        hop_limit,
        source: addrs[0],
        destination: addrs[1],
        ..Default::default()
    };
    Ok([&ethernet.to_bytes()[..], &header.to_bytes(), payload].concat())
}

/// An ICMP message in a frame.
pub fn icmp(macs: [[u8; 6]; 2], addrs: [[u8; 4]; 2], message: Icmpv4Type, data: &[u8]) -> Result<Vec<u8>> {
    let header = Icmpv4Header::with_checksum(message, data).to_bytes();
    packet(macs, addrs, IpNumber::ICMP.0, &[&header, data].concat())
}

/// Cuts the packet of a frame into fragments of at most `mtu` bytes, see [`craft::fragments`].
pub fn fragments(frame: &[u8], mtu: usize, identification: u16) -> Result<Vec<Vec<u8>>> {
    let (link, packet) = frame.split_at_checked(14).context("no frame")?;
    let pieces = craft::fragments(packet, mtu, identification)?;
    Ok(pieces.iter().map(|piece| [link, piece].concat()).collect())
}

/// The same packet with IP options, a multiple of four bytes of them.
pub fn with_options(frame: &[u8], options: &[u8]) -> Result<Vec<u8>> {
    let (link, packet) = frame.split_at_checked(14).context("no frame")?;
    Ok([link, &craft::with_options(packet, options)?].concat())
}

/// The same frame with an 802.1Q tag.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00], &vlan.to_be_bytes(), &frame[12..]].concat()
}

fn framed(macs: [[u8; 6]; 2], mut header: Ipv4Header, payload: &[u8]) -> Result<Vec<u8>> {
    header.header_checksum = header.calc_header_checksum();
    let mut frame = [&macs[1][..], &macs[0], &[0x08, 0x00]].concat();
    header.write_raw(&mut frame)?;
    frame.extend_from_slice(payload);
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
