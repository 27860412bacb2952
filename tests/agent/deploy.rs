//! What is shipped beside the program: it names metrics and reasons that exist, and asks for the capabilities with which
//! the agent does all its work.

use std::{collections::BTreeSet, net::SocketAddrV4};

use anyhow::{Context, Result, ensure};
use causeway_common::reason::Reason;
use causeway_tests::{agent::Agent, echo::Echo, fabric::INTERNET, rig::Rig, talk::Tcp};

use crate::hooks::take_off;

const ALERTS: &str = include_str!("../../deploy/monitoring/alerts.yaml");
const DASHBOARD: &str = include_str!("../../deploy/monitoring/grafana.json");
const METRICS: &str = include_str!("../../docs/metrics.md");
const UNIT: &str = include_str!("../../deploy/systemd/causeway-agent.service");
const DAEMON_SET: &str = include_str!("../../deploy/kubernetes/base/daemonset.yaml");

/// The words of a text that begin so.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with(prefix))
        .collect()
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() -> Result<()> {
    let documented = words(METRICS, "causeway_");
    for (name, text) in [("alerts.yaml", ALERTS), ("grafana.json", DASHBOARD)] {
        let asked = words(text, "causeway_");
        ensure!(asked.len() > 5, "{name} asks for nothing");
        let unknown: Vec<_> = asked.difference(&documented).collect();
        ensure!(unknown.is_empty(), "{name} asks for {unknown:?}");
    }
    serde_json::from_str::<serde_json::Value>(DASHBOARD).context("grafana.json")?;
    Ok(())
}

#[test]
fn alerts_name_reasons_that_exist() -> Result<()> {
    let named: Vec<&str> = ALERTS
        .split("reason=")
        .skip(1)
        .filter_map(|rest| rest.split('"').nth(1))
        .flat_map(|list| list.split('|'))
        .collect();
    ensure!(named.len() >= 8, "only {named:?}");
    for name in named {
        ensure!(
            Reason::ALL.iter().any(|reason| reason.name() == name),
            "{name} is no reason"
        );
    }
    Ok(())
}

/// Without the prefix `CAP_`, lower case.
fn capabilities_of_the_unit() -> Result<Vec<String>> {
    let line = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line.context("the unit bounds no capabilities")?.split(' ');
    Ok(names
        .map(|name| name.trim_start_matches("CAP_").to_lowercase())
        .collect())
}

#[test]
fn unit_and_daemon_set_ask_for_the_same_capabilities() -> Result<()> {
    let quoted: Vec<String> = capabilities_of_the_unit()?
        .iter()
        .map(|name| format!("{:?}", name.to_uppercase()))
        .collect();
    let list = format!("add: [{}]", quoted.join(", "));
    ensure!(DAEMON_SET.contains(&list), "no {list} in the DaemonSet");
    ensure!(!DAEMON_SET.contains("privileged: true"));
    Ok(())
}

/// A datapath that a pod has loaded is adopted, mended, configured and upgraded with these capabilities alone.
#[test]
fn the_agent_works_with_the_capabilities_of_the_unit() -> Result<()> {
    let mut bounds = "--bounding-set=-all".to_owned();
    for name in capabilities_of_the_unit()? {
        bounds += ",+";
        bounds += &name;
    }
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    let server = SocketAddrV4::new(INTERNET, 7);
    let mut tcp = Tcp::connect(&pod.ns, server)?;
    tcp.chat(3)?;
    rig.node.root.write("/run/causeway/build", "another")?;
    let mut agent = Agent::start_through(&rig.node, &["setpriv", &bounds, "--inh-caps=-all"])?;
    let held = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let effective = held
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // CAP_NET_ADMIN is 12, CAP_PERFMON 38, CAP_BPF 39 (capabilities(7)).
    ensure!(effective == Some(1 << 12 | 1 << 38 | 1 << 39), "{effective:x?}");
    ensure!(
        agent.log().contains("the programs are exchanged"),
        "{}",
        agent.log()
    );
    agent.get("/readyz")?;
    rig.node.ns.ip(&format!("route del {}/32", pod.addr))?;
    let host_if = rig.node.host_interface(&pod)?;
    take_off(&rig, "eth0", "egress")?;
    take_off(&rig, &host_if, "ingress")?;
    rig.node
        .root
        .write("/etc/config/ip-masq-agent", "nonMasqueradeCIDRs: [10.0.0.0/8]\n")?;
    agent.wait_for("repair", |agent| {
        let ranges = rig.node.causeway_json("ranges")?.to_string();
        Ok(agent.metric("causeway_reconcile_mended_total")? >= 3 && ranges.contains("169.254.0.0/16"))
    })?;
    agent.wait_for("readiness", |agent| Ok(agent.get("/readyz").is_ok()))?;
    tcp.chat(3)?;
    Tcp::connect(&pod.ns, server)?.chat(3)?;
    agent.end()
}

/// The verifier compares no pointers to a packet for whom the kernel does not trust with them: without CAP_PERFMON no program
/// is loaded, whoever asked is told, and those that are there go on.
#[test]
fn without_perfmon_the_programs_of_before_stay_and_the_hint_names_it() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    let mut tcp = Tcp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?;
    tcp.chat(3)?;
    rig.node.root.write("/run/causeway/build", "another")?;
    let upgrade = |capabilities: &str| -> Result<_> {
        let bounds = format!("--bounding-set=-all,{capabilities}");
        let through = ["setpriv", &bounds, "--inh-caps=-all"];
        let output = rig.node.causeway_through(&through, &["upgrade"])?.output()?;
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    };
    let (succeeded, said) = upgrade("+bpf,+net_admin")?;
    ensure!(
        !succeeded && said.contains("CAP_PERFMON as well where it loads programs"),
        "{said}"
    );
    tcp.chat(3)?;
    Tcp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?.chat(3)?;
    let (succeeded, said) = upgrade("+bpf,+net_admin,+perfmon")?;
    ensure!(succeeded, "{said}");
    tcp.chat(3)
}
