//! A conversation from one end to the other, with what its receiver saw and how much of it the node's kernel forwarded.
//!
//! How many packets took the stack is told by a rule without a target in the node's FORWARD chain: the kernel's own count,
//! not the datapath's word.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};

use crate::{
    capture::Capture,
    echo::Echo,
    netns::Netns,
    ping::Pinger,
    rig::Rig,
    rules,
    talk::{Tcp, Udp},
};

/// Questions and answers in a conversation: enough that a carried one and one of the kernel cannot be mistaken for each other.
pub const TURNS: u16 = 40;

/// Who asks, whom, and who answers.
#[derive(Clone, Copy, Debug)]
pub struct Walk<'a> {
    /// Where the client lives.
    pub client: &'a Netns,
    /// The address that the client dials.
    pub dial: SocketAddrV4,
    /// Where the server lives.
    pub server: &'a Netns,
    /// The address that the server has; another than `dial` if the node translates on the way.
    pub listen: SocketAddrV4,
}

/// What came of a conversation of [`TURNS`] turns, in which every answer was checked.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    /// The client's own address and port; for ping its identifier as the port.
    pub local: SocketAddrV4,
    /// The client's address and port as the server saw them.
    pub seen: SocketAddrV4,
    /// Packets that the node's kernel forwarded meanwhile, both directions.
    pub forwarded: u64,
}

impl Talk {
    /// Whether the kernel decided the first packets and never saw the rest.
    pub fn was_carried(&self) -> bool {
        self.forwarded >= 1 && self.forwarded <= u64::from(TURNS) / 4
    }

    /// Whether every packet took the stack.
    pub fn took_the_stack(&self) -> bool {
        self.forwarded >= 2 * u64::from(TURNS)
    }

    /// Fails unless the conversation was carried and the server saw `client`.
    pub fn expect_carried(&self, client: Ipv4Addr) -> Result<()> {
        ensure!(
            *self.seen.ip() == client,
            "the server saw {}, not {client}: {self:?}",
            self.seen
        );
        ensure!(self.was_carried(), "not carried: {self:?}");
        Ok(())
    }

    /// Fails unless the conversation stayed with the kernel and the server saw `client`.
    pub fn expect_kernel(&self, client: Ipv4Addr) -> Result<()> {
        ensure!(
            *self.seen.ip() == client,
            "the server saw {}, not {client}: {self:?}",
            self.seen
        );
        ensure!(self.took_the_stack(), "not all of it took the stack: {self:?}");
        Ok(())
    }
}

impl<'a> Walk<'a> {
    /// A walk on which the client dials the server's own address.
    pub fn direct(client: &'a Netns, server: &'a Netns, address: SocketAddrV4) -> Self {
        Self {
            client,
            dial: address,
            server,
            listen: address,
        }
    }

    /// Talks over one TCP connection.
    pub fn tcp(&self, rig: &Rig) -> Result<Talk> {
        self.talk(rig, || {
            let mut connection = Tcp::connect(self.client, self.dial)?;
            connection.chat(TURNS.into())?;
            connection.local()
        })
        .with_context(|| format!("TCP to {}", self.dial))
    }

    /// Talks over one UDP socket.
    pub fn udp(&self, rig: &Rig) -> Result<Talk> {
        self.talk(rig, || {
            let socket = Udp::connect(self.client, self.dial)?;
            socket.chat(TURNS.into())?;
            socket.local()
        })
        .with_context(|| format!("UDP to {}", self.dial))
    }

    /// Pings the server.
    pub fn ping(&self, rig: &Rig) -> Result<Talk> {
        const ID: u16 = 0xca5e;
        let wire = Capture::start(self.server, "eth0")?;
        let before = rules::forwarded(&rig.node.ns)?;
        Pinger::new(self.client, ID)?.chat(*self.dial.ip(), TURNS)?;
        let forwarded = rules::forwarded(&rig.node.ns)? - before;
        let frames = wire.stop();
        let mut arrived = frames
            .iter()
            .filter(|frame| !frame.outgoing)
            .filter_map(|frame| frame.ip.as_ref());
        let request = arrived
            .rfind(|ip| ip.icmp == Some((8, 0)))
            .context("the server saw no ping")?;
        // The client's address is not the socket's to tell; a capture of its own interface would only repeat the rig.
        let local = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, ID);
        Ok(Talk {
            local,
            seen: request.sender().context("not of IPv4")?,
            forwarded,
        })
    }

    fn talk(&self, rig: &Rig, converse: impl FnOnce() -> Result<SocketAddrV4>) -> Result<Talk> {
        let echo = Echo::on(self.server, self.listen)?;
        let before = rules::forwarded(&rig.node.ns)?;
        let local = converse()?;
        let forwarded = rules::forwarded(&rig.node.ns)? - before;
        let seen = echo.seen();
        let first = *seen.first().context("the server saw nobody")?;
        ensure!(
            seen.iter().all(|&peer| peer == first),
            "the client changed its address on the way: {seen:?}"
        );
        Ok(Talk {
            local,
            seen: first,
            forwarded,
        })
    }
}
