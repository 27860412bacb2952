//! Routes by which packets leave the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteType},
};

use super::{Kind, Link, LinkError, Netlink, family, hops::whole, inspect::ip};

/// A route that leads out of the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WayOut {
    /// Its destinations.
    pub to: IpNet,
    /// Name of the interface it leaves by.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
}

/// A next hop of a route.
struct Hop {
    ifindex: u32,
    has_gateway: bool,
}

impl Netlink {
    /// The unicast routes of both families, of any table, by which packets leave the node by another interface than
    /// `uplink`. Whether a rule leads to the table is not asked. What is attached to the node itself, pods and other
    /// containers, is not outside.
    pub fn ways_past(&mut self, uplink: Option<u32>) -> Result<Vec<WayOut>, LinkError> {
        let links = self.links()?;
        let mut ways = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for (to, message) in in_use(&self.route_messages(family)?) {
                for hop in hops(message) {
                    let link = links.iter().find(|link| link.index == hop.ifindex);
                    let link = link.filter(|link| uplink != Some(link.index) && hop.leaves(link, &links));
                    ways.extend(link.map(|link| WayOut {
                        to,
                        interface: link.name.clone(),
                        ifindex: link.index,
                    }));
                }
            }
        }
        Ok(ways.into_iter().collect())
    }

    /// Index of the interface by which the kernel would send on what comes in by `from`; `None` if it would not, or
    /// delivers it itself.
    pub fn exit(&mut self, source: IpAddr, to: IpAddr, from: u32) -> Option<u32> {
        let mut asked = RouteMessage::default();
        asked.header.address_family = family(to);
        asked.header.destination_prefix_length = whole(to).prefix_len();
        asked.header.source_prefix_length = whole(source).prefix_len();
        asked.attributes = vec![
            RouteAttribute::Destination(to.into()),
            RouteAttribute::Source(source.into()),
            RouteAttribute::Iif(from),
        ];
        let routes: Vec<RouteMessage> = self.socket.ask(RouteNetlinkMessage::GetRoute(asked), 0).ok()?;
        let route = routes
            .first()
            .filter(|route| route.header.kind == RouteType::Unicast)?;
        hop(&route.attributes, None).map(|hop| hop.ifindex)
    }
}

impl Hop {
    /// Whether packets to it leave the node: a router is outside, and a subnet is unless only what is of the node is on it.
    fn leaves(&self, link: &Link, links: &[Link]) -> bool {
        if link.name == "lo" || link.name.starts_with("azv") {
            return false;
        }
        let has_port_outside = || {
            let mut ports = links.iter().filter(|port| port.master == Some(link.index));
            ports.any(|port| port.kind == Kind::Other)
        };
        self.has_gateway
            || match link.kind {
                Kind::Veth | Kind::Dummy => false,
                Kind::Bridge => has_port_outside(),
                Kind::Tun | Kind::Other => true,
            }
    }
}

/// The routes that forward, with their destinations: of a table's to one destination those of the least metric.
fn in_use(messages: &[RouteMessage]) -> Vec<(IpNet, &RouteMessage)> {
    let routed = |message| destination(message).filter(is_routed).map(|to| (to, message));
    let all: Vec<(IpNet, &RouteMessage)> = messages.iter().filter_map(routed).collect();
    let mut least: BTreeMap<(u32, IpNet), u32> = BTreeMap::new();
    for (to, message) in &all {
        let metric = metric(message);
        let known = least.entry((table(message), *to)).or_insert(metric);
        *known = metric.min(*known);
    }
    let is_least =
        |(to, message): &(IpNet, &RouteMessage)| least.get(&(table(message), *to)) == Some(&metric(message));
    all.into_iter().filter(is_least).collect()
}

fn metric(message: &RouteMessage) -> u32 {
    let given = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    given.unwrap_or_default()
}

/// A number above 255 has no room in the header.
fn table(message: &RouteMessage) -> u32 {
    let given = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    given.unwrap_or_else(|| message.header.table.into())
}

/// `None` of a route that does not forward.
fn destination(message: &RouteMessage) -> Option<IpNet> {
    let header = &message.header;
    if header.table == libc::RT_TABLE_LOCAL || header.kind != RouteType::Unicast {
        return None;
    }
    let given = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(ip(address)),
        _ => None,
    });
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new(
        given.unwrap_or(Some(unspecified))?,
        header.destination_prefix_length,
    )
    .ok()
}

/// Routers do not forward what is for the link alone (RFC 4291 section 2.5.6).
fn is_routed(to: &IpNet) -> bool {
    match to {
        IpNet::V4(_) => true,
        IpNet::V6(to) => !to.addr().is_unicast_link_local(),
    }
}

fn hops(message: &RouteMessage) -> Vec<Hop> {
    let of_many = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let Some(hops) = of_many else {
        return hop(&message.attributes, None).into_iter().collect();
    };
    let each = hops
        .iter()
        .filter_map(|next| hop(&next.attributes, Some(next.interface_index)));
    each.collect()
}

fn hop(attributes: &[RouteAttribute], mut ifindex: Option<u32>) -> Option<Hop> {
    let mut has_gateway = false;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => has_gateway = true,
            _ => {}
        }
    }
    Some(Hop {
        ifindex: ifindex?,
        has_gateway,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Kind, master: Option<u32>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: None,
            mtu: 1500,
            is_up: true,
            is_operational: true,
            kind,
            master,
        }
    }

    #[test]
    fn what_is_behind_a_router_or_a_card_is_outside() {
        let links = [
            link(2, "eth1", Kind::Other, None),
            link(3, "docker0", Kind::Bridge, None),
            link(4, "veth1", Kind::Veth, Some(3)),
            link(5, "br0", Kind::Bridge, None),
            link(6, "eth2", Kind::Other, Some(5)),
            link(7, "azv0123", Kind::Veth, None),
            link(1, "lo", Kind::Other, None),
            link(8, "wg0", Kind::Other, None),
            link(9, "virbr0", Kind::Bridge, None),
            link(10, "vnet0", Kind::Tun, Some(9)),
            link(11, "tun0", Kind::Tun, None),
        ];
        let leaves = |index: u32, has_gateway: bool| {
            let link = links.iter().find(|link| link.index == index).unwrap();
            let hop = Hop {
                ifindex: index,
                has_gateway,
            };
            hop.leaves(link, &links)
        };
        for (index, on_link, routed) in [
            (2, true, true),
            (3, false, true),
            (4, false, true),
            (5, true, true),
            (7, false, false),
            (1, false, false),
            (8, true, true),
            (9, false, true),
            (11, true, true),
        ] {
            assert_eq!(
                (leaves(index, false), leaves(index, true)),
                (on_link, routed),
                "{index}"
            );
        }
    }

    #[test]
    fn a_route_that_another_one_goes_before_is_not_used() {
        let route = |length: u8, table: u32, metric: Option<u32>, ifindex: u32| {
            let mut message = RouteMessage::default();
            message.header.address_family = AddressFamily::Inet;
            message.header.kind = RouteType::Unicast;
            message.header.destination_prefix_length = length;
            message.attributes.push(RouteAttribute::Table(table));
            message.attributes.push(RouteAttribute::Oif(ifindex));
            message.attributes.extend(metric.map(RouteAttribute::Priority));
            message
        };
        let routes = [
            route(0, 254, Some(100), 2),
            route(0, 254, Some(200), 3),
            route(0, 300, Some(200), 4),
            route(1, 254, None, 5),
            route(1, 254, Some(1), 6),
        ];
        let used = in_use(&routes);
        let exits: Vec<u32> = used
            .iter()
            .flat_map(|(_, message)| hops(message))
            .map(|hop| hop.ifindex)
            .collect();
        assert_eq!(exits, [2, 4, 5]);
    }
}
