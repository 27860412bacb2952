//! Clients of [`Echo`](crate::echo::Echo): a TCP connection or a UDP socket that checks every byte that comes back.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, socket_with,
    sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout},
};

use crate::netns::Netns;

/// How long a client waits for an answer. A lost SYN is sent again after one second, so a single loss is survived.
pub const PATIENCE: Duration = Duration::from_millis(2500);

/// How long a client waits where the expected result is silence: longer than one retransmission of a SYN.
pub const SILENCE: Duration = Duration::from_millis(1300);

/// An open TCP connection to an echo server.
#[derive(Debug)]
pub struct Tcp(pub TcpStream);

impl Tcp {
    /// Connects from a port the kernel picks.
    pub fn connect(ns: &Netns, to: impl Into<SocketAddr>) -> Result<Self> {
        let to = to.into();
        Self::connect_within(ns, to, PATIENCE).with_context(|| format!("TCP connection to {to}"))
    }

    /// Connects, or gives up after `patience` with [`io::ErrorKind::TimedOut`].
    pub fn connect_within(ns: &Netns, to: impl Into<SocketAddr>, patience: Duration) -> io::Result<Self> {
        let to = to.into();
        let connected = ns.run(|| TcpStream::connect_timeout(&to, patience));
        Self::patient(connected.map_err(io::Error::other)??)
    }

    /// Connects from an address and port of the caller's choice; port 0 lets the kernel pick.
    pub fn connect_from(ns: &Netns, from: impl Into<SocketAddr>, to: impl Into<SocketAddr>) -> Result<Self> {
        let (from, to) = (from.into(), to.into());
        let stream = ns.bind(|| bound_stream(from, to));
        let stream = stream.with_context(|| format!("TCP connection from {from} to {to}"))?;
        Ok(Self::patient(stream)?)
    }

    fn patient(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let connection = Self(stream);
        connection.set_patience(PATIENCE)?;
        Ok(connection)
    }

    /// How long it waits for its peer from now on, before it is taken for broken.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(patience))?;
        self.0.set_write_timeout(Some(patience))
    }

    /// Sends `times` small messages, one after the other, and checks each answer.
    pub fn chat(&mut self, times: u32) -> Result<()> {
        for turn in 0..times {
            let message = format!("turn {turn}: the kernel decides a flow's first packet");
            self.0
                .write_all(message.as_bytes())
                .with_context(|| format!("sending turn {turn}"))?;
            let mut answer = vec![0; message.len()];
            self.0
                .read_exact(&mut answer)
                .with_context(|| format!("no answer to turn {turn}"))?;
            ensure!(answer == message.as_bytes(), "turn {turn} came back changed");
        }
        Ok(())
    }

    /// The client's own end, as it knows it.
    pub fn local(&self) -> Result<SocketAddrV4> {
        match self.0.local_addr()? {
            SocketAddr::V4(address) => Ok(address),
            other @ SocketAddr::V6(_) => anyhow::bail!("{other} is not IPv4"),
        }
    }
}

/// How many late answers there may be before the right one.
const LATE: usize = 16;

/// A UDP socket connected to an echo server.
#[derive(Debug)]
pub struct Udp(pub UdpSocket);

impl Udp {
    /// A socket on a port the kernel picks.
    pub fn connect(ns: &Netns, to: impl Into<SocketAddr>) -> Result<Self> {
        let to = to.into();
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::connect_from(ns, SocketAddr::new(any, 0), to)
    }

    /// A socket on an address and port of the caller's choice.
    pub fn connect_from(ns: &Netns, from: impl Into<SocketAddr>, to: impl Into<SocketAddr>) -> Result<Self> {
        let (from, to) = (from.into(), to.into());
        let socket = ns.bind(|| {
            let socket = UdpSocket::bind(from)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        });
        Ok(Self(
            socket.with_context(|| format!("UDP socket from {from} to {to}"))?,
        ))
    }

    /// Sends one datagram of `len` bytes and checks that the same bytes come back. An answer of another length is a late one,
    /// to what nobody waits for any more: it is passed over, and the right one has to come all the same.
    pub fn ask(&self, len: usize) -> Result<()> {
        let message: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
        self.0
            .send(&message)
            .with_context(|| format!("sending {len} bytes"))?;
        let mut answer = vec![0; 1 << 16];
        for _late in 0..LATE {
            let got = self
                .0
                .recv(&mut answer)
                .with_context(|| format!("no answer to {len} bytes"))?;
            if got == len {
                ensure!(answer[..got] == message, "{len} bytes came back changed");
                return Ok(());
            }
        }
        anyhow::bail!("{LATE} answers to {len} bytes, and none of that length")
    }

    /// Sends `times` datagrams, one after the other, and checks each answer.
    pub fn chat(&self, times: u32) -> Result<()> {
        (0..times).try_for_each(|turn| self.ask(18 + turn as usize % 64))
    }

    /// Whether a datagram of `len` bytes stays without an answer for `patience`.
    pub fn is_unanswered(&self, len: usize, patience: Duration) -> Result<bool> {
        self.0.set_read_timeout(Some(patience))?;
        let sent = self
            .0
            .send(&vec![1; len])
            .and_then(|_| self.0.recv(&mut [0; 2048]));
        self.0.set_read_timeout(Some(PATIENCE))?;
        Ok(sent.is_err())
    }

    /// The client's own end, as it knows it.
    pub fn local(&self) -> Result<SocketAddrV4> {
        match self.0.local_addr()? {
            SocketAddr::V4(address) => Ok(address),
            other @ SocketAddr::V6(_) => anyhow::bail!("{other} is not IPv4"),
        }
    }
}

/// The standard library cannot bind before it connects.
fn bound_stream(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if from.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    // Bounds connect() as well as writes.
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    rustix::net::bind(&socket, &from)?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}
