//! What an interface does of its own accord in IPv6, and is not to.

use std::io;

use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute},
};

use super::{CHANGE, Link, LinkError, Netlink, at, refused};
use crate::sysctl;

/// Whether one of the addresses is of IPv6.
pub(super) fn has_ipv6(addresses: &[IpNet]) -> bool {
    addresses.iter().any(|net| net.addr().is_ipv6())
}

/// The interface listens to no router advertisement: of a pod on the host, of nobody in a pod.
pub(super) fn ignore_advertisements(interface: &str) -> Result<(), LinkError> {
    let name = format!("net/ipv6/conf/{interface}/accept_ra");
    match sysctl::write(&name, "0") {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(refused(source, || format!("set {name} to 0")))
        }
        _ => Ok(()),
    }
}

/// A runtime, or the machine's administrator, may have turned IPv6 off for every new interface. Written only where it is
/// off: the kernel spins in a write for as long as somebody else changes interfaces (`rtnl_trylock`, Linux 6.18).
pub(super) fn allow_ipv6(interface: &str) -> Result<(), LinkError> {
    let name = format!("net/ipv6/conf/{interface}/disable_ipv6");
    let allowed = match sysctl::read(&name) {
        Ok(Some(value)) if value == "0" => Ok(()),
        Ok(_) => sysctl::write(&name, "0"),
        Err(error) => Err(error),
    };
    allowed.map_err(|source| refused(source, || format!("set {name} to 0")))
}

/// The interface uses its addresses without asking whether somebody else does: nobody else is on its wire.
pub(super) fn trust_addresses(interface: &str) -> Result<(), LinkError> {
    ignore_advertisements(interface)?;
    let name = format!("net/ipv6/conf/{interface}/accept_dad");
    sysctl::write(&name, "0").map_err(|source| refused(source, || format!("set {name} to 0")))
}

impl Netlink {
    /// The interface needs no IPv6 address of its own. Not by the sysctl, which spins for as long as somebody else changes
    /// interfaces (`rtnl_trylock`, Linux 6.18).
    pub(super) fn refuse_ipv6_addresses(&mut self, link: &Link) -> Result<(), LinkError> {
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let mut message = at(link.index);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![none]));
        match self.change(RouteNetlinkMessage::SetLink(message), CHANGE, || {
            format!("keep IPv6 addresses off {}", link.name)
        }) {
            // Of a kernel without IPv6.
            Err(error) if error.errno() == Some(libc::EAFNOSUPPORT) => Ok(()),
            other => other,
        }
    }
}
