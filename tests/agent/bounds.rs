//! What the agent may cost.

use std::{
    fs,
    net::{SocketAddrV4, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use causeway_common::{
    flow::{FlowEntry, State},
    maps::SCHEMA,
    tuple::{FlowKey, TCP},
};
use causeway_tests::{
    agent::Agent,
    fabric::{NODE, VNET},
    node::Datapath,
    rig::Rig,
};

use crate::config::seen_from;

/// Bytes.
fn resident(agent: &Agent) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kilobytes.context("no VmRSS")? * 1024)
}

#[test]
fn the_agent_of_many_pods_has_room_in_twelve_mebibytes() -> Result<()> {
    let rig = Rig::with(Datapath::Causeway, 60)?;
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

/// What the agent costs on a full node, for people who measure: 250 pods, 100,000 flows.
#[test]
#[ignore = "minutes"]
fn long_what_the_agent_costs_on_a_full_node() -> Result<()> {
    const PODS: u8 = 250;
    const FLOWS: u32 = 100_000;
    let rig = Rig::with(Datapath::Causeway, PODS)?;
    let pods: Vec<_> = (0..PODS)
        .map(|n| rig.pod(&format!("pod-{n}")))
        .collect::<Result<_>>()?;
    fill(&rig, FLOWS)?;

    let started = Instant::now();
    let mut agent = Agent::start(&rig.node)?;
    println!(
        "started and asked in {:?}: {}",
        started.elapsed(),
        agent.log().trim_end()
    );
    // The first passes find out what the next ones know.
    thread::sleep(Duration::from_secs(10));
    let (cpu, since) = (cpu_ticks(&agent)?, Instant::now());
    thread::sleep(Duration::from_mins(1));
    // USER_HZ is 100 (times(2)).
    let share = (cpu_ticks(&agent)? - cpu) / since.elapsed().as_secs_f64();
    println!("idle: {share:.2} % of a CPU");
    let scrape = Instant::now();
    agent.get("/metrics")?;
    println!("a scrape takes {:?}", scrape.elapsed());
    println!("{} KiB resident", resident(&agent)? >> 10);

    let vnet = rig.fabric.vnet.bind(|| UdpSocket::bind((VNET, 9)))?;
    vnet.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut latencies: Vec<Duration> = (0..100)
        .map(|turn| {
            let (list, expected) = if turn % 2 == 0 {
                ("nonMasqueradeCIDRs: [192.168.0.0/16]", NODE)
            } else {
                ("nonMasqueradeCIDRs: [10.0.0.0/8]", pods[0].addr)
            };
            rig.node.root.write("/etc/config/ip-masq-agent", list)?;
            let written = Instant::now();
            while seen_from(&pods[0], &vnet, SocketAddrV4::new(VNET, 9))? != expected {
                ensure!(
                    written.elapsed() < Duration::from_secs(5),
                    "never in force: {list}"
                );
            }
            Ok(written.elapsed())
        })
        .collect::<Result<_>>()?;
    latencies.sort_unstable();
    println!(
        "from a written list to packets: median {:?}, 99th {:?}",
        latencies[50], latencies[98]
    );
    let resident = resident(&agent)?;
    println!("{} KiB resident after it", resident >> 10);
    agent.wait_for("readiness", |agent| Ok(agent.get("/readyz").is_ok()))?;
    ensure!(resident <= 12 << 20, "{} KiB are resident", resident >> 10);
    agent.end()
}

/// Entries as those of established flows, two a flow.
fn fill(rig: &Rig, flows: u32) -> Result<()> {
    let pin = format!("/sys/fs/bpf/causeway/v{SCHEMA}/maps/cwy_flows");
    let data = MapData::from_pin(rig.node.root.join(&pin))?;
    let mut table: HashMap<_, FlowKey<[u8; 4]>, FlowEntry<[u8; 4]>> = HashMap::try_from(Map::HashMap(data))?;
    for flow in 0..flows {
        let [_, high, middle, low] = flow.to_be_bytes();
        let forward = FlowKey {
            src: [10, 240, 0, 5],
            dst: [203, high, middle, low],
            src_port: [200, 0],
            dst_port: [1, 187],
            protocol: TCP,
            _pad: [0; 3],
        };
        let entry = FlowEntry {
            state: State::CARRIED,
            ..FlowEntry::offer(3, [2; 6], causeway::datapath::now())
        };
        table.insert(forward, entry, 0)?;
        table.insert(forward.reversed(), entry, 0)?;
    }
    Ok(())
}

/// User and system time of all threads, in hundredths of a second (proc_pid_stat(5)).
fn cpu_ticks(agent: &Agent) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid()))?;
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    Ok(fields[11].parse::<f64>()? + fields[12].parse::<f64>()?)
}
