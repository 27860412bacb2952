//! What the agent may cost.

use std::fs;

use anyhow::{Context, Result, ensure};
use causeway_tests::{agent::Agent, rig::Rig};

/// Bytes.
fn resident(agent: &Agent) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kilobytes.context("no VmRSS")? * 1024)
}

#[test]
fn the_agent_of_many_pods_has_room_in_twelve_mebibytes() -> Result<()> {
    let rig = Rig::with(causeway_tests::node::Datapath::Causeway, 60)?;
    let _pods: Vec<_> = (0..50)
        .map(|n| rig.pod(&format!("pod-{n}")))
        .collect::<Result<_>>()?;
    let mut agent = Agent::start(&rig.node)?;
    let before = agent.metric("causeway_reconcile_passes_total")?;
    agent.wait_for("two more passes", |agent| {
        agent.get("/v1/status")?;
        Ok(agent.metric("causeway_reconcile_passes_total")? >= before + 2)
    })?;
    let resident = resident(&agent)?;
    ensure!(resident <= 12 << 20, "{} KiB are resident", resident >> 10);
    agent.end()
}
