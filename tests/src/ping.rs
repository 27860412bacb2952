//! ICMP echo of either family, and whatever ICMP says to a sender, over a raw socket.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type,
    Ipv4HeaderSlice, icmpv4::DestUnreachableHeader,
};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, socket_with,
    sockopt::{Timeout, set_ip_ttl, set_ipv6_unicast_hops, set_socket_timeout},
};

use crate::netns::Netns;

/// Sends echo requests with one identifier.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    family: AddressFamily,
    id: u16,
}

/// An ICMP message that arrived.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who sent it.
    pub from: IpAddr,
    /// Its header.
    pub icmp: Icmp,
    /// What follows the header: of an error, the beginning of the packet it is about.
    pub payload: Vec<u8>,
}

/// The header of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// Of ICMP.
    V4(Icmpv4Type),
    /// Of ICMPv6.
    V6(Icmpv6Type),
}

impl Icmp {
    /// Type and code.
    pub fn kind(&self) -> (u8, u8) {
        match self {
            Self::V4(message) => {
                let header = Icmpv4Header::new(message.clone()).to_bytes();
                (header[0], header[1])
            }
            Self::V6(message) => (message.type_u8(), message.code_u8()),
        }
    }

    /// Of "fragmentation needed" and "packet too big": the MTU of the link that takes less.
    pub fn mtu(&self) -> Option<u32> {
        match self {
            Self::V4(Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu,
            })) => Some((*next_hop_mtu).into()),
            Self::V6(Icmpv6Type::PacketTooBig { mtu }) => Some(*mtu),
            _ => None,
        }
    }

    fn answered(&self) -> Option<IcmpEchoHeader> {
        match self {
            Self::V4(Icmpv4Type::EchoReply(echo)) | Self::V6(Icmpv6Type::EchoReply(echo)) => Some(*echo),
            _ => None,
        }
    }
}

impl PartialEq<Icmpv4Type> for Icmp {
    fn eq(&self, other: &Icmpv4Type) -> bool {
        matches!(self, Self::V4(message) if message == other)
    }
}

impl Pinger {
    /// A socket that sends with `id` and hears every message of ICMP of the namespace.
    pub fn new(ns: &Netns, id: u16) -> Result<Self> {
        Self::of(ns, AddressFamily::INET, id)
    }

    /// The same of ICMPv6.
    pub fn of_ipv6(ns: &Netns, id: u16) -> Result<Self> {
        Self::of(ns, AddressFamily::INET6, id)
    }

    fn of(ns: &Netns, family: AddressFamily, id: u16) -> Result<Self> {
        let socket = ns.run(|| raw_socket(family))?;
        Ok(Self {
            socket: socket.context("cannot open a raw socket of ICMP")?,
            family,
            id,
        })
    }

    /// The time to live of what is sent from here on.
    pub fn set_ttl(&self, hops: u8) -> io::Result<()> {
        if self.family == AddressFamily::INET6 {
            set_ipv6_unicast_hops(&self.socket, Some(hops))?;
        } else {
            set_ip_ttl(&self.socket, hops.into())?;
        }
        Ok(())
    }

    /// Sends one echo request with `len` bytes of data and returns its answer.
    pub fn ping(&self, to: impl Into<IpAddr>, sequence: u16, len: usize) -> Result<Message> {
        let to = to.into();
        let data: Vec<u8> = (0..len).map(|at| (at + usize::from(sequence)) as u8).collect();
        self.send(to, sequence, &data)
            .with_context(|| format!("ping {to}"))?;
        let expected = Some(self.echo(sequence));
        let answer = self.hear(crate::talk::PATIENCE, |message| {
            message.icmp.answered() == expected
        })?;
        match answer {
            Some(answer) if answer.payload == data => Ok(answer),
            Some(_) => bail!("ping {to}: the data came back changed"),
            None => bail!("ping {to}: no answer to number {sequence}"),
        }
    }

    /// Sends `times` echo requests, one after the other, and checks each answer.
    pub fn chat(&self, to: Ipv4Addr, times: u16) -> Result<()> {
        (1..=times).try_for_each(|sequence| self.ping(to, sequence, 56).map(drop))
    }

    /// Sends one echo request.
    pub fn send(&self, to: impl Into<IpAddr>, sequence: u16, data: &[u8]) -> io::Result<()> {
        let echo = self.echo(sequence);
        let mut packet = if self.family == AddressFamily::INET6 {
            // The kernel adds the checksum (RFC 3542 section 3.1).
            Icmpv6Header::new(Icmpv6Type::EchoRequest(echo))
                .to_bytes()
                .to_vec()
        } else {
            Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), data)
                .to_bytes()
                .to_vec()
        };
        packet.extend_from_slice(data);
        let to = SocketAddr::new(to.into(), 0);
        rustix::net::sendto(&self.socket, &packet, rustix::net::SendFlags::empty(), &to)?;
        Ok(())
    }

    fn echo(&self, seq: u16) -> IcmpEchoHeader {
        IcmpEchoHeader { id: self.id, seq }
    }

    /// The first message that `wanted` says yes to; `None` when none came in time.
    pub fn hear(&self, patience: Duration, wanted: impl Fn(&Message) -> bool) -> Result<Option<Message>> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0u8; 1 << 16];
        while Instant::now() < end {
            match rustix::net::recvfrom(
                &self.socket,
                buffer.as_mut_slice(),
                rustix::net::RecvFlags::empty(),
            ) {
                Ok((len, _, from)) => {
                    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                    let message = from.and_then(|from| parse(from.ip(), &buffer[..len]));
                    if let Some(message) = message.filter(|message| wanted(message)) {
                        return Ok(Some(message));
                    }
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("reading a raw ICMP socket"),
            }
        }
        Ok(None)
    }
}

/// A raw socket hands over the header of IPv4 too, that of IPv6 not.
fn parse(from: IpAddr, heard: &[u8]) -> Option<Message> {
    let (icmp, payload) = if from.is_ipv6() {
        let message = Icmpv6Slice::from_slice(heard).ok()?;
        (Icmp::V6(message.icmp_type()), message.payload())
    } else {
        let ip = Ipv4HeaderSlice::from_slice(heard).ok()?;
        let message = Icmpv4Slice::from_slice(heard.get(ip.slice().len()..)?).ok()?;
        (Icmp::V4(message.icmp_type()), message.payload())
    };
    Some(Message {
        from,
        icmp,
        payload: payload.to_vec(),
    })
}

fn raw_socket(family: AddressFamily) -> rustix::io::Result<OwnedFd> {
    let protocol = if family == AddressFamily::INET6 {
        rustix::net::ipproto::ICMPV6
    } else {
        rustix::net::ipproto::ICMP
    };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(20)))?;
    Ok(socket)
}
