//! What faults are made of.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Context, Result, ensure};
use causeway_common::maps::Usage;
use causeway_tests::{fabric::INTERNET, talk::Udp};
use serde_json::Value;

use super::maps::hash;
use crate::scene::Scene;

/// The state file of the endpoints.
pub(super) const ENDPOINTS: &str = "/var/run/azure-vnet.json";

/// A datagram of the first pod to the internet, whatever becomes of it.
pub(super) fn speak(scene: &Scene) -> Result<()> {
    let socket = Udp::connect(&scene.pods[0].ns, SocketAddrV4::new(INTERNET, 9))?;
    ensure!(
        socket.is_unanswered(1, Duration::from_millis(100))?,
        "nobody is there to answer"
    );
    Ok(())
}

/// Lets the first pod's account say that it has so many flows.
pub(super) fn use_flows(scene: &Scene, flows: i32) -> Result<()> {
    let addr = scene.pods[0].addr.octets();
    let usage = Usage { flows, swept: 0 };
    Ok(hash::<[u8; 4], Usage>(scene, "cwy_usage")?.insert(addr, usage, 0)?)
}

/// Takes the first pod out of the state file.
pub(super) fn forget_endpoint(scene: &Scene) -> Result<()> {
    let id = scene.pods[0].container_id();
    scene.edit(ENDPOINTS, |state| {
        endpoints(state)?.retain(|_, endpoint| endpoint["ContainerID"] != id.as_str());
        Some(())
    })
}

/// The endpoints in the state file.
pub(super) fn endpoints(state: &mut Value) -> Option<&mut serde_json::Map<String, Value>> {
    let networks = &mut state["Network"]["ExternalInterfaces"]["eth0"]["Networks"];
    networks["azure"]["Endpoints"].as_object_mut()
}

/// A command of nft(8).
pub(super) fn nft(scene: &Scene, command: &str) -> Result<()> {
    scene
        .rig
        .node
        .ns
        .output("nft", &[command])
        .map(drop)
        .context("nftables")
}
