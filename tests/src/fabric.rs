//! What lies around a node: a router that stands for the cloud's fabric, and the hosts behind it.
//!
//! ```text
//!                                   ┌────────┐  vnet      10.240.1.10, 10.1.0.10   another host of the VNet
//!   node ── eth0 10.240.0.4/16 ─────┤        ├─ internet   203.0.113.10              knows the way to 10.240.0.4 alone
//!                                   │ fabric ├─ partner    198.51.100.10             knows the way to pods
//!                                   └────────┘  (itself)   10.240.0.1, 168.63.129.16 gateway, wireserver
//! ```
//!
//! As in the cloud, hosts of one subnet share no Ethernet: the fabric answers every ARP request and routes. It hands a pod's
//! address to the node's MAC. The internet's host has no route to pods, so a packet that was not translated can never be
//! answered and a conversation proves a translation.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{
    netns::{Netns, connect},
    offload,
};

/// The node's primary address.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);
/// Another node's primary address.
pub const SECOND_NODE: Ipv4Addr = Ipv4Addr::new(10, 240, 2, 4);
/// The subnet of node and pods: prefix length.
pub const SUBNET_BITS: u8 = 16;
/// The subnet's gateway, an address of the fabric.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 1);
/// The VNet's other host, in the node's subnet.
pub const VNET: Ipv4Addr = Ipv4Addr::new(10, 240, 1, 10);
/// The same host in a peered VNet: reached through the gateway.
pub const PEERED: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// A host of the internet.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// A host outside every excluded range, with a route to the pods (a site behind a VPN).
pub const PARTNER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The platform's own host.
pub const WIRESERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// The fabric and its hosts.
#[derive(Debug)]
pub struct Fabric {
    /// The router. Its interface towards the node is `node`.
    pub router: Netns,
    /// The VNet's other host.
    pub vnet: Netns,
    /// A host of the internet.
    pub internet: Netns,
    /// A host with a route to the pods, outside every excluded range.
    pub partner: Netns,
}

impl Fabric {
    /// Builds the router and the three hosts.
    pub fn new() -> Result<Self> {
        let [router, vnet, internet, partner] = [Netns::new()?, Netns::new()?, Netns::new()?, Netns::new()?];
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv4/conf/all/proxy_arp", "1")?;
        router.sysctl("net/ipv4/conf/all/send_redirects", "0")?;
        router.sysctl("net/ipv4/conf/default/send_redirects", "0")?;
        router.ip(&format!(
            "addr add {WIRESERVER}/32 dev lo\naddr add {GATEWAY}/32 dev lo"
        ))?;

        connect(&vnet, "eth0", &router, "vnet")?;
        answer_at_once(&router, "vnet")?;
        vnet.ip(&format!(
            "addr add {VNET}/{SUBNET_BITS} dev eth0\naddr add {PEERED}/32 dev eth0\nroute add default via {GATEWAY}"
        ))?;
        router.ip(&format!("route add {VNET} dev vnet\nroute add {PEERED} dev vnet"))?;

        connect(&internet, "eth0", &router, "internet")?;
        router.ip("addr add 203.0.113.1/24 dev internet")?;
        internet.ip(&format!(
            "addr add {INTERNET}/24 dev eth0\nroute add {NODE} via 203.0.113.1\nroute add unreachable 10.0.0.0/8"
        ))?;

        connect(&partner, "eth0", &router, "partner")?;
        router.ip("addr add 198.51.100.1/24 dev partner")?;
        partner.ip(&format!(
            "addr add {PARTNER}/24 dev eth0\nroute add default via 198.51.100.1"
        ))?;
        Ok(Self {
            router,
            vnet,
            internet,
            partner,
        })
    }

    /// Plugs a node in: `eth0` with the primary address and a default route, and the way to its pods.
    ///
    /// The wire is a real one: both ends compute checksums before they send, so what a capture sees is what a network card
    /// would have sent, and a checksum the datapath got wrong is refused by its receiver.
    pub fn plug_in(&self, node: &Netns, pods: &[Ipv4Addr]) -> Result<()> {
        self.plug_in_at(node, NODE, "node", pods)?;
        self.router
            .ip(&format!("route add 10.240.0.0/{SUBNET_BITS} dev node"))
    }

    /// Plugs another node in, beside the first one, at [`SECOND_NODE`]. The router's end of its link is `second`.
    pub fn plug_in_second(&self, node: &Netns, pods: &[Ipv4Addr]) -> Result<()> {
        self.plug_in_at(node, SECOND_NODE, "second", pods)?;
        self.internet
            .ip(&format!("route add {SECOND_NODE} via 203.0.113.1"))
    }

    fn plug_in_at(&self, node: &Netns, addr: Ipv4Addr, interface: &str, pods: &[Ipv4Addr]) -> Result<()> {
        connect(node, "eth0", &self.router, interface)?;
        answer_at_once(&self.router, interface)?;
        node.ip(&format!(
            "addr add {addr}/{SUBNET_BITS} dev eth0\nroute add default via {GATEWAY}"
        ))?;
        let to_pod = |pod: &Ipv4Addr| format!("route add {pod} via {addr} dev {interface} onlink");
        let mut routes = vec![format!("route add {addr} dev {interface}")];
        routes.extend(pods.iter().map(to_pod));
        self.router.ip(&routes.join("\n"))?;
        offload::set(node, "eth0", offload::TX_CHECKSUM, false)?;
        offload::set(node, "eth0", offload::GRO, true)?;
        offload::set(&self.router, interface, offload::TX_CHECKSUM, false)
    }
}

/// The kernel would wait up to 0.8 s before it answers an ARP request for another.
fn answer_at_once(router: &Netns, interface: &str) -> Result<()> {
    router.sysctl(&format!("net/ipv4/neigh/{interface}/proxy_delay"), "0")
}
