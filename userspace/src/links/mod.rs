//! Interfaces, addresses, routes and neighbours, over rtnetlink. The only place that speaks netlink.
//!
//! A [`Netlink`] belongs to the network namespace in which it was made, whatever its thread does later. It runs its
//! own current-thread runtime, so callers are ordinary functions.

mod address;
mod inspect;
mod pod;
mod tc;

use std::{
    io,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

pub use address::{put_address, take_address};
use futures_util::{Stream, StreamExt as _};
pub use inspect::{Expected, inspect_pod};
pub use pod::{GATEWAY, PodLink, PodNetwork, connect_pod, disconnect_pod, random_mac};
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, State as OperState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
pub(crate) use tc::{Filter, Qdisc};
use thiserror::Error;
use tokio::runtime::Runtime;

/// A request to the kernel failed.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused, or did not answer.
    #[error("cannot {action}: {source}")]
    Refused {
        /// What was asked.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The name of the host's end is taken.
    #[error("interface {0} exists already: a pod with this name is still connected, delete it first")]
    HostInterfaceExists(String),
    /// The name of the pod's end is taken.
    #[error("the pod's namespace has an interface {0} already")]
    PodInterfaceExists(String),
    /// An interface that was just there is gone.
    #[error("interface {0} has disappeared")]
    Disappeared(String),
    /// Both ends of a veth pair are up, and the kernel does not say so.
    #[error("interface {0} does not become operational: the kernel log may tell why")]
    NotOperational(String),
    /// Deleting was asked for something that is not a veth.
    #[error("interface {0} is not a veth: it is no pod's, and is left alone")]
    NotVeth(String),
    /// The pod's namespace cannot be entered.
    #[error("cannot enter the pod's network namespace: {0}")]
    Namespace(#[source] io::Error),
}

impl LinkError {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(source) | Self::Namespace(source) | Self::Refused { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}

/// How long the worker that notes a carrier may take on a busy machine.
const OPERATIONAL_WITHIN: Duration = Duration::from_secs(5);

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC; `None` unless it is Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Whether it sends (operational state "up", RFC 2863): until the kernel has noted that the other end of a veth pair
    /// came up, it drops what it is given.
    pub is_operational: bool,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
}

/// An IPv4 address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub ifindex: u32,
    /// The address.
    pub addr: Ipv4Addr,
    /// Length of its prefix.
    pub prefix_len: u8,
    /// Whether another address of the same subnet came first.
    pub is_secondary: bool,
    /// Whether its scope is global (not host, not link).
    pub is_global: bool,
}

/// A default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Index of the interface it leaves by.
    pub ifindex: u32,
    /// The next hop.
    pub gateway: Option<Ipv4Addr>,
    /// Its metric: the least wins.
    pub metric: u32,
}

/// A netlink socket in one network namespace.
#[derive(Debug)]
pub struct Netlink {
    runtime: Runtime,
    handle: rtnetlink::Handle,
}

impl Netlink {
    /// Opens a socket in the caller's network namespace.
    pub fn new() -> Result<Self, LinkError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(LinkError::Socket)?;
        let handle = {
            let _entered = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Socket)?;
            runtime.spawn(connection);
            handle
        };
        Ok(Self { runtime, handle })
    }

    /// The interface with this name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, LinkError> {
        let request = self.handle.link().get().match_name(name.to_owned()).execute();
        self.find(request, || format!("read interface {name}"))
    }

    /// The interface with this index.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, LinkError> {
        let request = self.handle.link().get().match_index(index).execute();
        self.find(request, || format!("read interface {index}"))
    }

    /// Every interface.
    pub fn links(&mut self) -> Result<Vec<Link>, LinkError> {
        let request = self.handle.link().get().execute();
        let messages = self.collect(request, || "list interfaces".to_owned())?;
        Ok(messages.into_iter().map(link).collect())
    }

    /// Every IPv4 address.
    pub fn addresses(&mut self) -> Result<Vec<Address>, LinkError> {
        let request = self.handle.address().get().execute();
        let messages = self.collect(request, || "list addresses".to_owned())?;
        Ok(messages.iter().filter_map(address).collect())
    }

    /// The IPv4 default route of the main table with the least metric.
    pub fn default_route(&mut self) -> Result<Option<DefaultRoute>, LinkError> {
        let everything = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new().build();
        let request = self.handle.route().get(everything).execute();
        let messages = self.collect(request, || "list routes".to_owned())?;
        Ok(messages
            .iter()
            .filter_map(default_route)
            .min_by_key(|route| route.metric))
    }

    /// Waits until an interface sends.
    fn wait_until_operational(&mut self, link: &Link) -> Result<(), LinkError> {
        let end = Instant::now() + OPERATIONAL_WITHIN;
        // Linux 6.8 and later bring the state up to date before they answer; before that a worker does it in its own time.
        loop {
            match self.link_by_index(link.index)? {
                None => return Err(LinkError::Disappeared(link.name.clone())),
                Some(link) if link.is_operational => return Ok(()),
                Some(_) if Instant::now() >= end => {
                    return Err(LinkError::NotOperational(link.name.clone()));
                }
                Some(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Deletes an interface. Returns whether it was there.
    pub fn delete_link(&mut self, index: u32) -> Result<bool, LinkError> {
        let request = self.handle.link().del(index).execute();
        match self.run(request, || format!("delete interface {index}")) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn run(
        &self,
        request: impl Future<Output = Result<(), rtnetlink::Error>>,
        action: impl Fn() -> String,
    ) -> Result<(), LinkError> {
        self.runtime
            .block_on(request)
            .map_err(|error| refused(error, &action))
    }

    fn collect<T>(
        &self,
        messages: impl Stream<Item = Result<T, rtnetlink::Error>>,
        action: impl Fn() -> String,
    ) -> Result<Vec<T>, LinkError> {
        let all = async {
            messages
                .collect::<Vec<_>>()
                .await
                .into_iter()
                .collect::<Result<Vec<T>, _>>()
        };
        self.runtime
            .block_on(all)
            .map_err(|error| refused(error, &action))
    }

    fn find(
        &self,
        messages: impl Stream<Item = Result<LinkMessage, rtnetlink::Error>>,
        action: impl Fn() -> String,
    ) -> Result<Option<Link>, LinkError> {
        match self.collect(messages, action) {
            Ok(messages) => Ok(messages.into_iter().next().map(link)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn refused(error: rtnetlink::Error, action: &impl Fn() -> String) -> LinkError {
    let source = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    };
    LinkError::Refused {
        action: action(),
        source,
    }
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_operational: false,
        is_veth: false,
    };
    let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::OperState(state) => link.is_operational = state == OperState::Up,
            LinkAttribute::Address(mac) if is_ethernet => link.mac = mac.try_into().ok(),
            LinkAttribute::LinkInfo(info) => {
                link.is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            _ => {}
        }
    }
    link
}

fn address(message: &AddressMessage) -> Option<Address> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(std::net::IpAddr::V4(addr)) => Some(*addr),
        _ => None,
    })?;
    let is_secondary = message.attributes.iter().any(
        |attribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Secondary)),
    );
    Some(Address {
        ifindex: message.header.index,
        addr: local,
        prefix_len: message.header.prefix_len,
        is_secondary,
        is_global: message.header.scope == AddressScope::Universe,
    })
}

fn default_route(message: &RouteMessage) -> Option<DefaultRoute> {
    let header = &message.header;
    let is_default = header.destination_prefix_length == 0
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast;
    if !is_default {
        return None;
    }
    let mut route = DefaultRoute {
        ifindex: 0,
        gateway: None,
        metric: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.ifindex = *index,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => route.gateway = Some(*gateway),
            RouteAttribute::MultiPath(hops) => {
                route.ifindex = hops.first().map_or(0, |hop| hop.interface_index);
            }
            _ => {}
        }
    }
    (route.ifindex != 0).then_some(route)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found_by_name_and_by_index() {
        let mut netlink = Netlink::new().unwrap();
        let by_name = netlink.link("lo").unwrap().unwrap();
        assert_eq!(by_name.mac, None);
        assert!(!by_name.is_veth && by_name.mtu > 0);
        assert_eq!(
            netlink.link_by_index(by_name.index).unwrap(),
            Some(by_name.clone())
        );
        assert!(netlink.links().unwrap().contains(&by_name));
    }

    #[test]
    fn an_interface_that_is_not_there_is_none() {
        let mut netlink = Netlink::new().unwrap();
        assert_eq!(netlink.link("no-such-link").unwrap(), None);
        assert_eq!(netlink.link_by_index(0x7fff_0000).unwrap(), None);
    }

    #[test]
    fn only_a_unicast_route_of_length_zero_in_the_main_table_is_a_default_route() {
        let gateway = Ipv4Addr::new(10, 240, 0, 1);
        let message = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(7)
            .priority(100)
            .build();
        let route = DefaultRoute {
            ifindex: 7,
            gateway: Some(gateway),
            metric: 100,
        };
        assert_eq!(default_route(&message), Some(route));

        let mut narrow = message.clone();
        narrow.header.destination_prefix_length = 8;
        let mut other_table = message;
        other_table.header.table = 100;
        assert_eq!(default_route(&narrow), None);
        assert_eq!(default_route(&other_table), None);
    }
}
