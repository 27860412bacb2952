//! The kernel's own ways to do a node's work, wired by hand: what Causeway is compared with, and a proof that the rig
//! judges rightly.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::{
    dual_stack::GATEWAY as GATEWAY_IPV6,
    fabric::{GATEWAY, NODE, SUBNET_BITS},
    netns::{Netns, connect},
    node::Datapath,
};

/// The rule that Causeway replaces, as it is installed on nodes.
pub const MASQUERADE: &str = "-t nat -A POSTROUTING -m iprange ! --dst-range 168.63.129.16 \
                              -m addrtype ! --dst-type local ! -d 10.0.0.0/8 -j MASQUERADE";

/// The same rule of IPv6, with the ranges that Causeway excludes.
pub const MASQUERADE_IPV6: &str =
    "-t nat -A POSTROUTING -m addrtype ! --dst-type local ! -d fc00::/7 -j MASQUERADE";

/// Sets up what the node needs before its first pod.
pub fn prepare(node: &Netns, datapath: Datapath) -> Result<()> {
    if datapath.is_causeway() {
        return Ok(());
    }
    node.sysctl("net/ipv4/ip_forward", "1")?;
    if datapath.is_bridged() {
        node.ip(&format!(
            "link add azure0 type bridge\nlink set azure0 up\naddr flush dev eth0\nlink set eth0 master azure0\n\
             addr add {NODE}/{SUBNET_BITS} dev azure0\nroute add default via {GATEWAY}"
        ))?;
        // One MAC for the station that the fabric sees.
        let mac = node.mac("eth0")?.map(|byte| format!("{byte:02x}")).join(":");
        node.ip(&format!("link set azure0 address {mac}"))?;
        node.sysctl("net/bridge/bridge-nf-call-iptables", "1")?;
    }
    if matches!(datapath, Datapath::RoutedMasquerade | Datapath::BridgeMasquerade) {
        let rule: Vec<&str> = MASQUERADE.split_whitespace().collect();
        node.output("iptables", &rule)?;
    }
    Ok(())
}

/// Connects a pod.
pub fn add(node: &Netns, pod: &Netns, addr: Ipv4Addr, datapath: Datapath) -> Result<()> {
    let host_if = host_interface(addr);
    connect(node, &host_if, pod, "eth0")?;
    if datapath.is_bridged() {
        node.ip(&format!("link set {host_if} master azure0"))?;
        node.ip(&format!("link set {host_if} type bridge_slave hairpin on"))?;
        return pod.ip(&format!(
            "addr add {addr}/{SUBNET_BITS} dev eth0\nroute add default via {GATEWAY}"
        ));
    }
    let [node_mac, pod_mac] =
        [node.mac(&host_if)?, pod.mac("eth0")?].map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
    node.ip(&format!(
        "route add {addr} dev {host_if} scope link\nneigh add {addr} lladdr {pod_mac} dev {host_if} nud permanent"
    ))?;
    pod.ip(&format!(
        "addr add {addr}/{SUBNET_BITS} dev eth0 noprefixroute\nroute add 169.254.1.1 dev eth0 scope link\n\
         route add default via 169.254.1.1\nneigh add 169.254.1.1 lladdr {node_mac} dev eth0 nud permanent"
    ))
}

/// Gives a connected pod an address of IPv6 beside that of IPv4.
pub fn add_ipv6(node: &Netns, pod: &Netns, addr: Ipv4Addr, of_ipv6: Ipv6Addr) -> Result<()> {
    let host_if = host_interface(addr);
    route_ipv6(node, &host_if, of_ipv6)?;
    let [node_mac, pod_mac] =
        [node.mac(&host_if)?, pod.mac("eth0")?].map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
    node.ip(&format!(
        "neigh add {of_ipv6} lladdr {pod_mac} dev {host_if} nud permanent"
    ))?;
    for name in ["lo", "eth0"] {
        pod.sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
        pod.sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    pod.ip(&format!(
        "addr add {of_ipv6}/64 dev eth0 nodad noprefixroute\n\
         neigh add {GATEWAY_IPV6} lladdr {node_mac} dev eth0 nud permanent\n\
         route add default via {GATEWAY_IPV6} dev eth0"
    ))
}

fn host_interface(addr: Ipv4Addr) -> String {
    format!("azv{}", addr.octets()[3])
}

/// Has a node forward IPv6, and masquerade it.
pub fn masquerade_ipv6(node: &Netns) -> Result<()> {
    node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let rule: Vec<&str> = MASQUERADE_IPV6.split_whitespace().collect();
    node.output("ip6tables", &rule).map(drop)
}

/// Leads a pod's address of IPv6 to the host's end of its link.
pub fn route_ipv6(node: &Netns, host_if: &str, addr: Ipv6Addr) -> Result<()> {
    node.sysctl(&format!("net/ipv6/conf/{host_if}/accept_dad"), "0")?;
    node.sysctl(&format!("net/ipv6/conf/{host_if}/disable_ipv6"), "0")?;
    node.ip(&format!("route add {addr} dev {host_if}"))
}
