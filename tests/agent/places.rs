//! Where a pod's connections go: the internet, the VNet, another pod of the node.

use std::net::SocketAddrV4;

use anyhow::Result;
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, VNET},
    node::Pod,
    rig::Rig,
    talk::Tcp,
};

/// A server in each place.
pub(crate) struct Places {
    addresses: [SocketAddrV4; 3],
    echoes: Vec<Echo>,
}

impl Places {
    pub(crate) fn new(rig: &Rig, other: &Pod) -> Result<Self> {
        let fabric = &rig.fabric;
        let echoes = [&fabric.internet, &fabric.vnet, &other.ns].map(|ns| Echo::start(ns, 7));
        Ok(Self {
            addresses: [INTERNET, VNET, other.addr].map(|addr| SocketAddrV4::new(addr, 7)),
            echoes: echoes.into_iter().collect::<Result<_>>()?,
        })
    }

    /// The address of a connection's server, by turns.
    pub(crate) fn address(&self, n: usize) -> SocketAddrV4 {
        self.addresses[n % self.addresses.len()]
    }

    /// A connection to each.
    pub(crate) fn connect(&self, pod: &Pod) -> Result<Vec<Tcp>> {
        let connections = self.addresses.iter().map(|&addr| Tcp::connect(&pod.ns, addr));
        connections.collect()
    }

    /// Whom the servers have seen since they were asked last, each address and port once.
    pub(crate) fn seen(&self) -> Vec<usize> {
        let count = |echo: &Echo| {
            let mut seen = echo.seen();
            seen.sort_unstable();
            seen.dedup();
            seen.len()
        };
        self.echoes.iter().map(count).collect()
    }
}
