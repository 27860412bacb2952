//! The mappings that a lane remembers: nf_nat's from conntrack's table, Causeway's from `cwy_flows`.

use std::{collections::HashMap, net::IpAddr};

use anyhow::{Context, Result, bail};
use causeway_common::{
    addr::Address,
    flow::{Flags, FlowEntry, Nat},
    tuple::FlowKey,
};
use causeway_tests::{netns::Netns, node::Node};

use crate::{
    family::Family,
    lifetimes::datapath,
    packet::{Body, End, Spec},
};

/// What a mapping is for: a pod's end and a remote's. For ICMP the pod's port is the identifier, and type and code of the
/// question stand for the remote's. All but TCP, UDP and ICMP have zeros, though conntrack knows the ports of SCTP and others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inside {
    protocol: u8,
    pod: (IpAddr, u16),
    pub(crate) remote: (IpAddr, u16),
}

impl Inside {
    /// Of a packet that a pod sends; `None` if none can have a mapping of its own.
    pub(crate) fn of(spec: &Spec) -> Option<Self> {
        let (End::At(pod, pod_port), End::At(remote, remote_port)) = (spec.src, spec.dst) else {
            return None;
        };
        let (pod_port, remote_port) = match spec.body {
            Body::Tcp { .. } | Body::Udp { .. } => (pod_port, remote_port),
            Body::Query { kind, code, .. } if spec.family().is_question(kind) => {
                (pod_port, asked(kind, code))
            }
            Body::Query { .. } | Body::Error { .. } => return None,
            Body::Other { .. } => (0, 0),
        };
        Some(Self {
            protocol: spec.protocol(),
            pod: (pod, pod_port),
            remote: (remote, remote_port),
        })
    }

    pub(crate) fn has_port(&self) -> bool {
        Family::of(self.pod.0).has_ports(self.protocol)
    }
}

fn asked(kind: u8, code: u8) -> u16 {
    u16::from_be_bytes([kind, code])
}

/// The node's port of each.
pub(crate) type Mappings = HashMap<Inside, u16>;

/// What conntrack has in a namespace, as `conntrack -L` lists it.
pub(crate) fn of_conntrack(ns: &Netns, family: Family) -> Result<Mappings> {
    let name = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let listing = ns.output("conntrack", &["-L", "-f", name])?;
    let mut mappings = Mappings::new();
    for line in listing.lines() {
        let entry = Tracked::parse(line).with_context(|| format!("conntrack has the line `{line}`"))?;
        let [original, reply] = entry.directions;
        let inside = entry.inside();
        let port = if inside.has_port() { reply.dst_port } else { 0 };
        if original.src != reply.dst && mappings.insert(inside, port).is_some() {
            bail!("conntrack has two entries like `{line}`");
        }
    }
    Ok(mappings)
}

/// A line of conntrack's.
struct Tracked {
    protocol: u8,
    /// As first sent, and as answered.
    directions: [Direction; 2],
}

#[derive(Clone, Copy)]
struct Direction {
    src: IpAddr,
    dst: IpAddr,
    src_port: u16,
    /// For an answer's ICMP the identifier.
    dst_port: u16,
}

impl Tracked {
    /// Such as `udp 17 29 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 [UNREPLIED] src=10.0.0.2 dst=10.0.0.9 sport=2 dport=1
    /// mark=0 use=1`.
    fn parse(line: &str) -> Option<Self> {
        let protocol = line.split_whitespace().nth(1)?.parse().ok()?;
        let (mut addrs, mut ports): (Vec<&str>, Vec<u16>) = (Vec::new(), Vec::new());
        let (mut kind, mut code) = (0, 0);
        for (name, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
            match name {
                "src" | "dst" => addrs.push(value),
                "sport" | "dport" => ports.push(value.parse().ok()?),
                "type" if ports.is_empty() => kind = value.parse().ok()?,
                "code" if ports.is_empty() => code = value.parse().ok()?,
                // The identifier is the asking end's; what is asked takes the place of the other's port.
                "id" if ports.is_empty() => ports.extend([value.parse().ok()?, asked(kind, code)]),
                "id" => ports.extend([asked(kind, code), value.parse().ok()?]),
                _ => {}
            }
        }
        let direction = |number: usize| {
            let port = |at: usize| ports.get(2 * number + at).copied().unwrap_or(0);
            Some(Direction {
                src: addrs.get(2 * number)?.parse().ok()?,
                dst: addrs.get(2 * number + 1)?.parse().ok()?,
                src_port: port(0),
                dst_port: port(1),
            })
        };
        Some(Self {
            protocol,
            directions: [direction(0)?, direction(1)?],
        })
    }

    fn inside(&self) -> Inside {
        let [original, _] = self.directions;
        let (own, remote) = if Family::of(original.src).has_ports(self.protocol) {
            (original.src_port, original.dst_port)
        } else {
            (0, 0)
        };
        Inside {
            protocol: self.protocol,
            pod: (original.src, own),
            remote: (original.dst, remote),
        }
    }
}

/// What Causeway has on a node. Fails if a mapping has lost its other half.
pub(crate) fn of_causeway(node: &Node, family: Family) -> Result<Mappings> {
    let [mut forward, mut back] = [Mappings::new(), Mappings::new()];
    let mut halves = [&mut forward, &mut back];
    match family {
        Family::V4 => datapath(node)?.for_each_flow(|key, entry| note(&mut halves, &key, &entry))?,
        Family::V6 => datapath(node)?.for_each_flow_v6(|key, entry| note(&mut halves, &key, &entry))?,
    }
    if forward == back {
        return Ok(forward);
    }
    let alone = forward
        .iter()
        .find(|(inside, port)| back.get(inside) != Some(port));
    let alone = alone.or_else(|| {
        back.iter()
            .find(|(inside, port)| forward.get(inside) != Some(port))
    });
    bail!(
        "{} forward and {} backward halves of mappings; {alone:?} has no other half",
        forward.len(),
        back.len()
    )
}

/// Notes the mapping that an entry is a half of, if it is one: a pod's in the first table, the answers' in the second.
fn note<A: Address + Into<IpAddr>>(
    [forward, back]: &mut [&mut Mappings; 2],
    key: &FlowKey<A>,
    entry: &FlowEntry<A>,
) {
    if entry.has(Flags::HOST) {
        return;
    }
    let own = |addr: A, port| (addr.into(), u16::from_be_bytes(port));
    let remote = |addr, port| match own(addr, port) {
        (addr, port) if key.protocol == A::ICMP => (addr, port ^ asked(Family::of(addr).echo().0, 0)),
        remote => remote,
    };
    let inside = |pod, remote| Inside {
        protocol: key.protocol,
        pod,
        remote,
    };
    match entry.nat {
        Nat::SOURCE => {
            let inside = inside(own(key.src, key.src_port), remote(key.dst, key.dst_port));
            forward.insert(inside, u16::from_be_bytes(entry.nat_port));
        }
        Nat::DESTINATION => {
            let inside = inside(own(entry.nat_addr, entry.nat_port), remote(key.src, key.src_port));
            back.insert(inside, u16::from_be_bytes(key.dst_port));
        }
        _ => {}
    }
}
