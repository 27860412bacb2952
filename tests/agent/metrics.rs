//! What the agent says: metrics, health, documents; and to those who are not polite.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddrV4, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    agent::Agent,
    echo::Echo,
    fabric::INTERNET,
    rig::Rig,
    rng::{Rng, seed},
    talk::Tcp,
};

const GUIDE: &str = include_str!("../../docs/metrics.md");

fn node_with_traffic() -> Result<(Rig, Agent)> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    {
        let _echo = Echo::start(&rig.fabric.internet, 7)?;
        Tcp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?.chat(5)?;
    }
    let agent = Agent::start(&rig.node)?;
    Ok((rig, agent))
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_there() -> Result<()> {
    let (rig, mut agent) = node_with_traffic()?;
    rig.node.root.write(
        "/etc/causeway/config.yaml",
        "apiServer: {vip: 10.226.0.4, backends: [10.226.0.5]}\n",
    )?;
    agent.wait_for("the API server", |agent| {
        Ok(agent.get("/metrics")?.contains("causeway_apiserver_vip_info"))
    })?;
    let text = agent.get("/metrics")?;
    let said: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let written: BTreeSet<&str> = GUIDE
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.starts_with("causeway_"))
        .map(|name| name.strip_suffix("_total").unwrap_or(name))
        .collect();
    ensure!(
        said == written,
        "only in the metrics: {:?}; only in docs/metrics.md: {:?}",
        said.difference(&written).collect::<Vec<_>>(),
        written.difference(&said).collect::<Vec<_>>()
    );
    ensure!(text.ends_with("# EOF\n"), "no end of the metrics");
    agent.end()
}

#[test]
fn the_numbers_are_those_of_the_node() -> Result<()> {
    let (rig, agent) = node_with_traffic()?;
    ensure!(agent.metric("causeway_pods{state=\"ready\"}")? == 1);
    ensure!(agent.metric("causeway_flows{state=\"of_pods\"}")? == 1);
    ensure!(agent.metric("causeway_datapath_loaded")? == 1);
    let used = "causeway_ipam_addresses{pool=\"10.240.0.0/16\",state=\"used\"}";
    ensure!(agent.metric(used)? == 1);
    let carried = agent.get("/metrics")?;
    ensure!(carried.contains("verdict=\"carried\""), "{carried}");
    let status: serde_json::Value = serde_json::from_str(&agent.get("/v1/status")?)?;
    ensure!(
        status["loaded"] == true && status["pods"]["ready"] == 1,
        "{status}"
    );
    for name in ["pods", "ranges", "leases", "config"] {
        let document: serde_json::Value = serde_json::from_str(&agent.get(&format!("/v1/{name}"))?)?;
        ensure!(document["apiVersion"] == "causeway/v1", "{document}");
    }
    // Over TCP, from the node: numbers and health, and not who talks with whom.
    let get = |path: &str| -> Result<String> {
        let mut stream = rig.node.ns.run(|| TcpStream::connect("127.0.0.1:61690"))??;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ensure!(get("/metrics")?.contains("causeway_build_info"));
    ensure!(get("/readyz")?.starts_with("HTTP/1.1 200"));
    ensure!(get("/v1/pods")?.starts_with("HTTP/1.1 404"));
    agent.end()
}

#[test]
fn whatever_is_sent_to_the_socket_the_agent_lives() -> Result<()> {
    let (_rig, agent) = node_with_traffic()?;
    let status = |request: &str| agent.ask(request).map(|(status, _)| status);
    ensure!(
        status("POST /v1/pods HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")? == 405
    );
    ensure!(status("GET /v1/../etc HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")? == 404);
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(1 << 20));
    // Cut off or refused.
    ensure!(!matches!(status(&long), Ok(200)));
    let mut rng = Rng::new(seed(21));
    for _ in 0..2_000 {
        let mut stream = std::os::unix::net::UnixStream::connect(agent.socket())?;
        let bytes: Vec<u8> = (0..rng.below(300)).map(|_| rng.below(256) as u8).collect();
        // The agent may hang up first.
        stream.write_all(&bytes).ok();
    }
    agent.get("/livez").context("after all that")?;
    agent.end()
}
