//! A node whose agent spreads connections over three API servers.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use causeway_tests::{
    agent::Agent,
    delegated::{NOBODYS, SERVERS},
    netns::Netns,
    node::{Node, Pod},
    rig::Rig,
    rules,
};
use serde_json::Value;

use crate::{
    clients::{Trust, Watch},
    control_plane::{ControlPlane, Server},
};

/// The ClusterIP of `kubernetes`, which leads to the virtual address.
pub(crate) const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 443);
pub(crate) const VIP: SocketAddrV4 = SocketAddrV4::new(NOBODYS, 443);

pub(crate) struct Scene {
    pub(crate) rig: Rig,
    pub(crate) pod: Pod,
    pub(crate) servers: Vec<Option<Server>>,
    pub(crate) plane: ControlPlane,
    pub(crate) trust: Trust,
    pub(crate) agent: Agent,
}

impl Scene {
    /// `probe`: the lines of the configuration that say how the servers are asked.
    pub(crate) fn new(probe: &str) -> Result<Self> {
        let rig = Rig::causeway()?;
        let plane = ControlPlane::new(&rig.fabric)?;
        let trust = Trust::new(&plane.certificate)?;
        let servers = SERVERS.map(|address| plane.serve(address).map(Some));
        let servers = servers.into_iter().collect::<Result<_>>()?;
        let addresses = SERVERS.map(|address| address.to_string()).join(", ");
        rig.node.root.write(
            "/etc/causeway/config.yaml",
            &format!(
                "apiServer:\n  subnets: [10.226.0.0/28]\n  vip: {NOBODYS}\n  backends: [{addresses}]\n  drainSeconds: 1\n  {probe}\n"
            ),
        )?;
        let agent = Agent::start(&rig.node)?;
        let pod = rig.pod("a")?;
        rules::forbid_invalid(&rig.node.ns)?;
        rules::cluster_ip(&rig.node.ns, SERVICE, VIP)?;
        Ok(Self {
            rig,
            pod,
            servers,
            plane,
            trust,
            agent,
        })
    }

    pub(crate) fn connect(&self, ns: &Netns, to: SocketAddrV4, count: usize) -> Result<Vec<Watch>> {
        (0..count).map(|_| self.trust.connect(ns, to)).collect()
    }

    /// Which of the servers are healthy, in the order of [`SERVERS`].
    pub(crate) fn health(&self) -> Result<Vec<bool>> {
        health(&self.rig.node)
    }

    pub(crate) fn wait_for_health(&mut self, expected: [bool; 3]) -> Result<()> {
        let node = &self.rig.node;
        self.agent.wait_for("what the servers say to be known", |_| {
            Ok(health(node)? == expected)
        })
    }
}

fn health(node: &Node) -> Result<Vec<bool>> {
    let status: Value = serde_json::from_str(&node.causeway(&["apiserver", "status", "--json"])?)?;
    Ok(backends(&status)
        .into_iter()
        .map(|(_, is_healthy)| is_healthy)
        .collect())
}

/// The backends that a status names, and whether each is healthy.
pub(crate) fn backends(status: &Value) -> Vec<(String, bool)> {
    let backends = status["backends"].as_array().cloned().unwrap_or_default();
    let backend = |backend: &Value| {
        let address = backend["address"].as_str().unwrap_or_default().to_owned();
        (address, backend["isHealthy"] == true)
    };
    backends.iter().map(backend).collect()
}
