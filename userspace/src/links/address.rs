//! Addresses of the node's own interfaces that pods may have.

use std::net::IpAddr;

use ipnet::Ipv4Net;

use super::{LinkError, Netlink};

/// Takes an address off an interface of the node. One that is not there is as good as taken.
pub fn take_address(if_name: &str, address: Ipv4Net) -> Result<(), LinkError> {
    let mut netlink = Netlink::new()?;
    let Some(link) = netlink.link(if_name)? else {
        return Ok(());
    };
    let request = netlink
        .handle
        .address()
        .get()
        .set_link_index_filter(link.index)
        .execute();
    let messages = netlink.collect(request, || format!("list addresses of {if_name}"))?;
    let found = messages.into_iter().find(|message| {
        super::address(message).is_some_and(|own| own.ifindex == link.index && own.addr == address.addr())
    });
    let Some(found) = found else {
        return Ok(());
    };
    let request = netlink.handle.address().del(found).execute();
    match netlink.run(request, || format!("take {address} off {if_name}")) {
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
    let request = netlink
        .handle
        .address()
        .add(link.index, IpAddr::V4(address.addr()), address.prefix_len())
        .execute();
    match netlink.run(request, || format!("give {address} back to {if_name}")) {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}
