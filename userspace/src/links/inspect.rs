//! What a pod's connection looks like in the kernel, compared with what it should be. Reads only.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::BorrowedFd,
};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use super::{
    Link, LinkError, Netlink, family,
    hops::{families, gateway, whole},
};

/// A pod's connection as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The pod's addresses with their subnets' masks.
    pub addresses: Vec<IpNet>,
    /// Name of the interface in the pod.
    pub if_name: String,
    /// Its MAC; `None` if any will do.
    pub mac: Option<[u8; 6]>,
    /// Name of the host's end.
    pub host_if: String,
}

/// Compares a pod's connection with what it should be. Returns both ends as the kernel has them and what is wrong,
/// each item by its name. What others have added is not wrong.
pub fn inspect_pod(
    netns: BorrowedFd<'_>,
    expected: &Expected,
) -> Result<(Option<Link>, Vec<String>), LinkError> {
    let mut netlink = Netlink::new()?;
    let mut wrong = Vec::new();
    let host = netlink.link(&expected.host_if)?;
    match &host {
        None => wrong.push(format!("the host's interface {} is missing", expected.host_if)),
        Some(link) => wrong.extend(inspect_host(&mut netlink, link, expected)?),
    }
    let host_mac = host.as_ref().and_then(|link| link.mac);
    wrong.extend(inspect_inside(&mut Netlink::inside(netns)?, expected, host_mac)?);
    Ok((host, wrong))
}

fn inspect_host(netlink: &mut Netlink, link: &Link, expected: &Expected) -> Result<Vec<String>, LinkError> {
    let name = &link.name;
    let mut wrong = Vec::new();
    if !link.is_up {
        wrong.push(format!("the host's interface {name} is down"));
    }
    for address in expected.addresses.iter().map(IpNet::addr) {
        let to = whole(address);
        let to_pod = |route: &Route| route.to == to && route.ifindex == link.index;
        if !netlink.routes(family(address))?.iter().any(to_pod) {
            wrong.push(format!("the host's route {to} to {name} is missing"));
        }
        match (netlink.neighbour(link.index, address)?, expected.mac) {
            (None, _) => wrong.push(format!("the host's neighbour {address} on {name} is missing")),
            (Some(mac), Some(expected)) if mac != expected => {
                wrong.push(format!(
                    "the host's neighbour {address} on {name} has another MAC than the pod"
                ));
            }
            _ => {}
        }
    }
    Ok(wrong)
}

fn inspect_inside(
    netlink: &mut Netlink,
    expected: &Expected,
    host_mac: Option<[u8; 6]>,
) -> Result<Vec<String>, LinkError> {
    let name = &expected.if_name;
    let Some(link) = netlink.link(name)? else {
        return Ok(vec![format!("the pod's interface {name} is missing")]);
    };
    let mut wrong = Vec::new();
    if !link.is_up {
        wrong.push(format!("the pod's interface {name} is down"));
    }
    if expected.mac.is_some() && link.mac != expected.mac {
        wrong.push(format!("the pod's interface {name} has another MAC"));
    }
    let addresses = netlink.all_addresses()?;
    for address in &expected.addresses {
        let has_address = addresses.iter().any(|own| {
            own.ifindex == link.index && own.addr == address.addr() && own.prefix_len == address.prefix_len()
        });
        if !has_address {
            wrong.push(format!(
                "the pod's interface {name} has not the address {address}"
            ));
        }
    }
    for gateway in families(&expected.addresses).map(gateway) {
        wrong.extend(inspect_way_out(netlink, &link, gateway, host_mac)?);
    }
    Ok(wrong)
}

/// What a pod needs to send beyond its link, in the family of `gateway`.
fn inspect_way_out(
    netlink: &mut Netlink,
    link: &Link,
    gateway: IpAddr,
    host_mac: Option<[u8; 6]>,
) -> Result<Vec<String>, LinkError> {
    let (name, mut wrong) = (&link.name, Vec::new());
    let routes = netlink.routes(family(gateway))?;
    let is_there = |to: IpNet, gateway| {
        routes
            .iter()
            .any(|route| route.to == to && route.gateway == gateway && route.ifindex == link.index)
    };
    if !is_there(everywhere(gateway), Some(gateway)) {
        wrong.push(format!(
            "the pod's default route via {gateway} on {name} is missing"
        ));
    }
    if !is_there(whole(gateway), None) {
        wrong.push(format!("the pod's route to {gateway} on {name} is missing"));
    }
    match netlink.neighbour(link.index, gateway)? {
        None => wrong.push(format!("the pod's neighbour {gateway} on {name} is missing")),
        Some(mac) if host_mac.is_some_and(|host| host != mac) => {
            wrong.push(format!(
                "the pod's neighbour {gateway} on {name} has another MAC than the host's interface"
            ));
        }
        Some(_) => {}
    }
    Ok(wrong)
}

/// All addresses of the family of `address`.
fn everywhere(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: IpNet,
    pub(super) gateway: Option<IpAddr>,
    pub(super) ifindex: u32,
}

/// A neighbour whose MAC is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
    pub(super) mac: [u8; 6],
    pub(super) is_permanent: bool,
}

impl Netlink {
    /// The family's unicast routes of the main table that leave by one interface.
    pub(super) fn routes(&mut self, family: AddressFamily) -> Result<Vec<Route>, LinkError> {
        let messages = self.route_messages(family)?;
        Ok(messages.iter().filter_map(route).collect())
    }

    /// Every neighbour of the family with a MAC.
    pub(super) fn neighbours(&mut self, family: AddressFamily) -> Result<Vec<Neighbour>, LinkError> {
        let mut of_family = NeighbourMessage::default();
        of_family.header.family = family;
        let everything = RouteNetlinkMessage::GetNeighbour(of_family);
        let messages: Vec<NeighbourMessage> = self.list(&everything, || "list neighbours".to_owned())?;
        Ok(messages.iter().filter_map(neighbour).collect())
    }

    /// The MAC that is noted for a neighbour.
    fn neighbour(&mut self, ifindex: u32, address: IpAddr) -> Result<Option<[u8; 6]>, LinkError> {
        let of_link = self.neighbours(family(address))?;
        let found = of_link
            .into_iter()
            .find(|neighbour| neighbour.ifindex == ifindex && neighbour.address == address);
        Ok(found.map(|neighbour| neighbour.mac))
    }
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (mut to, mut gateway, mut ifindex) = (unspecified, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            _ => {}
        }
    }
    Some(Route {
        to: IpNet::new(to, header.destination_prefix_length).ok()?,
        gateway,
        ifindex: ifindex?,
    })
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::V4(*found));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some(IpAddr::V6(*found));
            }
            NeighbourAttribute::LinkLayerAddress(found) => mac = found.clone().try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour {
        ifindex: message.header.ifindex,
        address: address?,
        mac: mac?,
        is_permanent: message.header.state == NeighbourState::Permanent,
    })
}
