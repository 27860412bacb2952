//! A side of a comparison: the same node and surroundings with Causeway or with the rule that it replaces.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_common::addr::Address;
use causeway_tests::{
    dual_stack, fabric,
    fabric::INTERNET,
    frame::Packet,
    netns::Netns,
    node::{Datapath, Pod},
    ping::Pinger,
    rig::Rig,
    rules,
};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    set_ipv6_unicast_hops,
};

use crate::{family::Family, peer::Peer};

/// A second address of the internet's host.
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);

/// The same of IPv6.
const SECOND_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11);

/// The router's, from which its errors come.
const ROUTER_V6: Ipv6Addr = dual_stack::at(1);

/// How long silence is listened to. Whatever is on its way takes some hundred microseconds.
pub(crate) const A_WHILE: Duration = Duration::from_millis(150);

/// A node with a pod.
pub(crate) struct Side {
    pub(crate) rig: Rig,
    pub(crate) pod: Pod,
    family: Family,
    datapath: Datapath,
}

/// What Causeway does and what nf_nat does, in this order, seen by the same observation at the same time.
pub(crate) fn both<T: Send>(family: Family, observe: impl Fn(&Side) -> Result<T> + Sync) -> Result<[T; 2]> {
    both_with(family, &[], observe)
}

/// What both do; fails where they differ.
pub(crate) fn agree<T: Send + PartialEq + std::fmt::Debug>(
    family: Family,
    observe: impl Fn(&Side) -> Result<T> + Sync,
) -> Result<T> {
    let [causeway, nf_nat] = both(family, observe)?;
    ensure!(causeway == nf_nat, "Causeway: {causeway:?}, nf_nat: {nf_nat:?}");
    Ok(causeway)
}

/// As [`both`], with sysctls that are set before the first pod comes.
pub(crate) fn both_with<T: Send>(
    family: Family,
    sysctls: &[(&str, &str)],
    observe: impl Fn(&Side) -> Result<T> + Sync,
) -> Result<[T; 2]> {
    let on = |datapath| {
        let side = Side::new(datapath, family, sysctls)?;
        observe(&side).with_context(|| format!("{datapath:?}"))
    };
    thread::scope(|scope| {
        let nf_nat = scope.spawn(|| on(Datapath::RoutedMasquerade));
        let causeway = on(Datapath::Causeway)?;
        let nf_nat = nf_nat
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok([causeway, nf_nat])
    })
}

impl Side {
    fn new(datapath: Datapath, family: Family, sysctls: &[(&str, &str)]) -> Result<Self> {
        let rig = match (family, datapath.is_causeway()) {
            (Family::V4, true) => Rig::causeway()?,
            (Family::V4, false) => Rig::unwatched(datapath, 20)?,
            (Family::V6, true) => Rig::masquerading_ipv6()?,
            (Family::V6, false) => Rig::masquerading_ipv6_by_rule()?,
        };
        if datapath.is_causeway() {
            // As on every node with kube-proxy: conntrack is at work, and what it cannot place is not forwarded.
            rules::forbid_invalid(&rig.node.ns)?;
        }
        if family == Family::V6 {
            rig.fabric
                .internet
                .ip(&format!("addr add {SECOND_V6}/64 dev eth0 nodad noprefixroute"))?;
            // Nobody forwards an error from an address of the link.
            rig.fabric.router.ip(&format!(
                "route add {SECOND_V6} dev internet\naddr add {ROUTER_V6}/128 dev node nodad"
            ))?;
        }
        rig.fabric
            .internet
            .ip(&format!("addr add {SECOND}/24 dev eth0"))?;
        // Nobody is told less because somebody else was told before.
        for ns in [&rig.node.ns, &rig.fabric.router, &rig.fabric.internet] {
            ns.sysctl("net/ipv4/icmp_ratelimit", "0")?;
            ns.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        }
        for (key, value) in sysctls {
            rig.node.ns.sysctl(key, value)?;
        }
        let pod = rig.pod("a")?;
        Ok(Self {
            rig,
            pod,
            family,
            datapath,
        })
    }

    pub(crate) fn is_causeway(&self) -> bool {
        self.datapath.is_causeway()
    }

    /// The node's address, with a port.
    pub(crate) fn node_at(&self, port: u16) -> SocketAddr {
        self.choose(fabric::NODE, dual_stack::NODE, port)
    }

    /// The first address of the host outside, with a port.
    pub(crate) fn near_at(&self, port: u16) -> SocketAddr {
        self.choose(INTERNET, dual_stack::INTERNET, port)
    }

    /// Its second one.
    pub(crate) fn far_at(&self, port: u16) -> SocketAddr {
        self.choose(SECOND, SECOND_V6, port)
    }

    /// A pod's address, with a port.
    pub(crate) fn at(&self, pod: &Pod, port: u16) -> Result<SocketAddr> {
        Ok(match self.family {
            Family::V4 => SocketAddr::new(pod.addr.into(), port),
            Family::V6 => SocketAddr::new(pod.addr_v6()?.into(), port),
        })
    }

    /// A pod's address.
    pub(crate) fn addr(&self, pod: &Pod) -> Result<IpAddr> {
        Ok(self.at(pod, 0)?.ip())
    }

    /// The node's address.
    pub(crate) fn node(&self) -> IpAddr {
        self.node_at(0).ip()
    }

    /// The first address of the host outside.
    pub(crate) fn near(&self) -> IpAddr {
        self.near_at(0).ip()
    }

    /// Whether a packet is an error of ICMP, and not what neighbours say to each other.
    pub(crate) fn is_error(&self, ip: &Packet) -> bool {
        let (protocol, most) = self.of_family((1, u8::MAX), (58, 127));
        ip.protocol == protocol && ip.icmp.is_some_and(|(kind, _)| kind <= most)
    }

    /// Type and code of an echo's question.
    pub(crate) fn echo(&self) -> (u8, u8) {
        self.of_family((8, 0), (128, 0))
    }

    /// Type and code of an error: nobody listens on the port.
    pub(crate) fn port_unreachable(&self) -> (u8, u8) {
        self.of_family((3, 3), (1, 4))
    }

    /// The host is not there.
    pub(crate) fn host_unreachable(&self) -> (u8, u8) {
        self.of_family((3, 1), (1, 3))
    }

    /// Somebody on the way has no route there.
    pub(crate) fn no_route(&self) -> (u8, u8) {
        // An unreachable route of IPv6 is one too few (RFC 4443 section 3.1, code 0).
        self.of_family(self.host_unreachable(), (1, 0))
    }

    /// Forbidden by somebody on the way.
    pub(crate) fn prohibited(&self) -> (u8, u8) {
        self.of_family((3, 13), (1, 1))
    }

    /// The last hop was not the destination.
    pub(crate) fn expired(&self) -> (u8, u8) {
        self.of_family((11, 0), (3, 0))
    }

    /// Something in the header is not as it should be.
    pub(crate) fn parameter_problem(&self) -> (u8, u8) {
        self.of_family((12, 0), (4, 0))
    }

    /// Bytes of a header without options.
    pub(crate) fn header(&self) -> usize {
        self.of_family(20, 40)
    }

    /// Where the addresses begin in a header: behind all that a router changes.
    pub(crate) fn addrs_at(&self) -> usize {
        self.of_family(12, 8)
    }

    /// Whether a host quotes a datagram that a pod has sent, or its beginning: addresses, ports, length and data. Its
    /// checksum is computed when it leaves the machine, and it has not.
    pub(crate) fn is_quoted(&self, quoted: &[u8], sent: &[u8]) -> bool {
        let (begin, sum) = (self.addrs_at(), self.header() + 6);
        let data = sum + 2..quoted.len();
        quoted.get(begin..sum) == sent.get(begin..sum) && quoted.get(data.clone()) == sent.get(data)
    }

    /// What is said of IPv4, or of IPv6.
    pub(crate) fn of_family<T>(&self, of_ipv4: T, of_ipv6: T) -> T {
        match self.family {
            Family::V4 => of_ipv4,
            Family::V6 => of_ipv6,
        }
    }

    /// The number of the family's ICMP.
    pub(crate) fn icmp(&self) -> u8 {
        self.of_family(<[u8; 4]>::ICMP, <[u8; 16]>::ICMP)
    }

    /// Sends echoes of the family with an identifier, and hears its ICMP.
    pub(crate) fn pinger(&self, ns: &Netns, id: u16) -> Result<Pinger> {
        match self.family {
            Family::V4 => Pinger::new(ns, id),
            Family::V6 => Pinger::of_ipv6(ns, id),
        }
    }

    /// How many hops what a socket sends may go.
    pub(crate) fn set_hops(&self, peer: &Peer, hops: u8) -> Result<()> {
        match self.family {
            Family::V4 => peer.socket.set_ttl(hops.into())?,
            Family::V6 => set_ipv6_unicast_hops(&peer.socket, Some(hops))?,
        }
        Ok(())
    }

    /// Whether what a socket sends may be fragmented by who has to. Of IPv6 that is its own host.
    pub(crate) fn let_be_fragmented(&self, peer: &Peer, may: bool) -> Result<()> {
        match (self.family, may) {
            (Family::V4, true) => set_ip_mtu_discover(&peer.socket, Ipv4PathMtuDiscovery::DONT)?,
            (Family::V4, false) => set_ip_mtu_discover(&peer.socket, Ipv4PathMtuDiscovery::DO)?,
            (Family::V6, true) => set_ipv6_mtu_discover(&peer.socket, Ipv6PathMtuDiscovery::DONT)?,
            (Family::V6, false) => set_ipv6_mtu_discover(&peer.socket, Ipv6PathMtuDiscovery::DO)?,
        }
        Ok(())
    }

    /// A socket of a pod.
    pub(crate) fn peer(&self, pod: &Pod, port: u16) -> Result<Peer> {
        Peer::on(&pod.ns, self.at(pod, port)?)
    }

    fn choose(&self, of_ipv4: Ipv4Addr, of_ipv6: Ipv6Addr, port: u16) -> SocketAddr {
        SocketAddr::new(self.of_family(of_ipv4.into(), of_ipv6.into()), port)
    }

    /// The host outside, with the addresses of [`Self::near_at`] and [`Self::far_at`].
    pub(crate) fn internet(&self) -> &Netns {
        &self.rig.fabric.internet
    }

    /// A host outside every excluded range that has a route to a pod.
    pub(crate) fn partner(&self, pod: IpAddr) -> Result<&Netns> {
        let fabric = &self.rig.fabric;
        match self.family {
            Family::V4 => Ok(&fabric.partner),
            Family::V6 => {
                let route = format!("route add {pod} via fe80::1 dev eth0");
                fabric.internet.ip(&route).map(|()| &fabric.internet)
            }
        }
    }

    /// Returns when everything that was sent before has been dealt with.
    pub(crate) fn settle(&self) -> Result<()> {
        const ID: u16 = 0x5e77;
        self.pinger(&self.pod.ns, ID)?.ping(self.near(), 1, 8)?;
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }
}
