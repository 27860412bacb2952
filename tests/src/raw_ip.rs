//! A raw socket of either family: a client or server of any IP protocol.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etherparse::Ipv4HeaderSlice;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, sendto,
        socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use crate::netns::Netns;

/// A socket that sends and receives packets of one protocol.
#[derive(Debug)]
pub struct RawIp(OwnedFd);

impl RawIp {
    /// A socket of the IP protocol with this number, for an address of the namespace.
    pub fn on(ns: &Netns, protocol: u8, addr: IpAddr) -> Result<Self> {
        let number = NonZeroU32::new(protocol.into()).context("protocol 0 is no protocol of its own")?;
        let family = if addr.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let protocol = Some(Protocol::from_raw(number));
        let socket = ns.run(|| {
            let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            bind(&socket, &SocketAddr::new(addr, 0)).map(|()| socket)
        })?;
        Ok(Self(socket.with_context(|| {
            format!("a raw socket of protocol {number} on {addr}")
        })?))
    }

    /// Sends one packet with this payload.
    pub fn send(&self, to: IpAddr, data: &[u8]) -> Result<()> {
        sendto(&self.0, data, SendFlags::empty(), &SocketAddr::new(to, 0))
            .with_context(|| format!("sending to {to}"))?;
        Ok(())
    }

    /// Waits for a packet: who sent it, and its payload. `None` when none came in time.
    pub fn receive(&self, patience: Duration) -> Result<Option<(IpAddr, Vec<u8>)>> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(patience))?;
        let mut buffer = vec![0u8; 1 << 16];
        let (len, from) = match recvfrom(&self.0, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((len, _, from)) => (len, from.context("nobody has sent it")?),
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let source = SocketAddr::try_from(from)?.ip();
        let packet = &buffer[..len];
        // Of IPv4 the header comes with it (raw(7)).
        let header = match source {
            IpAddr::V4(_) => Ipv4HeaderSlice::from_slice(packet)?.slice().len(),
            IpAddr::V6(_) => 0,
        };
        Ok(Some((source, packet[header..].to_vec())))
    }

    /// Waits for a packet with this payload; who sent it.
    pub fn expect(&self, data: &[u8]) -> Result<IpAddr> {
        let received = self.receive(crate::talk::PATIENCE)?;
        let (from, got) = received.context("nothing arrived")?;
        ensure!(got == data, "{} bytes arrived from {from}, changed", got.len());
        Ok(from)
    }
}
