//! What the agent may cost.

use std::{
    fs,
    net::{SocketAddrV4, UdpSocket},
    process::Command,
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
use rustix::process::{Pid, Signal, kill_process};

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

/// System calls of an agent and its threads within a time, by strace.
fn calls_within(agent: &Agent, time: Duration) -> Result<usize> {
    let counts = tempfile::NamedTempFile::new()?;
    let mut strace = Command::new("strace")
        .args(["-q", "-f", "-c", "-p", &agent.pid().to_string(), "-o"])
        .arg(counts.path())
        .spawn()
        .context("cannot run strace")?;
    thread::sleep(time);
    kill_process(Pid::from_child(&strace), Signal::INT)?;
    strace.wait()?;
    let text = fs::read_to_string(counts.path())?;
    let total = text.lines().find(|line| line.ends_with("total"));
    let calls = total.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    calls.with_context(|| format!("no total in\n{text}"))
}

/// What an idle agent does, counted: on a machine that does other things its time says little.
#[test]
fn an_idle_agent_asks_for_little() -> Result<()> {
    const PODS: u8 = 20;
    /// Of a pass, beside two for each pod; and how many passes are made in the time.
    const CALLS: usize = 90;
    const PASSES: usize = 3;
    let rig = Rig::with(Datapath::Causeway, PODS + 10)?;
    let _pods: Vec<_> = (0..PODS)
        .map(|n| rig.pod(&format!("pod-{n}")))
        .collect::<Result<_>>()?;
    let mut agent = Agent::start(&rig.node)?;
    let before = agent.metric("causeway_reconcile_passes_total")?;
    // The first passes find out what the next ones know.
    agent.wait_for("two more passes", |agent| {
        thread::sleep(Duration::from_millis(500));
        Ok(agent.metric("causeway_reconcile_passes_total")? >= before + 2)
    })?;
    let calls = calls_within(&agent, Duration::from_secs(10))?;
    let most = PASSES * (CALLS + 2 * usize::from(PODS));
    println!("{calls} system calls in ten seconds");
    ensure!(calls <= most, "{calls} system calls in ten seconds, not {most}");
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
    // A node that has been like that for a while is swept every four minutes.
    for _ in 0..2 {
        rig.node.causeway(&["sweep"])?;
    }

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
    // One sweep, and two looks at everything.
    thread::sleep(Duration::from_mins(4));
    // USER_HZ is 100 (times(2)).
    let share = (cpu_ticks(&agent)? - cpu) / since.elapsed().as_secs_f64();
    println!(
        "idle: {share:.2} % of a CPU, {} KiB resident",
        resident(&agent)? >> 10
    );
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
