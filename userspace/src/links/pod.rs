//! A pod's connection: a veth pair, and what both of its ends need to know.
//!
//! In the pod the only next hop is [`GATEWAY`](super::GATEWAY), for IPv6 [`GATEWAY_V6`](super::GATEWAY_V6), whose MAC is the host end's; the pod never resolves
//! a neighbour. On the host a route to each single address leads to the pod, whose MAC is known too. So neither ARP nor
//! neighbour discovery takes place on the pair at all.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    process,
};

use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressFlags,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    CHANGE, Kind, Link, LinkError, NEW, Netlink, REPLACE, address, at,
    hops::{families, gateway, route_to, whole},
    ipv6::{allow_ipv6, has_ipv6, ignore_advertisements, trust_addresses},
};

/// How a pod is to be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// The pod's addresses with their subnets' masks.
    pub addresses: Vec<IpNet>,
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

/// Connects a pod: makes the veth pair with one end in the pod's namespace `netns`, gives the pod its addresses, its
/// routes and its neighbours, and the host the routes and the neighbours of the pod. On an error nothing is left
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
    set_up_host(&mut host, &end, &pod.addresses, mac)?;
    let mut inside = within(netns, || {
        if has_ipv6(&pod.addresses) {
            allow_ipv6("lo")?;
            allow_ipv6(&pod.if_name)?;
            trust_addresses(&pod.if_name)?;
        }
        Netlink::new()
    })?;
    set_up_pod(&mut inside, pod, host_mac)?;
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
        Some(link) if link.kind != Kind::Veth => Err(LinkError::NotVeth(link.name)),
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
    addresses: &[IpNet],
    mac: [u8; 6],
) -> Result<(), LinkError> {
    ignore_advertisements(&link.name)?;
    if has_ipv6(addresses) {
        allow_ipv6(&link.name)?;
    }
    host.refuse_ipv6_addresses(link)?;
    host.bring_up(link)?;
    for addr in addresses.iter().map(IpNet::addr) {
        let route = route_to(link, addr);
        // A pod that was not deleted cleanly may have left a route to another interface: the address has one owner.
        host.change(RouteNetlinkMessage::NewRoute(route), REPLACE, || {
            format!("route {} to {}", whole(addr), link.name)
        })?;
        host.set_neighbour(link, addr, mac)?;
    }
    Ok(())
}

fn set_up_pod(netlink: &mut Netlink, pod: &PodNetwork, host_mac: [u8; 6]) -> Result<(), LinkError> {
    netlink.bring_up_loopback()?;
    let link = netlink
        .link(&pod.if_name)?
        .ok_or_else(|| LinkError::Disappeared(pod.if_name.clone()))?;
    for net in &pod.addresses {
        // With the subnet's route the pod would ask for its neighbours, whom only the node can reach.
        let own = address::of_interface(link.index, *net, AddressFlags::Noprefixroute);
        netlink.change(RouteNetlinkMessage::NewAddress(own), NEW, || {
            format!("give {net} to {}", link.name)
        })?;
    }
    netlink.bring_up(&link)?;
    if pod.polls {
        netlink.make_poll(&link)?;
    }
    for gateway in families(&pod.addresses).map(gateway) {
        netlink.lead_out(&link, gateway, &pod.addresses)?;
        netlink.set_neighbour(&link, gateway, host_mac)?;
    }
    netlink.wait_until_usable(&pod.addresses, &link)
}

impl Netlink {
    fn bring_up(&mut self, link: &Link) -> Result<(), LinkError> {
        self.bring_up_as(at(link.index), &link.name)
    }

    /// By its name: there is one in every namespace, and none of the others is of that name.
    fn bring_up_loopback(&mut self) -> Result<(), LinkError> {
        const NAME: &str = "lo";
        let mut named = LinkMessage::default();
        named.attributes.push(LinkAttribute::IfName(NAME.to_owned()));
        self.bring_up_as(named, NAME)
    }

    fn bring_up_as(&mut self, mut link: LinkMessage, name: &str) -> Result<(), LinkError> {
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(link), CHANGE, || {
            format!("bring {name} up")
        })
    }

    /// Opens a socket in the network namespace `netns`.
    pub(super) fn inside(netns: BorrowedFd<'_>) -> Result<Self, LinkError> {
        within(netns, Self::new)
    }
}

/// Does something in the network namespace `netns`. The calling thread is inside for as long as that takes.
fn within<T>(netns: BorrowedFd<'_>, act: impl FnOnce() -> Result<T, LinkError>) -> Result<T, LinkError> {
    let own = File::open("/proc/thread-self/ns/net").map_err(LinkError::Namespace)?;
    enter(netns).map_err(LinkError::Namespace)?;
    let done = act();
    if let Err(error) = enter(own.as_fd()) {
        tracing::error!(%error, "cannot leave the pod's network namespace");
        // What would be taken back from here on is the pod's, not the node's. The next call takes back what is there.
        process::abort();
    }
    done
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(
        netns,
        Some(LinkNameSpaceType::Network),
    )?)
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
