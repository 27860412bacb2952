//! The host's side of pods' connections, looked at all at once and put right one by one.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    Link, LinkError, Netlink,
    inspect::{Neighbour, Route},
    pod,
};

/// The host's side as it was at one moment.
#[derive(Debug)]
pub struct HostSide {
    /// Every interface.
    pub links: Vec<Link>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

impl HostSide {
    /// Asks the kernel.
    pub fn read(netlink: &mut Netlink) -> Result<Self, LinkError> {
        Ok(Self {
            links: netlink.links()?,
            routes: netlink.routes()?,
            neighbours: netlink.neighbours()?,
        })
    }

    /// The interface with this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// What is wrong on the host with the connection of the pod behind `link`, each item by its name.
    pub fn wrong_with(&self, link: &Link, address: Ipv4Addr, mac: [u8; 6]) -> Vec<String> {
        let mut wrong = Vec::new();
        if !link.is_up {
            wrong.push(format!("interface {} was down", link.name));
        }
        let to = Ipv4Net::from(address);
        if !self
            .routes
            .iter()
            .any(|route| route.to == to && route.ifindex == link.index)
        {
            wrong.push(format!("route {to} to {} was missing", link.name));
        }
        let known = self
            .neighbours
            .iter()
            .find(|known| known.ifindex == link.index && known.address == address);
        if known.is_none_or(|known| known.mac != mac || !known.is_permanent) {
            wrong.push(format!("neighbour {address} on {} was missing", link.name));
        }
        wrong
    }
}

impl Netlink {
    /// Sets up the host's end of a pod's connection, as for a new one. What is right stays as it is.
    pub fn mend_host(&mut self, link: &Link, address: Ipv4Addr, mac: [u8; 6]) -> Result<(), LinkError> {
        pod::set_up_host(self, link, address, mac)
    }
}
