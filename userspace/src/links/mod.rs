//! Interfaces, addresses, routes and neighbours, over rtnetlink. The only place that speaks netlink.
//!
//! A [`Netlink`] belongs to the network namespace in which it was made, whatever its thread does later.

mod address;
mod answer;
mod hops;
mod inspect;
mod ipv6;
mod mend;
mod pod;
mod polling;
mod socket;
mod tc;
mod ways_out;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

pub use address::{put_address, take_address};
pub use hops::{GATEWAY, GATEWAY_V6};
pub use inspect::{Expected, inspect_pod};
pub use mend::HostSide;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
pub use pod::{PodLink, PodNetwork, connect_pod, disconnect_pod, random_mac};
pub(crate) use tc::{Filter, Qdisc};
use thiserror::Error;
pub use ways_out::WayOut;

use self::{answer::Answer, socket::Socket};

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
    /// What it is made of.
    pub kind: Kind,
    /// Index of the interface that it is a port of.
    pub master: Option<u32>,
}

/// What an interface is made of (`IFLA_INFO_KIND`), as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One end of a veth pair.
    Veth,
    /// A bridge of the kernel.
    Bridge,
    /// What nothing is behind.
    Dummy,
    /// What a process of the node is behind: a guest's card as a port of a bridge, or a VPN.
    Tun,
    /// Hardware, or a tunnel, or anything else that may lead out of the node.
    Other,
}

/// An address of an interface, of IPv4 where nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address<A = Ipv4Addr> {
    /// Index of the interface.
    pub ifindex: u32,
    /// The address.
    pub addr: A,
    /// Length of its prefix.
    pub prefix_len: u8,
    /// Whether another address of the same subnet came first. Of IPv6, where the kernel makes no such difference: whether
    /// it was given by hand, and another one of the same subnet before it or by the network.
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
    socket: Socket,
    memory: Option<Memory>,
}

/// What a [`Netlink::for_a_moment`] has been told.
#[derive(Debug, Default)]
struct Memory {
    links: Vec<Link>,
    /// Of both families.
    addresses: Option<Vec<AddressMessage>>,
}

/// Flags of a request that makes something, and fails if it is there already.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Flags of a request that makes something in the place of what is there.
const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;
/// Flags of a request that changes what is there, or takes it away.
const CHANGE: u16 = 0;

impl Netlink {
    /// Opens a socket in the caller's network namespace.
    pub fn new() -> Result<Self, LinkError> {
        let socket = Socket::open().map_err(LinkError::Socket)?;
        Ok(Self { socket, memory: None })
    }

    /// As [`Self::new`], for a call that asks more than once, within milliseconds, about interfaces and addresses that it does
    /// not change: what was found is not asked for again.
    pub fn for_a_moment() -> Result<Self, LinkError> {
        Ok(Self {
            memory: Some(Memory::default()),
            ..Self::new()?
        })
    }

    /// The interface with this name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, LinkError> {
        if let Some(known) = self.remembered(|link| link.name == name) {
            return Ok(Some(known));
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.find(message, || format!("read interface {name}"))
    }

    /// The interface with this index.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, LinkError> {
        if let Some(known) = self.remembered(|link| link.index == index) {
            return Ok(Some(known));
        }
        self.find(at(index), || format!("read interface {index}"))
    }

    fn remembered(&self, is_meant: impl Fn(&Link) -> bool) -> Option<Link> {
        let mut known = self.memory.iter().flat_map(|memory| &memory.links);
        known.find(|link| is_meant(link)).cloned()
    }

    /// Every interface.
    pub fn links(&mut self) -> Result<Vec<Link>, LinkError> {
        let everything = RouteNetlinkMessage::GetLink(without_counters(LinkMessage::default()));
        self.list(&everything, || "list interfaces".to_owned())
    }

    /// Every IPv4 address.
    pub fn addresses(&mut self) -> Result<Vec<Address>, LinkError> {
        let messages = self.address_messages(AddressFamily::Inet)?;
        Ok(address::of_ipv4(&messages))
    }

    /// Every address of both families. That one of IPv6 is secondary is not the kernel's word: see [`Address`].
    pub fn all_addresses(&mut self) -> Result<Vec<Address<IpAddr>>, LinkError> {
        let messages = self.address_messages(AddressFamily::Unspec)?;
        Ok(address::of_both(&messages))
    }

    /// The address of IPv6 with which the node itself would speak on an interface: a global one that is in use and not about
    /// to go, one that leads its subnet before others, a lasting one before a temporary one (RFC 8981).
    pub fn ipv6_source(&mut self, ifindex: u32) -> Result<Option<Ipv6Addr>, LinkError> {
        let messages = self.address_messages(AddressFamily::Inet6)?;
        Ok(address::ipv6_source(&messages, ifindex))
    }

    fn address_messages(&mut self, family: AddressFamily) -> Result<Vec<AddressMessage>, LinkError> {
        let known = self.memory.as_ref().and_then(|memory| memory.addresses.as_ref());
        if let Some(known) = known {
            let is_meant = |of: AddressFamily| family == AddressFamily::Unspec || of == family;
            let meant = known.iter().filter(|message| is_meant(message.header.family));
            return Ok(meant.cloned().collect());
        }
        let mut of_family = AddressMessage::default();
        of_family.header.family = family;
        let everything = RouteNetlinkMessage::GetAddress(of_family);
        let found = self.list(&everything, || "list addresses".to_owned())?;
        if let Some(memory) = self.memory.as_mut().filter(|_| family == AddressFamily::Unspec) {
            memory.addresses = Some(found.clone());
        }
        Ok(found)
    }

    /// The IPv4 default route of the main table with the least metric.
    pub fn default_route(&mut self) -> Result<Option<DefaultRoute>, LinkError> {
        let messages = self.route_messages(AddressFamily::Inet)?;
        Ok(messages
            .iter()
            .filter_map(default_route)
            .min_by_key(|route| route.metric))
    }

    fn route_messages(&mut self, family: AddressFamily) -> Result<Vec<RouteMessage>, LinkError> {
        let mut of_family = RouteMessage::default();
        of_family.header.address_family = family;
        let everything = RouteNetlinkMessage::GetRoute(of_family);
        self.list(&everything, || "list routes".to_owned())
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
        let request = RouteNetlinkMessage::DelLink(at(index));
        match self.change(request, CHANGE, || format!("delete interface {index}")) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl Fn() -> String,
    ) -> Result<(), LinkError> {
        let done = self.socket.tell(message, flags);
        done.map_err(|source| refused(source, action))
    }

    fn list<T: Answer>(
        &mut self,
        message: &RouteNetlinkMessage,
        action: impl Fn() -> String,
    ) -> Result<Vec<T>, LinkError> {
        self.socket
            .list(message)
            .map_err(|source| refused(source, action))
    }

    fn find(&mut self, message: LinkMessage, action: impl Fn() -> String) -> Result<Option<Link>, LinkError> {
        let request = RouteNetlinkMessage::GetLink(without_counters(message));
        match self.socket.get::<Link>(request) {
            Ok(link) => {
                self.memory
                    .iter_mut()
                    .for_each(|memory| memory.links.push(link.clone()));
                Ok(Some(link))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(refused(error, action)),
        }
    }
}

fn refused(source: io::Error, action: impl Fn() -> String) -> LinkError {
    LinkError::Refused {
        action: action(),
        source,
    }
}

/// A message about the interface with this index.
fn at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// The question without the interface's counters, which the kernel would sum up over all CPUs.
fn without_counters(mut question: LinkMessage) -> LinkMessage {
    let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    question.attributes.push(mask);
    question
}

/// The family of an address, as netlink has it.
fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
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
        assert!(by_name.kind == Kind::Other && by_name.mtu > 0);
        assert_eq!(
            netlink.link_by_index(by_name.index).unwrap(),
            Some(by_name.clone())
        );
        assert!(netlink.links().unwrap().contains(&by_name));
    }

    #[test]
    fn for_a_moment_nothing_is_asked_twice() {
        let (mut anew, mut once) = (Netlink::new().unwrap(), Netlink::for_a_moment().unwrap());
        for _ in 0..2 {
            assert_eq!(once.link("lo").unwrap(), anew.link("lo").unwrap());
            assert_eq!(once.link_by_index(1).unwrap(), anew.link_by_index(1).unwrap());
            assert_eq!(once.all_addresses().unwrap(), anew.all_addresses().unwrap());
            assert_eq!(once.addresses().unwrap(), anew.addresses().unwrap());
        }
        assert_eq!(once.socket.requests(), 2);
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
        let mut message = RouteMessage::default();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
            RouteAttribute::Oif(7),
            RouteAttribute::Priority(100),
        ];
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
