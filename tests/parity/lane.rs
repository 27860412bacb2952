//! A lane: one node with its pods and a mute far side of its uplink. Two lanes differ in their datapath and in nothing else:
//! addresses, MACs, routes, neighbours and sysctls are the same.

use std::{
    iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use causeway_tests::{
    dual_stack,
    fabric::{GATEWAY, NODE, SUBNET_BITS, VNET},
    netns::{Netns, connect},
    node::{Datapath, Node, Pod},
    offload, rules, stock,
};

use crate::{
    family::Family,
    frames::{Inputs, Outputs},
    lifetimes::Lifetimes,
    packet::{Body, ETH, End, Spec},
    tap::Tap,
};

/// Pods of a lane.
pub(crate) const PODS: usize = 3;
/// Where frames enter and come out: the far side of the uplink.
pub(crate) const WIRE: usize = 0;
/// Packets to these remotes meet a smaller MTU at the node ([`Family::narrow`]).
pub(crate) const NARROW_MTU: u16 = 1400;

/// A node, its pods, and the sockets at their outer ends.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) family: Family,
    pub(crate) node: Node,
    wire: Netns,
    pods: Vec<IpAddr>,
    /// Kept for their namespaces.
    _pods: Vec<Pod>,
    /// By the point's number.
    taps: Vec<Tap>,
    /// Sender's and receiver's MAC of what enters, by the point's number.
    pub(crate) macs: Vec<[[u8; 6]; 2]>,
    outputs: Outputs,
    barriers: u16,
}

impl Lane {
    /// Causeway on the right, MASQUERADE with the right lane's MACs on the left.
    pub(crate) fn pair(causeway: Datapath, family: Family, lifetimes: &Lifetimes) -> Result<[Self; 2]> {
        let right = Self::new(causeway, family, None)?;
        let left = Self::new(Datapath::RoutedMasquerade, family, Some(&right.macs))?;
        lifetimes.tell_causeway(&right.node, family)?;
        lifetimes.tell_conntrack(&left.node.ns)?;
        let mut lanes = [left, right];
        for lane in &mut lanes {
            // Lets each see a packet before anything is compared.
            lane.pass(&Inputs::default(), 0)?;
        }
        Ok(lanes)
    }

    fn new(datapath: Datapath, family: Family, twin: Option<&Vec<[[u8; 6]; 2]>>) -> Result<Self> {
        let (ns, wire) = (Netns::new()?, Netns::new()?);
        connect(&ns, "eth0", &wire, "node")?;
        if let Some(macs) = twin {
            set_mac(&wire, "node", macs[WIRE][1])?;
            set_mac(&ns, "eth0", macs[WIRE][0])?;
        }
        let (wire_mac, node_mac) = (wire.mac("node")?, ns.mac("eth0")?);
        ns.ip(&format!(
            "addr add {NODE}/{SUBNET_BITS} dev eth0\nroute add default via {GATEWAY}\n\
             route add 198.18.0.0/15 via {GATEWAY} mtu lock {NARROW_MTU}"
        ))?;
        for addr in [GATEWAY, VNET] {
            ns.ip(&format!(
                "neigh replace {addr} lladdr {} dev eth0 nud permanent",
                text(wire_mac)
            ))?;
        }
        if family == Family::V6 {
            enable_ipv6(&ns, wire_mac)?;
        }
        let pool = (0..PODS as u8)
            .map(|n| Ipv4Addr::new(10, 240, 0, 5 + n))
            .collect();
        let node = Node::plugged_in(ns, datapath, pool)?;
        rules::forbid_wireserver(&node.ns)?;
        if family == Family::V6 && datapath.is_causeway() {
            let pods: Vec<Ipv6Addr> = (1..=PODS).map(ipv6_of).collect();
            dual_stack::list(&node, PODS as u8, &[("fd00:10::/64", &pods)])?;
            dual_stack::masquerade(&node)?;
        } else if family == Family::V6 {
            stock::masquerade_ipv6(&node.ns)?;
        }
        lift_limits(&node.ns, family)?;

        let mut macs = vec![[node_mac, wire_mac]];
        let mut taps = vec![Tap::open(&wire, "node")?];
        let (mut pods, mut addrs) = (Vec::new(), Vec::new());
        for number in 1..=PODS {
            let pod = node.add(&format!("pod{number}"))?;
            let host_if = node.host_interface(&pod)?;
            let addr = match family {
                Family::V4 => IpAddr::V4(pod.addr),
                Family::V6 if datapath.is_causeway() => IpAddr::V6(pod.addr_v6()?),
                Family::V6 => IpAddr::V6(ipv6_of(number)),
            };
            if let Some(macs) = twin {
                let [host, own] = macs[number];
                set_mac(&node.ns, &host_if, host)?;
                set_mac(&pod.ns, "eth0", own)?;
                if family == Family::V6 {
                    stock::route_ipv6(&node.ns, &host_if, ipv6_of(number))?;
                }
                node.ns.ip(&format!(
                    "neigh replace {addr} lladdr {} dev {host_if} nud permanent",
                    text(own)
                ))?;
            }
            macs.push([node.ns.mac(&host_if)?, pod.ns.mac("eth0")?]);
            mute(&pod.ns, "eth0")?;
            offload::set(&node.ns, &host_if, offload::TX_CHECKSUM, false)?;
            taps.push(Tap::open(&pod.ns, "eth0")?);
            addrs.push(addr);
            pods.push(pod);
        }
        offload::set(&node.ns, "eth0", offload::TX_CHECKSUM, false)?;
        mute(&wire, "node")?;
        Ok(Self {
            family,
            node,
            wire,
            pods: addrs,
            _pods: pods,
            taps,
            macs,
            outputs: Outputs::default(),
            barriers: 0,
        })
    }

    /// The address of pod `number`, from 1 on.
    pub(crate) fn pod_addr(&self, number: usize) -> IpAddr {
        self.pods[number - 1]
    }

    /// Sends the frames for lane `number`, each in at its point, and returns all that came out of it, in its order at each point.
    ///
    /// Everything happens on the calling thread's CPU, whose backlog is a queue, so when the last packet is out nothing of
    /// the others is on its way any more.
    pub(crate) fn pass(&mut self, inputs: &Inputs, number: usize) -> Result<&Outputs> {
        for (point, tap) in self.taps.iter().enumerate() {
            tap.send(inputs.of(number, point))
                .with_context(|| format!("at point {point}"))?;
        }
        self.barriers = self.barriers.wrapping_add(1);
        let barrier = self.barrier()?;
        self.taps[1].send(iter::once(barrier.as_slice()))?;
        self.collect(&barrier[ETH + self.family.header()..])?;
        Ok(&self.outputs)
    }

    fn collect(&mut self, barrier: &[u8]) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        let (outputs, family) = (&mut self.outputs, self.family);
        outputs.clear();
        let mut done = false;
        loop {
            let last_round = done;
            for (point, tap) in self.taps.iter_mut().enumerate() {
                tap.receive(|bytes| {
                    if bytes.get(12..ETH) != Some(&family.ethertype()) || is_of_link(bytes) {
                        return;
                    }
                    if point == WIRE && bytes.get(ETH + family.header()..) == Some(barrier) {
                        done = true;
                        return;
                    }
                    outputs.push(point, bytes);
                })?;
            }
            if last_round {
                return Ok(());
            }
            if !done {
                if Instant::now() > end {
                    bail!(
                        "a datagram to an excluded address has not come out of {:?}",
                        self.wire
                    );
                }
                self.taps[WIRE].wait(Duration::from_millis(10));
            }
        }
    }

    /// A datagram that needs no translation, unlike every other.
    fn barrier(&self) -> Result<Vec<u8>> {
        let body = Body::Udp {
            len: usize::from(self.barriers % 1024),
            checksum: true,
        };
        let spec = Spec::new(
            End::At(self.pod_addr(1), 9),
            End::At(self.family.peered(), 9),
            body,
        );
        let mut frame = Vec::new();
        spec.write(&mut frame, self.macs[1], 0xffff, None)
            .context("a barrier has no mapped port")?;
        Ok(frame)
    }
}

/// Nothing in here answers any more; what arrives is only seen.
fn mute(ns: &Netns, interface: &str) -> Result<()> {
    ns.ip(&format!(
        "addr flush dev {interface}\nlink set {interface} arp off"
    ))
}

/// The node sends every ICMP error, however many, but for redirects, of which the kernel sends ever fewer; and it waits for every fragment, whoever else sends meanwhile.
fn lift_limits(ns: &Netns, family: Family) -> Result<()> {
    if family == Family::V6 {
        ns.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        ns.sysctl("net/ipv6/ip6frag_high_thresh", "1000000000")?;
        // Of conntrack, where it is in use.
        ns.sysctl("net/netfilter/nf_conntrack_frag6_high_thresh", "1000000000")
            .ok();
        // The kernel's own packets have no mark.
        ns.sysctl("net/ipv6/auto_flowlabels", "0")?;
    }
    for interface in ["all", "default", "eth0"] {
        ns.sysctl(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
    }
    ns.sysctl("net/ipv4/icmp_ratemask", "0")?;
    ns.sysctl("net/ipv4/icmp_ratelimit", "0")?;
    ns.sysctl("net/ipv4/icmp_msgs_per_sec", "1000000000")?;
    ns.sysctl("net/ipv4/icmp_msgs_burst", "1000000000")?;
    ns.sysctl("net/ipv4/ipfrag_high_thresh", "1000000000")?;
    ns.sysctl("net/ipv4/ipfrag_max_dist", "0")
}

/// The address of IPv6 of pod `number`, from 1 on.
fn ipv6_of(number: usize) -> Ipv6Addr {
    dual_stack::at(4 + number as u32)
}

/// Gives the node an address of IPv6, and a router whose MAC is `router`.
fn enable_ipv6(node: &Netns, router: [u8; 6]) -> Result<()> {
    for interface in ["lo", "eth0"] {
        node.sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
        node.sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0")?;
    }
    node.ip(&format!(
        "addr add {}/64 dev eth0 nodad noprefixroute\nroute add default via fe80::1 dev eth0\n\
         route add {}/48 via fe80::1 dev eth0 mtu lock {NARROW_MTU}\n\
         neigh replace fe80::1 lladdr {} dev eth0 nud permanent",
        dual_stack::NODE,
        Family::V6.narrow(0),
        text(router)
    ))
}

/// What neighbours and listeners say on a link, which no router passes on.
fn is_of_link(bytes: &[u8]) -> bool {
    let source = bytes.get(ETH + 8..ETH + 24);
    let is_ipv6 = bytes.get(12..ETH) == Some(&Family::V6.ethertype());
    is_ipv6 && source.is_none_or(|source| source[0] == 0xfe || source == [0; 16])
}

fn set_mac(ns: &Netns, interface: &str, mac: [u8; 6]) -> Result<()> {
    ns.ip(&format!("link set {interface} address {}", text(mac)))
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
