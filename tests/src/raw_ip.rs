//! A raw IPv4 socket: a client or server of any IP protocol.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU32,
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etherparse::Ipv4HeaderSlice;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use crate::netns::Netns;

/// A socket that sends and receives packets of one protocol.
#[derive(Debug)]
pub struct RawIp(OwnedFd);

impl RawIp {
    /// A socket of the IP protocol with this number.
    pub fn open(ns: &Netns, protocol: u8) -> Result<Self> {
        let number = NonZeroU32::new(protocol.into()).context("protocol 0 is no protocol of its own")?;
        let socket = ns.run(|| {
            socket_with(
                AddressFamily::INET,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                Some(Protocol::from_raw(number)),
            )
        })?;
        Ok(Self(socket.with_context(|| {
            format!("a raw socket of protocol {protocol}")
        })?))
    }

    /// Sends one packet with this payload.
    pub fn send(&self, to: Ipv4Addr, data: &[u8]) -> Result<()> {
        sendto(&self.0, data, SendFlags::empty(), &SocketAddrV4::new(to, 0))
            .with_context(|| format!("sending to {to}"))?;
        Ok(())
    }

    /// Waits for a packet: who sent it, and its payload. `None` when none came in time.
    pub fn receive(&self, patience: Duration) -> Result<Option<(Ipv4Addr, Vec<u8>)>> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(patience))?;
        let mut buffer = vec![0u8; 1 << 16];
        let len = match recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((len, _)) => len,
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let ip = Ipv4HeaderSlice::from_slice(&buffer[..len])?;
        let source = ip.source_addr();
        Ok(Some((source, buffer[ip.slice().len()..len].to_vec())))
    }

    /// Waits for a packet with this payload; who sent it.
    pub fn expect(&self, data: &[u8]) -> Result<Ipv4Addr> {
        let received = self.receive(crate::talk::PATIENCE)?;
        let (from, got) = received.context("nothing arrived")?;
        ensure!(got == data, "{} bytes arrived from {from}, changed", got.len());
        Ok(from)
    }
}
