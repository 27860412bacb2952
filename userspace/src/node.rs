//! What the node is: its uplink, how long it remembers flows, which ports it keeps for itself, and that it forwards.

use std::{fs, io, net::Ipv4Addr, ops::RangeInclusive, path::PathBuf};

use causeway_common::lifetime::Timeouts;
use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use crate::{
    links::{Address, Link, LinkError, Netlink},
    restore::{Restore, RestoreError},
    root::Root,
    sysctl,
};

/// The interface through which the node reaches everything that is not a pod of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC, the only source MAC that the Azure fabric accepts from it.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its primary address: the new source of masqueraded packets.
    pub addr: Ipv4Addr,
    /// Length of the primary address's prefix.
    pub prefix_len: u8,
}

/// Why the node could not be read or set up.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The configured master does not exist.
    #[error("no interface is named {0:?}: correct \"master\" in the network configuration")]
    NoSuchInterface(String),
    /// No interface qualifies.
    #[error(
        "no uplink: {}; name the interface as \"master\" in the network configuration",
        missing_uplink(.0.as_ref())
    )]
    NoUplink(Option<IpNet>),
    /// The interface has no IPv4 address that could replace the pods'.
    #[error("interface {0} has no global IPv4 address: masqueraded packets would have no source address")]
    NoAddress(String),
    /// The interface is not Ethernet.
    #[error("interface {0} has no Ethernet address: only Ethernet interfaces can be the uplink")]
    NotEthernet(String),
    /// rtnetlink failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A sysctl could not be read or set.
    #[error("cannot set up {name}: {source}")]
    Sysctl {
        /// Path below `/proc/sys`.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What must be put back could not be noted.
    #[error("cannot note in {} what has to be put back later: {source}", path.display())]
    Note {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl From<RestoreError> for NodeError {
    fn from(RestoreError { path, source }: RestoreError) -> Self {
        Self::Note { path, source }
    }
}

fn missing_uplink(subnet: Option<&IpNet>) -> String {
    match subnet {
        Some(subnet) => {
            format!("no interface has an address in {subnet}, and there is no IPv4 default route")
        }
        None => "there is no IPv4 default route".to_owned(),
    }
}

/// Finds the uplink: `master` if it is named, else the interface that has an address in `subnet`, else the one of
/// the default route. Whatever the subnet's family, it has an address of IPv4.
pub fn find_uplink(
    links: &mut Netlink,
    master: Option<&str>,
    subnet: Option<IpNet>,
) -> Result<Uplink, NodeError> {
    let addresses = links.addresses()?;
    let link = match master {
        Some(name) => links
            .link(name)?
            .ok_or_else(|| NodeError::NoSuchInterface(name.to_owned()))?,
        None => choose(links, &addresses, subnet)?.ok_or(NodeError::NoUplink(subnet))?,
    };
    let of_ipv4 = subnet.and_then(|subnet| match subnet {
        IpNet::V4(subnet) => Some(subnet),
        IpNet::V6(_) => None,
    });
    let address =
        primary(&addresses, link.index, of_ipv4).ok_or_else(|| NodeError::NoAddress(link.name.clone()))?;
    let mac = link
        .mac
        .ok_or_else(|| NodeError::NotEthernet(link.name.clone()))?;
    Ok(uplink(&link, address, mac))
}

/// The uplink that has been in use, as it is; `None` if it is gone, down, or has that address no more.
pub fn same_uplink(links: &mut Netlink, ifindex: u32, addr: Ipv4Addr) -> Result<Option<Uplink>, NodeError> {
    let Some(link) = links.link_by_index(ifindex)?.filter(|link| link.is_up) else {
        return Ok(None);
    };
    let addresses = links.addresses()?;
    let address = addresses
        .iter()
        .find(|address| address.ifindex == ifindex && address.addr == addr);
    Ok(address
        .zip(link.mac)
        .map(|(address, mac)| uplink(&link, address, mac)))
}

fn uplink(link: &Link, address: &Address, mac: [u8; 6]) -> Uplink {
    Uplink {
        name: link.name.clone(),
        ifindex: link.index,
        mac,
        mtu: link.mtu,
        addr: address.addr,
        prefix_len: address.prefix_len,
    }
}

fn choose(
    links: &mut Netlink,
    addresses: &[Address],
    subnet: Option<IpNet>,
) -> Result<Option<Link>, LinkError> {
    let owner = match subnet {
        Some(IpNet::V4(subnet)) => addresses
            .iter()
            .find(|address| subnet.contains(&address.addr))
            .map(|address| address.ifindex),
        Some(subnet @ IpNet::V6(_)) => links
            .all_addresses()?
            .iter()
            .find(|address| address.is_global && subnet.contains(&address.addr))
            .map(|address| address.ifindex),
        None => None,
    };
    let index = match owner {
        Some(index) => Some(index),
        None => links.default_route()?.map(|route| route.ifindex),
    };
    match index {
        Some(index) => links.link_by_index(index),
        None => Ok(None),
    }
}

/// The address of the interface that leads: of the subnet before others, first given before secondary ones.
fn primary(addresses: &[Address], ifindex: u32, subnet: Option<Ipv4Net>) -> Option<&Address> {
    addresses
        .iter()
        .filter(|address| address.ifindex == ifindex && address.is_global)
        .min_by_key(|address| {
            (
                !subnet.is_some_and(|net| net.contains(&address.addr)),
                address.is_secondary,
            )
        })
}

/// What the kernel's own settings say that the programs follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctls {
    /// Idle times.
    pub timeouts: Timeouts,
    /// What `net.ipv4.ip_local_reserved_ports` lists.
    pub reserved: Vec<RangeInclusive<u16>>,
}

impl Sysctls {
    /// As they are.
    pub fn read() -> Self {
        Self {
            timeouts: timeouts(),
            reserved: locally_reserved_ports(),
        }
    }
}

/// The idle times of the kernel's conntrack, not below the floors of the RFCs; [`Timeouts::DEFAULT`] where the
/// kernel does not say (conntrack not loaded).
fn timeouts() -> Timeouts {
    let default = Timeouts::DEFAULT;
    let floor = Timeouts::FLOOR;
    Timeouts {
        offered: default.offered,
        tcp_opening: conntrack(
            &["tcp_timeout_syn_sent", "tcp_timeout_syn_recv"],
            floor.tcp_opening,
            default.tcp_opening,
        ),
        tcp_established: conntrack(
            &["tcp_timeout_established"],
            floor.tcp_established,
            default.tcp_established,
        ),
        tcp_closing: conntrack(
            &["tcp_timeout_time_wait", "tcp_timeout_last_ack"],
            floor.tcp_closing,
            default.tcp_closing,
        ),
        tcp_reset: conntrack(&["tcp_timeout_close"], floor.tcp_reset, default.tcp_reset),
        udp: conntrack(&["udp_timeout"], floor.udp, default.udp),
        udp_stream: conntrack(&["udp_timeout_stream"], floor.udp_stream, default.udp_stream),
        icmp: conntrack(&["icmp_timeout", "icmpv6_timeout"], floor.icmp, default.icmp),
    }
}

/// The longest of the named conntrack timeouts in seconds, at least `floor`.
fn conntrack(names: &[&str], floor: u32, default: u32) -> u32 {
    let read = |name: &&str| {
        let value = sysctl::read(&format!("net/netfilter/nf_conntrack_{name}"))
            .ok()
            .flatten()?;
        value.parse::<u32>().ok()
    };
    names
        .iter()
        .filter_map(read)
        .max()
        .map_or(default, |seconds| seconds.max(floor))
}

/// Default of kube-apiserver's `--service-node-port-range`.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// What `net.ipv4.ip_local_reserved_ports` lists.
fn locally_reserved_ports() -> Vec<RangeInclusive<u16>> {
    let listed = sysctl::read("net/ipv4/ip_local_reserved_ports")
        .ok()
        .flatten()
        .unwrap_or_default();
    parse_ports(&listed).collect()
}

/// `8080,9148,30000-30010`: the format of the sysctl. What is not a port is left out.
fn parse_ports(text: &str) -> impl Iterator<Item = RangeInclusive<u16>> {
    text.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    })
}

const FORWARDING: &str = "net/ipv4/ip_forward";

/// Makes the node forward IPv4: without it the kernel drops a flow's first packet and `bpf_fib_lookup` refuses.
/// The old value is noted and put back by [`Datapath::unload`](crate::datapath::Datapath::unload).
/// Returns whether it had to be changed.
pub fn enable_forwarding(root: &Root) -> Result<bool, NodeError> {
    Forwarding::default().enable(root)
}

/// The node's forwarding of IPv4, for who looks again and again.
#[derive(Debug)]
pub struct Forwarding(sysctl::Held);

impl Default for Forwarding {
    fn default() -> Self {
        Self(sysctl::Held::new(FORWARDING))
    }
}

impl Forwarding {
    /// As [`enable_forwarding`].
    pub fn enable(&mut self, root: &Root) -> Result<bool, NodeError> {
        let before = self.0.read().map_err(|source| failure(FORWARDING, source))?;
        match before.unwrap_or_default() {
            on if on == "1" => Ok(false),
            before => switch_on(root, &before).map(|()| true),
        }
    }
}

fn switch_on(root: &Root, before: &str) -> Result<(), NodeError> {
    let failed = |source| failure(FORWARDING, source);
    Restore::new(root).note_forwarding(before)?;
    sysctl::write(FORWARDING, "1").map_err(failed)?;
    tracing::info!(
        before,
        "net.ipv4.ip_forward is set to 1: pods need the node to forward"
    );
    Ok(())
}

/// Puts back what [`enable_forwarding`] changed.
pub(crate) fn restore_forwarding(before: &str) -> Result<(), NodeError> {
    sysctl::write(FORWARDING, before).map_err(|source| failure(FORWARDING, source))
}

const FORWARDING_V6: &str = "net/ipv6/conf/all/forwarding";
/// Directory of the interfaces' settings.
const INTERFACES_V6: &str = "net/ipv6/conf";

/// Whether the kernel speaks IPv6.
pub fn has_ipv6() -> bool {
    matches!(sysctl::read(FORWARDING_V6), Ok(Some(_)))
}

/// Makes the node forward IPv6. A node that forwards is a router, which takes no notice of other routers' advertisements and
/// drops the default route that it has from them: an interface that listens to them goes on to (value 2, Linux'
/// `ip-sysctl.rst`). The old values are noted and put back. Returns whether it had to be changed.
pub fn enable_forwarding_v6(root: &Root) -> Result<bool, NodeError> {
    let failed = |source| failure(FORWARDING_V6, source);
    let before = sysctl::read(FORWARDING_V6).map_err(failed)?.unwrap_or_default();
    if before == "1" {
        return Ok(false);
    }
    let notes = Restore::new(root);
    notes.note_sysctl(FORWARDING_V6, &before)?;
    for name in listening()? {
        notes.note_sysctl(&name, "1")?;
        sysctl::write(&name, "2").map_err(|source| failure(&name, source))?;
    }
    sysctl::write(FORWARDING_V6, "1").map_err(failed)?;
    tracing::info!(
        before,
        "net.ipv6.conf.all.forwarding is set to 1: pods need the node to forward"
    );
    Ok(true)
}

/// The settings of the interfaces that listen to router advertisements for as long as the node is no router.
fn listening() -> Result<Vec<String>, NodeError> {
    let failed = |source| failure(INTERFACES_V6, source);
    let mut listening = Vec::new();
    for entry in fs::read_dir(sysctl::path(INTERFACES_V6)).map_err(failed)? {
        let interface = entry.map_err(failed)?.file_name();
        let name = format!("{INTERFACES_V6}/{}/accept_ra", interface.to_string_lossy());
        // Whoever makes an interface says what it listens to. One may be gone meanwhile.
        let is_one = interface != "all" && interface != "default";
        if is_one && sysctl::read(&name).map_err(failed)?.as_deref() == Some("1") {
            listening.push(name);
        }
    }
    Ok(listening)
}

/// Puts back what [`enable_forwarding_v6`] changed. An interface that is gone needs nothing.
pub(crate) fn restore_sysctls(noted: &[(String, String)]) -> Result<(), NodeError> {
    for (name, before) in noted {
        match sysctl::write(name, before) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failure(name, source)),
            _ => {}
        }
    }
    Ok(())
}

fn failure(name: &str, source: io::Error) -> NodeError {
    NodeError::Sysctl {
        name: name.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ifindex: u32, addr: [u8; 4], is_secondary: bool) -> Address {
        Address {
            ifindex,
            addr: addr.into(),
            prefix_len: 16,
            is_secondary,
            is_global: true,
        }
    }

    #[test]
    fn the_primary_address_leads_unless_another_is_in_the_subnet() {
        let addresses = [
            address(2, [10, 240, 0, 5], true),
            address(2, [10, 240, 0, 4], false),
            address(3, [192, 168, 0, 1], false),
        ];
        let primary_of = |subnet: Option<&str>| {
            primary(&addresses, 2, subnet.map(|net| net.parse().unwrap()))
                .unwrap()
                .addr
                .octets()
        };
        assert_eq!(primary_of(None), [10, 240, 0, 4]);
        assert_eq!(primary_of(Some("10.240.0.0/16")), [10, 240, 0, 4]);
        assert_eq!(primary_of(Some("10.240.0.5/32")), [10, 240, 0, 5]);
        assert!(primary(&addresses, 7, None).is_none());
    }

    #[test]
    fn link_local_addresses_are_no_source() {
        let addresses = [Address {
            is_global: false,
            ..address(2, [169, 254, 0, 1], false)
        }];
        assert!(primary(&addresses, 2, None).is_none());
    }

    #[test]
    fn ports_of_the_sysctl_are_read_singly_and_as_ranges() {
        let ports: Vec<_> = parse_ports("8080,9148-9150,,x,70000").collect();
        assert_eq!(ports, [8080..=8080, 9148..=9150]);
        assert_eq!(parse_ports("").count(), 0);
    }

    #[test]
    fn timeouts_are_never_below_the_floors() {
        let (read, floor) = (timeouts(), Timeouts::FLOOR);
        assert!(read.tcp_opening >= floor.tcp_opening && read.tcp_established >= floor.tcp_established);
        assert!(read.tcp_closing >= floor.tcp_closing && read.tcp_reset >= floor.tcp_reset);
        assert!(read.udp >= floor.udp && read.udp_stream >= floor.udp_stream && read.icmp >= floor.icmp);
    }

    #[test]
    fn an_unreadable_timeout_is_the_default() {
        assert_eq!(conntrack(&["no_such_timeout"], 10, 77), 77);
    }
}
