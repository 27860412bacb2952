//! Addresses of the node's own interfaces, among them those that pods may have.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
};

use super::{Address, CHANGE, LinkError, NEW, Netlink, family};

/// Takes an address off an interface of the node. One that is not there is as good as taken.
pub fn take_address(if_name: &str, address: IpNet) -> Result<(), LinkError> {
    let mut netlink = Netlink::new()?;
    let Some(link) = netlink.link(if_name)? else {
        return Ok(());
    };
    let messages = netlink.address_messages(family(address.addr()))?;
    let found = messages
        .into_iter()
        .find(|message| message.header.index == link.index && own(message) == Some(address.addr()));
    let Some(found) = found else {
        return Ok(());
    };
    let request = RouteNetlinkMessage::DelAddress(found);
    match netlink.change(request, CHANGE, || format!("take {address} off {if_name}")) {
        Err(error) if error.errno() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

/// Gives an interface of the node an address back. One that is there already is as good as given.
pub fn put_address(if_name: &str, address: IpNet) -> Result<(), LinkError> {
    let mut netlink = Netlink::new()?;
    let Some(link) = netlink.link(if_name)? else {
        return Err(LinkError::Disappeared(if_name.to_owned()));
    };
    let flags = match address {
        IpNet::V4(_) => AddressFlags::empty(),
        // The subnet's route is the business of the address that came first.
        IpNet::V6(_) => AddressFlags::Noprefixroute,
    };
    let message = of_interface(link.index, address, flags);
    let request = RouteNetlinkMessage::NewAddress(message);
    match netlink.change(request, NEW, || format!("give {address} back to {if_name}")) {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// The address of an interface, with its subnet's broadcast address where the family has one. That nobody else has it is
/// known: IPv6 does not ask (RFC 4862 section 5.4), which would take a second.
pub(super) fn of_interface(index: u32, address: IpNet, flags: AddressFlags) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Local(address.addr()),
    ];
    let flags = match address {
        IpNet::V4(address) => {
            if address.prefix_len() < 31 {
                let broadcast = AddressAttribute::Broadcast(address.broadcast());
                message.attributes.push(broadcast);
            }
            flags
        }
        IpNet::V6(_) => flags | AddressFlags::Nodad,
    };
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

/// The IPv4 addresses.
pub(super) fn of_ipv4(messages: &[AddressMessage]) -> Vec<Address> {
    let addresses = of_both(messages).into_iter();
    let of_ipv4 = addresses.filter_map(|address| {
        let IpAddr::V4(addr) = address.addr else {
            return None;
        };
        Some(Address::<Ipv4Addr> {
            ifindex: address.ifindex,
            addr,
            prefix_len: address.prefix_len,
            is_secondary: address.is_secondary,
            is_global: address.is_global,
        })
    });
    of_ipv4.collect()
}

/// The addresses of both families.
pub(super) fn of_both(messages: &[AddressMessage]) -> Vec<Address<IpAddr>> {
    let leading = leading(messages);
    let addresses = messages.iter().filter_map(|message| {
        let addr = own(message)?;
        let is_secondary = match addr {
            IpAddr::V4(_) => flags(message).contains(AddressFlags::Secondary),
            IpAddr::V6(_) => {
                is_given_by_hand(message)
                    && subnet(message).and_then(|subnet| leading.get(&subnet)) != Some(&addr)
            }
        };
        Some(Address {
            ifindex: message.header.index,
            addr,
            prefix_len: message.header.prefix_len,
            is_secondary,
            is_global: message.header.scope == AddressScope::Universe,
        })
    });
    addresses.collect()
}

/// See [`Netlink::ipv6_source`].
pub(super) fn ipv6_source(messages: &[AddressMessage], ifindex: u32) -> Option<Ipv6Addr> {
    let unfit = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let leading = leading(messages);
    let fit = messages.iter().filter_map(|message| {
        let IpAddr::V6(addr) = own(message)? else {
            return None;
        };
        let is_global = message.header.scope == AddressScope::Universe;
        let is_fit = message.header.index == ifindex && is_global && !flags(message).intersects(unfit);
        let leads = subnet(message).and_then(|subnet| leading.get(&subnet)) == Some(&addr.into());
        // The kernel calls a temporary address of IPv6 what it calls a secondary one of IPv4 (`IFA_F_TEMPORARY`).
        let is_temporary = flags(message).contains(AddressFlags::Secondary);
        is_fit.then_some(((!leads, is_temporary), addr))
    });
    fit.min().map(|(_, addr)| addr)
}

/// A subnet on an interface.
type Subnet = (u32, IpNet);

/// The node's own address in each subnet of IPv6: one that the network gave, else the oldest. The kernel notes the age in
/// hundredths of a second and lists the newer of two first.
fn leading(messages: &[AddressMessage]) -> HashMap<Subnet, IpAddr> {
    let of_ipv6 = messages
        .iter()
        .rev()
        .filter(|message| own(message).is_some_and(|addr| addr.is_ipv6()));
    let mut ranked: Vec<_> = of_ipv6.collect();
    ranked.sort_by_key(|message| (is_given_by_hand(message), age(message)));
    let mut leading = HashMap::new();
    for message in ranked {
        if let (Some(subnet), Some(addr)) = (subnet(message), own(message)) {
            leading.entry(subnet).or_insert(addr);
        }
    }
    leading
}

fn subnet(message: &AddressMessage) -> Option<Subnet> {
    let net = IpNet::new(own(message)?, message.header.prefix_len).ok()?;
    Some((message.header.index, net.trunc()))
}

/// The interface's own address: IPv6 has a local one only beside the other end's.
fn own(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(addr @ IpAddr::V6(_)) => Some(*addr),
            _ => None,
        })
    })
}

/// What DHCP, SLAAC or a privacy extension gives ends.
fn is_given_by_hand(message: &AddressMessage) -> bool {
    flags(message).contains(AddressFlags::Permanent)
}

fn flags(message: &AddressMessage) -> AddressFlags {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    flags.unwrap_or(AddressFlags::empty())
}

/// When it was given: hundredths of a second since the boot.
fn age(message: &AddressMessage) -> u32 {
    let stamp = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::CacheInfo(info) => Some(info.cstamp),
        _ => None,
    });
    stamp.unwrap_or_default()
}
