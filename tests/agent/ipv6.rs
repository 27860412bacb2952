//! The half of the datapath that serves IPv6 is kept as the other is.

use anyhow::{Result, ensure};
use aya::maps::{HashMap, Map, ProgramArray};
use causeway_common::maps::{IfaceEntry, PodEntry, Usage};
use causeway_tests::{agent::Agent, dual_stack::Connection, rig::Rig};

use crate::healing::{map, pins};

/// What the programs for IPv6 depend on, each thing by itself, under a pod of both families.
#[test]
fn the_half_that_serves_ipv6() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let to = b.addr_v6()?;
    let index = rig.node.ns.ifindex(&rig.node.host_interface(&b)?)?;
    let mut agent = Agent::start(&rig.node)?;
    let mut flow = Connection::open(&a.ns, &b.ns, to, 7000)?;
    flow.chat(5)?;
    let mut pods: HashMap<_, [u8; 16], PodEntry> = HashMap::try_from(Map::HashMap(map(&rig, "cwy_pods6")?))?;
    let mut ifaces: HashMap<_, u32, IfaceEntry<[u8; 16]>> =
        HashMap::try_from(Map::HashMap(map(&rig, "cwy_ifaces6")?))?;
    let mut usage: HashMap<_, [u8; 16], Usage> = HashMap::try_from(Map::HashMap(map(&rig, "cwy_usage6")?))?;
    let mut programs = ProgramArray::try_from(Map::ProgramArray(map(&rig, "cwy_ipv6")?))?;
    let tree = pins(&rig);

    pods.remove(&to.octets())?;
    agent.wait_for("the entry in cwy_pods6", |_| {
        Ok(pods.get(&to.octets(), 0).is_ok_and(|pod| pod.is_ready()))
    })?;
    ifaces.remove(&index)?;
    agent.wait_for("the entry in cwy_ifaces6", |_| Ok(ifaces.get(&index, 0).is_ok()))?;
    usage.remove(&to.octets())?;
    agent.wait_for("the pod's account", |_| Ok(usage.get(&to.octets(), 0).is_ok()))?;
    usage.remove(&[0; 16])?;
    agent.wait_for("the wire's account", |_| Ok(usage.get(&[0; 16], 0).is_ok()))?;
    programs.clear_index(&0)?;
    agent.wait_for("the programs behind those for IPv4", |_| {
        let before = rig.node.count("ipv6")?;
        flow.chat(5)?;
        Ok(rig.node.count("ipv6")? == before)
    })?;
    for pin in ["maps/cwy_flows6", "progs/cwy_from_pod6"] {
        std::fs::remove_file(tree.join(pin))?;
        agent.wait_for(pin, |_| Ok(tree.join(pin).exists()))?;
    }
    let before = rig.node.count("carried_to_pod")?;
    flow.chat(20)?;
    ensure!(
        rig.node.count("carried_to_pod")? >= before + 40,
        "the flow is not carried any more"
    );
    agent.end()
}
