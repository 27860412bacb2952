//! Addresses of the node's own interfaces that pods may have.

use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
};

use super::{CHANGE, LinkError, NEW, Netlink};

/// Takes an address off an interface of the node. One that is not there is as good as taken.
pub fn take_address(if_name: &str, address: Ipv4Net) -> Result<(), LinkError> {
    let mut netlink = Netlink::new()?;
    let Some(link) = netlink.link(if_name)? else {
        return Ok(());
    };
    let messages = netlink.address_messages()?;
    let found = messages.into_iter().find(|message| {
        super::address(message).is_some_and(|own| own.ifindex == link.index && own.addr == address.addr())
    });
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
pub fn put_address(if_name: &str, address: Ipv4Net) -> Result<(), LinkError> {
    let mut netlink = Netlink::new()?;
    let Some(link) = netlink.link(if_name)? else {
        return Err(LinkError::Disappeared(if_name.to_owned()));
    };
    let request = RouteNetlinkMessage::NewAddress(of_interface(link.index, address));
    match netlink.change(request, NEW, || format!("give {address} back to {if_name}")) {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// The address of an interface, with its subnet's broadcast address.
pub(super) fn of_interface(index: u32, address: Ipv4Net) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Address(address.addr().into()),
        AddressAttribute::Local(address.addr().into()),
    ];
    if address.prefix_len() < 31 {
        message
            .attributes
            .push(AddressAttribute::Broadcast(address.broadcast()));
    }
    message
}
