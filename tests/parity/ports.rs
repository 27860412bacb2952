//! The node's ports of the living flows, which must pair one to one.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use crate::{family::Family, judge::Sent, mappings::Inside};

/// Towards whom a port is one flow's: protocol and remote, for ICMP with what is asked.
type Towards = (u8, (IpAddr, u16));

/// Left and right.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    of: HashMap<u64, (Towards, [u16; 2])>,
    /// Which flow holds a port.
    holders: [HashMap<(Towards, u16), u64>; 2],
    /// What Causeway has ever given to a flow.
    used: HashSet<(Towards, u16)>,
}

/// A pair of ports that belongs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paired {
    Known,
    /// First seen. Whether either is the pod's own.
    Anew {
        kept: [bool; 2],
    },
}

impl Ports {
    /// The ports that the lanes gave a flow.
    pub(crate) fn of(&self, flow: u64) -> Option<[u16; 2]> {
        self.of.get(&flow).map(|(_, ports)| *ports)
    }

    /// Whether a living flow has this pair.
    pub(crate) fn has(&self, pair: [u16; 2]) -> bool {
        self.of.values().any(|(_, ports)| *ports == pair)
    }

    /// A flow has ended: its ports may serve others.
    pub(crate) fn forget(&mut self, flow: u64) {
        if let Some((towards, ports)) = self.of.remove(&flow) {
            for (holders, port) in self.holders.iter_mut().zip(ports) {
                holders.remove(&(towards, port));
            }
        }
    }

    /// Judges the node's ports that a packet of a flow came out with, on either side.
    pub(crate) fn pair(&mut self, sent: &Sent<'_>, ports: [u16; 2], opens: bool) -> Result<Paired, String> {
        if let Some((_, known)) = self.of.get(&sent.flow) {
            return if *known == ports {
                Ok(Paired::Known)
            } else {
                Err(format!("a flow changed its port: {ports:?}, not {known:?}"))
            };
        }
        if !opens {
            return if ports[0] == ports[1] {
                Ok(Paired::Known)
            } else {
                Err(format!("ports where nothing was translated: {ports:?}"))
            };
        }
        let asked = Inside::of(&sent.shot.spec).map(|inside| inside.remote);
        let towards = (sent.protocol, asked.unwrap_or(sent.remote));
        for (holders, port) in self.holders.iter_mut().zip(ports) {
            let holder = holders.insert((towards, port), sent.flow);
            if holder.is_some_and(|holder| holder != sent.flow) {
                return Err(format!(
                    "port {port} towards {:?} belongs to another flow",
                    sent.remote
                ));
            }
        }
        self.of.insert(sent.flow, (towards, ports));
        let kept = ports.map(|port| port == sent.pod_port);
        // nf_nat gives a free port up for the one that the pod's port has towards other remotes, so the right lane alone
        // tells whether the port was free there.
        let was_free = !self.used.contains(&(towards, sent.pod_port));
        // A port of 0 is none, and gets one.
        if !kept[1] && sent.pod_port != 0 && was_free {
            return Err(format!(
                "a free port was not kept: {} became {}",
                sent.pod_port, ports[1]
            ));
        }
        self.used.insert((towards, ports[1]));
        if class(ports[0]) != class(ports[1]) && sent.protocol != Family::of(sent.remote.0).icmp() {
            return Err(format!("classes of ports: {ports:?}"));
        }
        Ok(Paired::Anew { kept })
    }
}

/// nf_nat's classes of ports.
fn class(port: u16) -> u8 {
    match port {
        0..=511 => 0,
        512..=1023 => 1,
        _ => 2,
    }
}
