//! What a pod's connection looks like in the kernel, compared with what it should be. Reads only.

use std::{net::Ipv4Addr, os::fd::BorrowedFd};

use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use super::{GATEWAY, Link, LinkError, Netlink};

/// A pod's connection as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The pod's address with its subnet's mask.
    pub addr: Ipv4Net,
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
    let (address, name) = (expected.addr.addr(), &link.name);
    let mut wrong = Vec::new();
    if !link.is_up {
        wrong.push(format!("the host's interface {name} is down"));
    }
    let to_pod = |route: &Route| route.to == Ipv4Net::from(address) && route.ifindex == link.index;
    if !netlink.routes()?.iter().any(to_pod) {
        wrong.push(format!("the host's route {address}/32 to {name} is missing"));
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
    Ok(wrong)
}

fn inspect_inside(
    netlink: &mut Netlink,
    expected: &Expected,
    host_mac: Option<[u8; 6]>,
) -> Result<Vec<String>, LinkError> {
    let (address, name) = (expected.addr, &expected.if_name);
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
    let has_address = netlink.addresses()?.iter().any(|own| {
        own.ifindex == link.index && own.addr == address.addr() && own.prefix_len == address.prefix_len()
    });
    if !has_address {
        wrong.push(format!(
            "the pod's interface {name} has not the address {address}"
        ));
    }
    let routes = netlink.routes()?;
    let is_there = |to: Ipv4Net, gateway| {
        routes
            .iter()
            .any(|route| route.to == to && route.gateway == gateway && route.ifindex == link.index)
    };
    if !is_there(Ipv4Net::default(), Some(GATEWAY)) {
        wrong.push(format!(
            "the pod's default route via {GATEWAY} on {name} is missing"
        ));
    }
    if !is_there(GATEWAY.into(), None) {
        wrong.push(format!("the pod's route to {GATEWAY} on {name} is missing"));
    }
    match netlink.neighbour(link.index, GATEWAY)? {
        None => wrong.push(format!("the pod's neighbour {GATEWAY} on {name} is missing")),
        Some(mac) if host_mac.is_some_and(|host| host != mac) => {
            wrong.push(format!(
                "the pod's neighbour {GATEWAY} on {name} has another MAC than the host's interface"
            ));
        }
        Some(_) => {}
    }
    Ok(wrong)
}

/// An IPv4 unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Ipv4Net,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) ifindex: u32,
}

/// A neighbour whose MAC is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) ifindex: u32,
    pub(super) address: Ipv4Addr,
    pub(super) mac: [u8; 6],
    pub(super) is_permanent: bool,
}

impl Netlink {
    /// The IPv4 unicast routes of the main table that leave by one interface.
    pub(super) fn routes(&mut self) -> Result<Vec<Route>, LinkError> {
        let messages = self.route_messages()?;
        Ok(messages.iter().filter_map(route).collect())
    }

    /// Every IPv4 neighbour with a MAC.
    pub(super) fn neighbours(&mut self) -> Result<Vec<Neighbour>, LinkError> {
        let mut of_ipv4 = NeighbourMessage::default();
        of_ipv4.header.family = AddressFamily::Inet;
        let everything = RouteNetlinkMessage::GetNeighbour(of_ipv4);
        let messages = self.list(&everything, || "list neighbours".to_owned())?;
        let neighbours = messages.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => neighbour(message),
            _ => None,
        });
        Ok(neighbours.collect())
    }

    /// The MAC that is noted for a neighbour.
    fn neighbour(&mut self, ifindex: u32, address: Ipv4Addr) -> Result<Option<[u8; 6]>, LinkError> {
        let of_link = self.neighbours()?;
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
    let (mut to, mut gateway, mut ifindex) = (Ipv4Addr::UNSPECIFIED, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            _ => {}
        }
    }
    Some(Route {
        to: Ipv4Net::new(to, header.destination_prefix_length).ok()?,
        gateway,
        ifindex: ifindex?,
    })
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(*found),
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
