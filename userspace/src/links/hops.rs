//! The hops between a pod and its host: gateways, routes and neighbours, of either family.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{Kind, Link, LinkError, NEW, Netlink, OPERATIONAL_WITHIN, REPLACE, family, refused};

/// The next hop of every pod. Link-local and never on the wire (RFC 3927): the veth's host end answers for it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6, the incumbent's. Link-local as well.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x1234, 0x5678, 0x9abc);

/// One address of each family that is among these.
pub(super) fn families(addresses: &[IpNet]) -> impl Iterator<Item = IpAddr> {
    let first = |is_ipv4: bool| {
        let mut all = addresses.iter().map(IpNet::addr);
        all.find(|address| address.is_ipv4() == is_ipv4)
    };
    [first(true), first(false)].into_iter().flatten()
}

/// The next hop of a pod in the family of `address`.
pub(super) fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

/// The address alone, as a network.
pub(super) fn whole(address: IpAddr) -> IpNet {
    address.into()
}

/// Metric of the second interface's routes in the main table, to which its index is added: they serve once the first
/// interface is gone.
///
/// Above the 1024 that IPv6 gives a route without one (`IP6_RT_PRIO_USER`, Linux 6.18).
const LATER_METRIC: u32 = 2000;
/// Table of a further interface's own routes, to which its index is added: above the kernel's own and the usual ones.
const LATER_TABLE: u32 = 1_000_000;

impl Netlink {
    /// The routes of the pod's family of `gateway`, in the main table and, of a further interface, in its own.
    pub(super) fn lead_out(
        &mut self,
        link: &Link,
        gateway: IpAddr,
        addresses: &[IpNet],
    ) -> Result<(), LinkError> {
        let routes = self.routes(family(gateway))?;
        let has_default = routes.iter().any(|route| route.to.prefix_len() == 0);
        let rank = has_default.then_some(link.index);
        if let Some(table) = rank {
            let addresses = addresses.iter().map(IpNet::addr);
            for address in addresses.filter(|address| address.is_ipv4() == gateway.is_ipv4()) {
                self.route_from(address, table)?;
            }
        }
        for table in std::iter::once(None).chain(rank.map(Some)) {
            for is_default in [false, true] {
                self.route_out(link, (gateway, is_default), table, rank)?;
            }
        }
        Ok(())
    }

    /// The default route by the gateway, or the route to the gateway itself. `rank` is that of a further interface, `table`
    /// whether it is for the table that only packets with its address look into.
    fn route_out(
        &mut self,
        link: &Link,
        (gateway, is_default): (IpAddr, bool),
        table: Option<u32>,
        rank: Option<u32>,
    ) -> Result<(), LinkError> {
        let mut route = if is_default {
            let mut route = route_out_of(link, gateway);
            route.attributes.push(RouteAttribute::Gateway(gateway.into()));
            route
        } else {
            route_to(link, gateway)
        };
        if let Some(table) = table {
            // With the attribute the header's field, too small for it, does not count.
            route.header.table = RouteHeader::RT_TABLE_UNSPEC;
            route.attributes.push(RouteAttribute::Table(LATER_TABLE + table));
        } else if let Some(rank) = rank {
            route
                .attributes
                .push(RouteAttribute::Priority(LATER_METRIC + rank));
        }
        let what = if is_default {
            "the default route"
        } else {
            "the route to the gateway"
        };
        self.change(RouteNetlinkMessage::NewRoute(route), NEW, || {
            format!("add {what} in the pod")
        })
    }

    /// Packets with the address of a further interface leave by it: on the first one they would be a stranger's.
    fn route_from(&mut self, address: IpAddr, table: u32) -> Result<(), LinkError> {
        let mut rule = RuleMessage::default();
        rule.header.family = family(address);
        rule.header.src_len = whole(address).prefix_len();
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::Source(address),
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

    pub(super) fn set_neighbour(&mut self, link: &Link, addr: IpAddr, mac: [u8; 6]) -> Result<(), LinkError> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = family(addr);
        neighbour.header.ifindex = link.index;
        neighbour.header.state = NeighbourState::Permanent;
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(addr.into()),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.change(RouteNetlinkMessage::NewNeighbour(neighbour), REPLACE, || {
            format!("set the neighbour {addr} on {}", link.name)
        })
    }

    /// Waits until packets to the addresses of IPv6 are delivered: a worker of the kernel enters their local routes
    /// (`addrconf_dad_work`), also when there is nothing to detect.
    pub(super) fn wait_until_usable(&mut self, addresses: &[IpNet], link: &Link) -> Result<(), LinkError> {
        let end = Instant::now() + OPERATIONAL_WITHIN;
        for address in addresses.iter().map(IpNet::addr).filter(IpAddr::is_ipv6) {
            while !self.delivers(address)? {
                if Instant::now() >= end {
                    return Err(LinkError::NotOperational(link.name.clone()));
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Whether packets to the address leave by the host's end of a pod's connection.
    pub fn leads_to_pod(&mut self, address: IpAddr) -> Result<bool, LinkError> {
        let route = self.route_for(address)?;
        let attributes = route.into_iter().flat_map(|route| route.attributes);
        let index = attributes.into_iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(index),
            _ => None,
        });
        let Some(index) = index else {
            return Ok(false);
        };
        let link = self.link_by_index(index)?;
        Ok(link.is_some_and(|link| link.kind == Kind::Veth && link.name.starts_with("azv")))
    }

    /// Whether the kernel takes packets to the address for its own.
    fn delivers(&mut self, address: IpAddr) -> Result<bool, LinkError> {
        Ok(self
            .route_for(address)?
            .is_some_and(|route| route.header.kind == RouteType::Local))
    }

    /// The route that a packet to the address takes; `None` where there is none.
    fn route_for(&mut self, address: IpAddr) -> Result<Option<RouteMessage>, LinkError> {
        let mut asked = RouteMessage::default();
        asked.header.address_family = family(address);
        asked.header.destination_prefix_length = whole(address).prefix_len();
        asked.attributes.push(RouteAttribute::Destination(address.into()));
        match self.socket.get(RouteNetlinkMessage::GetRoute(asked)) {
            Ok(route) => Ok(Some(route)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
                Ok(None)
            }
            Err(error) => Err(refused(error, || format!("look up the route to {address}"))),
        }
    }
}

/// A unicast route of the main table by an interface, to everywhere in the family of `address`.
fn route_out_of(link: &Link, address: IpAddr) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family(address);
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Unicast;
    route.attributes.push(RouteAttribute::Oif(link.index));
    route
}

/// A route to a single address on the interface's own wire.
pub(super) fn route_to(link: &Link, address: IpAddr) -> RouteMessage {
    let mut route = route_out_of(link, address);
    route.header.scope = RouteScope::Link;
    route.header.destination_prefix_length = whole(address).prefix_len();
    route.attributes.push(RouteAttribute::Destination(address.into()));
    route
}
