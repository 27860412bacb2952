//! A pod's connection: a veth pair, and what both of its ends need to know.
//!
//! In the pod the only next hop is [`GATEWAY`], whose MAC is the host end's; the pod never resolves a neighbour. On
//! the host a /32 route leads to the pod, whose MAC is known too. So no ARP takes place on the pair at all.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    process,
};

use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
        LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{CHANGE, Link, LinkError, NEW, Netlink, REPLACE, address, at};
use crate::sysctl;

/// The next hop of every pod. Link-local and never on the wire (RFC 3927): the veth's host end answers for it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// How a pod is to be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// The pod's address.
    pub addr: Ipv4Addr,
    /// Length of its subnet's prefix.
    pub prefix_len: u8,
    /// Name of the interface in the pod.
    pub if_name: String,
    /// Name of the host's end.
    pub host_if: String,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// MAC of the pod's interface.
    pub mac: [u8; 6],
    /// The pod's interface polls, so that it takes frames which XDP redirects.
    pub polls: bool,
}

/// A connected pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Index of the host's end.
    pub host_ifindex: u32,
    /// MAC of the host's end.
    pub host_mac: [u8; 6],
    /// MAC of the pod's interface.
    pub mac: [u8; 6],
}

/// Connects a pod: makes the veth pair with one end in the pod's namespace `netns`, gives the pod its address, its
/// routes and its neighbour, and the host the route and the neighbour of the pod. On an error nothing is left
/// behind.
///
/// `admit` is called when the pair is there and both ends are down: whatever must know the pod before it can send its
/// first packet is told there.
pub fn connect_pod<E: From<LinkError>>(
    netns: BorrowedFd<'_>,
    pod: &PodNetwork,
    admit: impl FnOnce(&PodLink) -> Result<(), E>,
) -> Result<PodLink, E> {
    let mut host = Netlink::new()?;
    let (mac, host_mac) = (pod.mac, random_mac()?);
    create_pair(&mut host, netns, pod, mac, host_mac)?;
    let made = Made(&pod.host_if);
    let end = find_host_end(&mut host, pod)?;
    let link = PodLink {
        host_ifindex: end.index,
        host_mac,
        mac,
    };
    admit(&link)?;
    set_up_host(&mut host, &end, pod.addr, mac)?;
    set_up_pod(&mut Netlink::inside(netns)?, pod, host_mac)?;
    // The end that came up first had no carrier then: what is sent to the pod is lost until it has.
    host.wait_until_operational(&end)?;
    made.keep();
    Ok(link)
}

/// A pair that is not yet of use: dropped, also by a panic, it is removed.
struct Made<'a>(&'a str);

impl Made<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Err(error) = disconnect_pod(self.0) {
            tracing::warn!(interface = self.0, %error, "cannot remove the interface of a pod that failed to connect");
        }
    }
}

/// Deletes the host's end of a pod's connection, and with it the pod's end, the route and the neighbour. Returns
/// whether it was there.
pub fn disconnect_pod(host_if: &str) -> Result<bool, LinkError> {
    let mut host = Netlink::new()?;
    match host.link(host_if)? {
        None => Ok(false),
        Some(link) if !link.is_veth => Err(LinkError::NotVeth(link.name)),
        Some(link) => host.delete_link(link.index),
    }
}

fn create_pair(
    host: &mut Netlink,
    netns: BorrowedFd<'_>,
    pod: &PodNetwork,
    mac: [u8; 6],
    host_mac: [u8; 6],
) -> Result<(), LinkError> {
    let mut peer = half(&pod.if_name, pod.mtu, mac);
    peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    let mut pair = half(&pod.host_if, pod.mtu, host_mac);
    pair.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let result = host.change(RouteNetlinkMessage::NewLink(pair), NEW, || {
        format!("make the veth pair {} and {}", pod.host_if, pod.if_name)
    });
    match result {
        // Both names can be taken, and the kernel does not say which.
        Err(error) if error.errno() == Some(libc::EEXIST) => Err(match host.link(&pod.host_if)? {
            Some(_) => LinkError::HostInterfaceExists(pod.host_if.clone()),
            None => LinkError::PodInterfaceExists(pod.if_name.clone()),
        }),
        other => other,
    }
}

/// One end of a pair.
fn half(name: &str, mtu: u32, mac: [u8; 6]) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(mac.to_vec()),
    ];
    message
}

fn find_host_end(host: &mut Netlink, pod: &PodNetwork) -> Result<Link, LinkError> {
    host.link(&pod.host_if)?
        .ok_or_else(|| LinkError::Disappeared(pod.host_if.clone()))
}

/// Every step may be repeated.
pub(super) fn set_up_host(
    host: &mut Netlink,
    link: &Link,
    addr: Ipv4Addr,
    mac: [u8; 6],
) -> Result<(), LinkError> {
    ignore_advertisements(&link.name)?;
    host.refuse_ipv6_addresses(link)?;
    host.bring_up(link)?;
    let mut route = route_out_of(link);
    lead_to(&mut route, addr);
    // A pod that was not deleted cleanly may have left a route to another interface: the address has one owner.
    host.change(RouteNetlinkMessage::NewRoute(route), REPLACE, || {
        format!("route {addr}/32 to {}", link.name)
    })?;
    host.set_neighbour(link, addr, mac)
}

/// The host's end listens to no router advertisement of a pod.
fn ignore_advertisements(interface: &str) -> Result<(), LinkError> {
    let name = format!("net/ipv6/conf/{interface}/accept_ra");
    match sysctl::write(&name, "0") {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LinkError::Refused {
            action: format!("set {name} to 0"),
            source,
        }),
        _ => Ok(()),
    }
}

fn set_up_pod(netlink: &mut Netlink, pod: &PodNetwork, host_mac: [u8; 6]) -> Result<(), LinkError> {
    if let Some(loopback) = netlink.link("lo")? {
        netlink.bring_up(&loopback)?;
    }
    let link = netlink
        .link(&pod.if_name)?
        .ok_or_else(|| LinkError::Disappeared(pod.if_name.clone()))?;
    let net = Ipv4Net::new(pod.addr, pod.prefix_len).unwrap_or(pod.addr.into());
    let mut own = address::of_interface(link.index, net);
    // With the subnet's route the pod would ARP for its neighbours, whom only the node can reach.
    own.attributes
        .push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    netlink.change(RouteNetlinkMessage::NewAddress(own), NEW, || {
        format!("give {net} to {}", link.name)
    })?;
    netlink.bring_up(&link)?;
    if pod.polls {
        netlink.make_poll(&link)?;
    }

    let has_default = netlink.routes()?.iter().any(|route| route.to.prefix_len() == 0);
    let rank = has_default.then_some(link.index);
    if let Some(table) = rank {
        netlink.route_from(pod.addr, table)?;
    }
    for table in std::iter::once(None).chain(rank.map(Some)) {
        for gateway in [None, Some(GATEWAY)] {
            netlink.route_out(&link, gateway, table, rank)?;
        }
    }
    netlink.set_neighbour(&link, GATEWAY, host_mac)
}

/// Metric of the second interface's routes in the main table, to which its index is added: they serve once the first
/// interface is gone.
const LATER_METRIC: u32 = 1000;
/// Table of a further interface's own routes, to which its index is added: above the kernel's own and the usual ones.
const LATER_TABLE: u32 = 1_000_000;

impl Netlink {
    /// The default route by `gateway`, or without one the route to the gateway itself. `rank` is that of a further
    /// interface, `table` whether it is for the table that only packets with its address look into.
    fn route_out(
        &mut self,
        link: &Link,
        gateway: Option<Ipv4Addr>,
        table: Option<u32>,
        rank: Option<u32>,
    ) -> Result<(), LinkError> {
        let mut route = route_out_of(link);
        match gateway {
            Some(gateway) => {
                let gateway = RouteAttribute::Gateway(RouteAddress::Inet(gateway));
                route.attributes.push(gateway);
            }
            None => lead_to(&mut route, GATEWAY),
        }
        if let Some(table) = table {
            // With the attribute the header's field, too small for it, does not count.
            route.header.table = RouteHeader::RT_TABLE_UNSPEC;
            route.attributes.push(RouteAttribute::Table(LATER_TABLE + table));
        } else if let Some(rank) = rank {
            route
                .attributes
                .push(RouteAttribute::Priority(LATER_METRIC + rank));
        }
        let what = if gateway.is_some() {
            "the default route"
        } else {
            "the route to the gateway"
        };
        self.change(RouteNetlinkMessage::NewRoute(route), NEW, || {
            format!("add {what} in the pod")
        })
    }

    /// Packets with the address of a further interface leave by it: on the first one they would be a stranger's.
    fn route_from(&mut self, address: Ipv4Addr, table: u32) -> Result<(), LinkError> {
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet;
        rule.header.src_len = 32;
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::Source(address.into()),
            RuleAttribute::Table(LATER_TABLE + table),
        ];
        match self.change(RouteNetlinkMessage::NewRule(rule), NEW, || {
            format!("add a rule for packets from {address} in the pod")
        }) {
            // Left by an interface that was here before.
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// The interface needs no IPv6 address of its own. Not by the sysctl, which spins for as long as somebody else changes
    /// interfaces (`rtnl_trylock`, Linux 6.18).
    fn refuse_ipv6_addresses(&mut self, link: &Link) -> Result<(), LinkError> {
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let mut message = at(link.index);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![none]));
        match self.change(RouteNetlinkMessage::SetLink(message), CHANGE, || {
            format!("keep IPv6 addresses off {}", link.name)
        }) {
            // Of a kernel without IPv6.
            Err(error) if error.errno() == Some(libc::EAFNOSUPPORT) => Ok(()),
            other => other,
        }
    }

    fn bring_up(&mut self, link: &Link) -> Result<(), LinkError> {
        let mut up = at(link.index);
        up.header.flags = LinkFlags::Up;
        up.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(up), CHANGE, || {
            format!("bring {} up", link.name)
        })
    }

    fn set_neighbour(&mut self, link: &Link, addr: Ipv4Addr, mac: [u8; 6]) -> Result<(), LinkError> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = AddressFamily::Inet;
        neighbour.header.ifindex = link.index;
        neighbour.header.state = NeighbourState::Permanent;
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.change(RouteNetlinkMessage::NewNeighbour(neighbour), REPLACE, || {
            format!("set the neighbour {addr} on {}", link.name)
        })
    }
}

impl Netlink {
    /// Opens a socket in the network namespace `netns`. The calling thread is inside for as long as that takes.
    pub(super) fn inside(netns: BorrowedFd<'_>) -> Result<Self, LinkError> {
        let own = File::open("/proc/thread-self/ns/net").map_err(LinkError::Namespace)?;
        enter(netns).map_err(LinkError::Namespace)?;
        let opened = Self::new();
        if let Err(error) = enter(own.as_fd()) {
            tracing::error!(%error, "cannot leave the pod's network namespace");
            // What would be taken back from here on is the pod's, not the node's. The next call takes back what is there.
            process::abort();
        }
        opened
    }
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(
        netns,
        Some(LinkNameSpaceType::Network),
    )?)
}

/// A unicast route of the main table by an interface, to everywhere.
fn route_out_of(link: &Link) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Unicast;
    route.attributes.push(RouteAttribute::Oif(link.index));
    route
}

/// Makes a route one to a single address on the interface's own wire.
fn lead_to(route: &mut RouteMessage, address: Ipv4Addr) {
    route.header.scope = RouteScope::Link;
    route.header.destination_prefix_length = 32;
    route
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::Inet(address)));
}

/// A random unicast, locally administered MAC (IEEE 802 section 8.4). Given explicitly, it is left alone by
/// systemd-udevd, whose default policy replaces MACs that the kernel made up, some time after the link appears.
pub fn random_mac() -> Result<[u8; 6], LinkError> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, rustix::rand::GetRandomFlags::empty()).map_err(|errno| {
        LinkError::Refused {
            action: "draw a random MAC".to_owned(),
            source: errno.into(),
        }
    })?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_macs_are_unicast_and_locally_administered() {
        for _ in 0..64 {
            let mac = random_mac().unwrap();
            assert_eq!(mac[0] & 0x03, 0x02, "{mac:02x?}");
        }
        assert_ne!(random_mac().unwrap(), random_mac().unwrap());
    }
}
