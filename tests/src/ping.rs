//! ICMP echo, and whatever ICMP says to a sender, over a raw socket.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Ipv4HeaderSlice};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, socket_with,
    sockopt::{Timeout, set_ip_ttl, set_socket_timeout},
};

use crate::netns::Netns;

/// Sends echo requests with one identifier.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    id: u16,
}

/// An ICMP message that arrived.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who sent it.
    pub from: Ipv4Addr,
    /// Time to live left on arrival.
    pub ttl: u8,
    /// Its header.
    pub icmp: Icmpv4Type,
    /// What follows the header: of an error, the beginning of the packet it is about.
    pub payload: Vec<u8>,
}

impl Pinger {
    /// A socket that sends with `id` and hears every ICMP message of the namespace.
    pub fn new(ns: &Netns, id: u16) -> Result<Self> {
        let socket = ns.run(raw_socket)?.context("cannot open a raw ICMP socket")?;
        Ok(Self { socket, id })
    }

    /// The time to live of what is sent from here on.
    pub fn set_ttl(&self, hops: u32) -> io::Result<()> {
        Ok(set_ip_ttl(&self.socket, hops)?)
    }

    /// Sends one echo request with `len` bytes of data and returns its answer.
    pub fn ping(&self, to: Ipv4Addr, sequence: u16, len: usize) -> Result<Message> {
        let data: Vec<u8> = (0..len).map(|at| (at + usize::from(sequence)) as u8).collect();
        self.send(to, sequence, &data)
            .with_context(|| format!("ping {to}"))?;
        let expected = Icmpv4Type::EchoReply(IcmpEchoHeader {
            id: self.id,
            seq: sequence,
        });
        let answer = self.hear(crate::talk::PATIENCE, |message| message.icmp == expected)?;
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
    pub fn send(&self, to: Ipv4Addr, sequence: u16, data: &[u8]) -> io::Result<()> {
        let header = Icmpv4Type::EchoRequest(IcmpEchoHeader {
            id: self.id,
            seq: sequence,
        });
        let mut packet = Icmpv4Header::with_checksum(header, data).to_bytes().to_vec();
        packet.extend_from_slice(data);
        let to = std::net::SocketAddrV4::new(to, 0);
        rustix::net::sendto(&self.socket, &packet, rustix::net::SendFlags::empty(), &to)?;
        Ok(())
    }

    /// The first message that `wanted` says yes to; `None` when none came in time.
    pub fn hear(&self, patience: Duration, wanted: impl Fn(&Message) -> bool) -> Result<Option<Message>> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0u8; 1 << 16];
        while Instant::now() < end {
            match rustix::net::recv(
                &self.socket,
                buffer.as_mut_slice(),
                rustix::net::RecvFlags::empty(),
            ) {
                Ok((len, _)) => {
                    if let Some(message) = parse(&buffer[..len]).filter(|message| wanted(message)) {
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

fn parse(packet: &[u8]) -> Option<Message> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let icmp = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    Some(Message {
        from: ip.source_addr(),
        ttl: ip.ttl(),
        icmp: icmp.icmp_type(),
        payload: icmp.payload().to_vec(),
    })
}

fn raw_socket() -> rustix::io::Result<OwnedFd> {
    let protocol = Some(rustix::net::ipproto::ICMP);
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(20)))?;
    Ok(socket)
}
