//! The kinds of flows that the generator mixes, and who draws the next one.

mod beyond;
mod extensions;
mod headers;
mod icmp;
mod odd;
mod resting;
mod sctp;
mod strays;
mod tcp;
mod udp;

use std::net::IpAddr;

use crate::{
    family::Family,
    lane::PODS,
    packet::{End, TCP, UDP, query},
    rng::Rng,
    script::{Script, Talk},
};

/// Name of a kind of flow.
pub(crate) type Archetype = &'static str;

/// A kind of flow: its name, how often it comes compared with the others, and who writes one.
pub(crate) struct Kind {
    pub(crate) name: Archetype,
    pub(crate) weight: usize,
    pub(crate) write: fn(&mut Draw<'_>) -> Script,
}

/// Every kind of a family that is compared.
pub(crate) fn all(family: Family) -> Vec<Kind> {
    let of_both = [
        tcp::KINDS,
        udp::KINDS,
        icmp::KINDS,
        odd::KINDS,
        headers::KINDS,
        strays::KINDS,
        beyond::KINDS,
        sctp::KINDS,
    ];
    let own: &[&[Row]] = match family {
        Family::V4 => &[udp::OF_IPV4, icmp::OF_IPV4, odd::OF_IPV4, headers::OF_IPV4],
        Family::V6 => &[extensions::KINDS],
    };
    let all = of_both.iter().chain(own);
    all.copied().flat_map(kinds).collect()
}

/// The kinds of flows that rest. Only a run that lets them rest draws them.
pub(crate) fn resting() -> Vec<Kind> {
    kinds(resting::KINDS).collect()
}

/// Whether nothing comes out of a kind: the node's own stack has it.
pub(crate) fn is_silent(kind: Archetype) -> bool {
    [icmp::SILENT, strays::SILENT]
        .into_iter()
        .flatten()
        .any(|silent| *silent == kind)
}

fn kinds(rows: &'static [Row]) -> impl Iterator<Item = Kind> {
    rows.iter()
        .map(|&(name, weight, write)| Kind { name, weight, write })
}

/// A flow with a port and a remote that no other kind has: the port stays, whatever is sent.
fn alone(draw: &mut Draw<'_>, protocol: u8) -> (Script, Talk) {
    let (pod, port) = (draw.pod(), draw.rng.port(1, 20_000));
    let remote = (draw.stranger(), draw.rng.port(1, 65_535));
    draw.translated(protocol, pod, port, remote)
}

/// A row of a table of kinds.
type Row = (Archetype, usize, fn(&mut Draw<'_>) -> Script);

/// What the writers of flows draw from.
#[derive(Debug)]
pub(crate) struct Draw<'a> {
    pub(crate) family: Family,
    pub(crate) rng: &'a mut Rng,
    pub(crate) pods: &'a [IpAddr; PODS],
    pub(crate) memory: &'a mut Memory,
    pub(crate) name: Archetype,
}

/// What one drawing leaves for the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// By kind: a pod's flow whose port another pod wants towards the same remote.
    twins: std::collections::HashMap<Archetype, (usize, u16, (IpAddr, u16))>,
    /// Hosts that one flow alone has to do with, so far.
    strangers: u32,
    /// Datagrams with an identification of their own so far.
    datagrams: u16,
    /// A socket of a pod that talks to many remotes, and to how many it still will.
    socket: Option<((usize, u16), usize)>,
    /// A remote that many talk to, and how many still will.
    busy: Option<((IpAddr, u16), usize)>,
}

impl Draw<'_> {
    pub(crate) fn pod(&mut self) -> usize {
        1 + self.rng.below(PODS)
    }

    pub(crate) fn addr(&self, pod: usize) -> IpAddr {
        self.pods[pod - 1]
    }

    /// A host of the internet.
    pub(crate) fn internet(&mut self) -> IpAddr {
        match self.rng.below(4) {
            0 => self.family.documentation(2, self.rng.port(1, 254)),
            1 => self.family.documentation(113, self.rng.port(1, 254)),
            // Room enough for echo, which has no port of the remote.
            _ => self.family.vast(self.rng.next() as u32 & 0x003f_ffff),
        }
    }

    /// A host that no other flow has to do with.
    pub(crate) fn stranger(&mut self) -> IpAddr {
        self.memory.strangers += 1;
        self.family.stranger(self.memory.strangers)
    }

    /// A port of the unprivileged class that no NodePort has.
    pub(crate) fn port(&mut self) -> u16 {
        self.rng.port(32_768, 65_535)
    }

    /// An identifier of ICMP that two pods may share.
    pub(crate) fn id(&mut self) -> u16 {
        match self.rng.below(64) {
            0 => 0,
            _ => self.rng.port(20_001, 65_535),
        }
    }

    /// A few bytes, now and then none or as many as fit.
    pub(crate) fn len(&mut self, largest: usize) -> usize {
        match self.rng.below(12) {
            0 => 0,
            1 => largest,
            2 => self.rng.below(largest + 1),
            _ => 1 + self.rng.below(100),
        }
    }

    /// Bytes of a datagram that fits into one packet.
    pub(crate) fn datagram(&mut self) -> usize {
        self.len(self.family.largest_datagram())
    }

    /// Bytes of a segment.
    pub(crate) fn segment(&mut self) -> usize {
        self.len(self.family.largest_segment())
    }

    /// A host in an excluded range.
    pub(crate) fn excluded(&mut self, host: u8) -> IpAddr {
        self.family.excluded(self.rng.port(0, 255) as u8, host)
    }

    /// A host in an excluded range, of few.
    pub(crate) fn peered(&mut self) -> IpAddr {
        self.family.excluded(0, self.rng.port(1, 254) as u8)
    }

    /// The type of an answer of ICMP: an echo's, or another's where there is any.
    pub(crate) fn answer(&mut self) -> u8 {
        let (_, echo) = self.family.echo();
        match self.family {
            Family::V4 => self.rng.pick(&[echo, query::TIMESTAMP.1]),
            Family::V6 => echo,
        }
    }

    /// A translated flow to a remote that nobody else talks to.
    pub(crate) fn outside(&mut self, protocol: u8) -> (Script, Talk) {
        let pod = self.pod();
        let (port, remote) = (self.port(), (self.internet(), self.rng.port(1, 65_535)));
        self.translated(protocol, pod, port, remote)
    }

    /// A translated flow with its ends given.
    pub(crate) fn translated(
        &mut self,
        protocol: u8,
        pod: usize,
        port: u16,
        remote: (IpAddr, u16),
    ) -> (Script, Talk) {
        let own = End::At(self.addr(pod), port);
        self.between(protocol, pod, own, End::Mapped, remote)
    }

    /// A flow that keeps its pod's address.
    pub(crate) fn direct(
        &mut self,
        protocol: u8,
        pod: usize,
        port: u16,
        remote: (IpAddr, u16),
    ) -> (Script, Talk) {
        let own = End::At(self.addr(pod), port);
        self.between(protocol, pod, own, own, remote)
    }

    /// The first of two pods with one port to one remote, or the second.
    pub(crate) fn twin(&mut self, protocol: u8, port: u16) -> (Script, Talk) {
        if let Some((pod, port, remote)) = self.memory.twins.remove(self.name) {
            return self.translated(protocol, 1 + pod % PODS, port, remote);
        }
        let (pod, remote) = (self.pod(), (self.internet(), self.rng.port(1, 65_535)));
        self.memory.twins.insert(self.name, (pod, port, remote));
        self.translated(protocol, pod, port, remote)
    }

    /// A remote that some hundred flows in a row talk to, from every port of every pod in turn: pod, port, remote.
    pub(crate) fn busy(&mut self) -> (usize, u16, (IpAddr, u16)) {
        let fresh = (self.internet(), self.rng.port(1, 65_535));
        let (remote, left) = match self.memory.busy {
            Some((remote, left)) if left > 0 => (remote, left - 1),
            _ => (fresh, 300),
        };
        self.memory.busy = Some((remote, left));
        (1 + left % PODS, 40_000 + (left / PODS) as u16, remote)
    }

    /// An identification that no datagram under way has.
    pub(crate) fn identification(&mut self) -> u16 {
        self.memory.datagrams = self.memory.datagrams.wrapping_add(1) & 0x3fff;
        0x8000 | self.memory.datagrams
    }

    /// A socket that talks to some dozen remotes: pod and port.
    pub(crate) fn socket(&mut self) -> (usize, u16) {
        let fresh = (self.pod(), self.port());
        let (socket, left) = match self.memory.socket {
            Some((socket, left)) if left > 0 => (socket, left - 1),
            _ => (fresh, 30),
        };
        self.memory.socket = Some((socket, left));
        socket
    }

    fn between(
        &mut self,
        protocol: u8,
        pod: usize,
        own: End,
        seen: End,
        remote: (IpAddr, u16),
    ) -> (Script, Talk) {
        let remote = if matches!(protocol, TCP | UDP) {
            remote
        } else {
            (remote.0, 0)
        };
        let script = Script {
            archetype: self.name,
            pod_port: match own {
                End::At(_, port) => port,
                End::Mapped => 0,
            },
            protocol,
            remote,
            translated: seen == End::Mapped,
            steps: Vec::new(),
            rests: Vec::new(),
        };
        let talk = Talk {
            pod,
            own,
            seen,
            remote: End::At(remote.0, remote.1),
            up: self.rng.next() as u32,
            down: self.rng.next() as u32,
        };
        (script, talk)
    }

    /// Flows by ICMP's echo.
    pub(crate) fn ping(&mut self) -> (Script, Talk) {
        self.outside(self.family.icmp())
    }

    /// The node itself as a remote end.
    pub(crate) fn node_end(&mut self) -> End {
        End::At(self.family.node(), self.rng.port(1, 30_000))
    }
}
