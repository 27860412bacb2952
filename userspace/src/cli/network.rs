//! What the kernel has of routes, neighbours, filters and XDP, over rtnetlink: what the library does not ask for because no
//! datapath needs it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::{Stream, StreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    link::{LinkAttribute, LinkMessage, LinkXdp},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
    tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};
use rtnetlink::{Handle, RouteMessageBuilder};

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: IpNet,
    pub(crate) ifindex: u32,
}

/// A neighbour whose MAC is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) addr: IpAddr,
    pub(crate) ifindex: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) is_permanent: bool,
}

/// A filter at a clsact hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) ifindex: u32,
    pub(crate) egress: bool,
    pub(crate) priority: u16,
    /// `bpf`, `u32`, …
    pub(crate) kind: String,
    /// Of a BPF filter.
    pub(crate) program_id: Option<u32>,
}

/// The network as it is at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<Neighbour>,
    pub(crate) filters: Vec<Filter>,
    /// Interfaces with an XDP program, and its id.
    pub(crate) xdp: Vec<(u32, u32)>,
}

/// Reads the routes and neighbours of IPv4, of IPv6 as well if it is asked for, and the filters of these interfaces, in the
/// caller's network namespace.
pub(crate) fn read(interfaces: &[u32], with_ipv6: bool) -> io::Result<Network> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let mut network = Network {
            routes: routes(&handle, RouteMessageBuilder::<Ipv4Addr>::new().build()).await?,
            neighbours: neighbours(&handle, AddressFamily::Inet).await?,
            filters: Vec::new(),
            xdp: xdp(&handle).await?,
        };
        if with_ipv6 {
            let of_ipv6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
            network.routes.extend(routes(&handle, of_ipv6).await?);
            let of_ipv6 = neighbours(&handle, AddressFamily::Inet6).await?;
            network.neighbours.extend(of_ipv6);
        }
        for &ifindex in interfaces {
            for egress in [false, true] {
                network.filters.extend(filters(&handle, ifindex, egress).await);
            }
        }
        Ok(network)
    })
}

async fn xdp(handle: &Handle) -> io::Result<Vec<(u32, u32)>> {
    let messages = collect(handle.link().get().execute()).await?;
    let program = |message: &LinkMessage| {
        let attributes = message.attributes.iter();
        let mut options = attributes.filter_map(|attribute| match attribute {
            LinkAttribute::Xdp(options) => Some(options.iter()),
            _ => None,
        });
        options.find_map(|mut options| {
            options.find_map(|option| match option {
                LinkXdp::ProgId(id) => Some((message.header.index, *id)),
                _ => None,
            })
        })
    };
    Ok(messages.iter().filter_map(program).collect())
}

async fn routes(handle: &Handle, of_family: RouteMessage) -> io::Result<Vec<Route>> {
    let messages = collect(handle.route().get(of_family).execute()).await?;
    Ok(messages.iter().filter_map(route).collect())
}

async fn neighbours(handle: &Handle, family: AddressFamily) -> io::Result<Vec<Neighbour>> {
    let request = handle.neighbours().get().set_address_family(family);
    let messages = collect(request.execute()).await?;
    Ok(messages.iter().filter_map(neighbour).collect())
}

/// An interface without such a qdisc, or that has just gone, has none.
async fn filters(handle: &Handle, ifindex: u32, egress: bool) -> Vec<Filter> {
    let request = handle.traffic_filter(ifindex.cast_signed()).get();
    let request = if egress {
        request.egress()
    } else {
        request.ingress()
    };
    let messages = collect(request.execute()).await.unwrap_or_default();
    messages
        .iter()
        .filter_map(|message| filter(message, ifindex, egress))
        .collect()
}

async fn collect<T>(stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> io::Result<Vec<T>> {
    let items: Vec<_> = stream.collect().await;
    items
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(io::Error::other)
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
    let (mut to, mut ifindex) = (unspecified, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = (*address).into(),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            _ => {}
        }
    }
    Some(Route {
        to: IpNet::new(to, header.destination_prefix_length).ok()?,
        ifindex: ifindex?,
    })
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut addr, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => addr = Some((*found).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => addr = Some((*found).into()),
            NeighbourAttribute::LinkLayerAddress(found) => mac = found.clone().try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour {
        addr: addr?,
        ifindex: message.header.ifindex,
        mac: mac?,
        is_permanent: message.header.state == NeighbourState::Permanent,
    })
}

fn filter(message: &TcMessage, ifindex: u32, egress: bool) -> Option<Filter> {
    // The dump holds a message for each filter and one, with handle 0, for each priority that has filters.
    if u32::from(message.header.handle) == 0 {
        return None;
    }
    let mut filter = Filter {
        ifindex,
        egress,
        priority: (message.header.info >> 16) as u16,
        kind: String::new(),
        program_id: None,
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => filter.kind.clone_from(kind),
            TcAttribute::Options(options) => {
                filter.program_id = options.iter().find_map(|option| match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(filter)
}
