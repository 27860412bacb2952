//! The host's side of pods' connections, looked at all at once and put right one by one.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;

use super::{
    Link, LinkError, Netlink, hops,
    inspect::{Neighbour, Route},
    pod,
};

/// The host's side as it was at one moment.
#[derive(Debug)]
pub struct HostSide {
    /// Every interface.
    pub links: Vec<Link>,
    /// Places in `links`.
    names: HashMap<String, usize>,
    routes: HashSet<(IpNet, u32)>,
    /// Those that are permanent: MAC by interface and address.
    neighbours: HashMap<(u32, IpAddr), [u8; 6]>,
}

impl HostSide {
    /// Asks the kernel.
    pub fn read(netlink: &mut Netlink) -> Result<Self, LinkError> {
        let links = netlink.links()?;
        let names = links.iter().enumerate();
        // Of both families.
        let routes = netlink.routes(AddressFamily::Unspec)?.into_iter();
        let neighbours = netlink.neighbours(AddressFamily::Unspec)?.into_iter();
        Ok(Self {
            names: names.map(|(place, link)| (link.name.clone(), place)).collect(),
            routes: routes.map(|Route { to, ifindex, .. }| (to, ifindex)).collect(),
            neighbours: neighbours
                .filter(|neighbour| neighbour.is_permanent)
                .map(
                    |Neighbour {
                         ifindex,
                         address,
                         mac,
                         ..
                     }| ((ifindex, address), mac),
                )
                .collect(),
            links,
        })
    }

    /// The interface with this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.get(*self.names.get(name)?)
    }

    /// What is wrong on the host with the connection of the pod behind `link`, each item by its name.
    pub fn wrong_with(&self, link: &Link, addresses: &[IpNet], mac: [u8; 6]) -> Vec<String> {
        let mut wrong = Vec::new();
        if !link.is_up {
            wrong.push(format!("interface {} was down", link.name));
        }
        for address in addresses.iter().map(IpNet::addr) {
            let to = hops::whole(address);
            if !self.routes.contains(&(to, link.index)) {
                wrong.push(format!("route {to} to {} was missing", link.name));
            }
            if self.neighbours.get(&(link.index, address)) != Some(&mac) {
                wrong.push(format!("neighbour {address} on {} was missing", link.name));
            }
        }
        wrong
    }
}

impl Netlink {
    /// Sets up the host's end of a pod's connection, as for a new one. What is right stays as it is.
    pub fn mend_host(&mut self, link: &Link, addresses: &[IpNet], mac: [u8; 6]) -> Result<(), LinkError> {
        pod::set_up_host(self, link, addresses, mac)
    }
}
