//! What the other commands show: whether all is well, translations, the busiest pods.

use std::{
    net::{SocketAddrV4, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE, WIRESERVER},
    node::Datapath,
    talk::Udp,
};

use crate::scene::Scene;

#[test]
fn the_first_line_of_status_says_whether_all_is_well() -> Result<()> {
    let scene = Scene::with(Datapath::Causeway, 20, 1)?;
    let status =
        |arguments: &[&str]| -> Result<String> { Ok(String::from_utf8(scene.run(arguments)?.stdout)?) };
    let text = status(&["status"])?;
    ensure!(text.lines().next() == Some("node      all is well"), "{text}");
    let verbose = status(&["status", "--verbose"])?;
    ensure!(verbose == status(&["status", "--all"])?, "{verbose}");
    for word in ["tcpEstablished", "65536 flows a pod", "usage     10.240.0.5 0"] {
        ensure!(
            verbose.contains(word) && !text.contains(word),
            "{word}: {verbose}"
        );
    }
    scene.rig.node.ns.sysctl("net/ipv4/ip_forward", "0")?;
    let text = status(&["status"])?;
    ensure!(text.starts_with("node      CWY004"), "{text}");
    let (document, exit) = scene.json(&["status", "--json"])?;
    ensure!(exit == 0 && document["healthy"] == false, "{document}");
    ensure!(
        document["problems"] == serde_json::json!(["CWY004"]),
        "{document}"
    );
    Ok(())
}

#[test]
fn monitor_shows_a_flow_that_begins_and_a_packet_that_is_dropped() -> Result<()> {
    let scene = Scene::with(Datapath::Causeway, 20, 1)?;
    let _far = Echo::start(&scene.rig.fabric.internet, 9)?;
    let shown = |only: &str| -> Result<Vec<serde_json::Value>> {
        let text = scene
            .run(&["monitor", "--no-wait", "--json", "--only", only])?
            .stdout;
        let lines = str::from_utf8(&text)?.lines();
        lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
    };
    let (from, to) = (
        SocketAddrV4::new(scene.pods[0].addr, 4000),
        SocketAddrV4::new(INTERNET, 9),
    );
    Udp::connect_from(&scene.pods[0].ns, from, to)?.chat(3)?;
    let flows = shown("flows")?;
    let begun = flows.iter().filter(|event| event["reason"] == "snat_promoted");
    let begun: Vec<_> = begun.collect();
    ensure!(begun.len() == 1, "{flows:?}");
    ensure!(
        begun[0]["kind"] == "NewFlow" && begun[0]["src"] == from.ip().to_string() && begun[0]["dstPort"] == 9,
        "{begun:?}"
    );

    // What is not asked for is gone with what was: one reader reads all.
    let guarded = SocketAddrV4::new(WIRESERVER, 80);
    let pod = &scene.pods[0].ns;
    let patience = Duration::from_millis(100);
    ensure!(
        pod.run(|| TcpStream::connect_timeout(&guarded.into(), patience))?
            .is_err()
    );
    let drops = shown("drops")?;
    ensure!(
        drops
            .iter()
            .any(|event| event["kind"] == "Dropped" && event["reason"] == "wireserver"),
        "{drops:?}"
    );
    ensure!(drops.iter().all(|event| event["kind"] == "Dropped"), "{drops:?}");
    Ok(())
}

#[test]
fn a_translation_is_one_row_and_a_flow_between_pods_none() -> Result<()> {
    let scene = Scene::with(Datapath::Causeway, 20, 2)?;
    let far = Echo::start(&scene.rig.fabric.internet, 9)?;
    let near = Echo::start(&scene.pods[1].ns, 9)?;
    let from = SocketAddrV4::new(scene.pods[0].addr, 4000);
    for to in [
        SocketAddrV4::new(INTERNET, 9),
        SocketAddrV4::new(scene.pods[1].addr, 9),
    ] {
        Udp::connect_from(&scene.pods[0].ns, from, to)?.chat(3)?;
    }
    let text = String::from_utf8(scene.run(&["nat", "list"])?.stdout)?;
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    ensure!(rows.len() == 2, "{text}");
    let (source, seen_as, to) = (from.to_string(), format!("{NODE}:4000"), format!("{INTERNET}:9"));
    ensure!(
        rows[1][..5] == ["udp", &source, &seen_as, &to, "carried"],
        "{text}"
    );
    let (document, _) = scene.json(&["nat", "list", "--json", "--dst", "10.0.0.0/8"])?;
    ensure!(document["translations"] == serde_json::json!([]), "{document}");

    let (top, exit) = scene.json(&["top", "--once", "-n", "1", "--json"])?;
    let first = top["pods"][0].clone();
    ensure!(
        exit == 0 && top["omitted"] == 1 && first["name"] == "default/pod0",
        "{top}"
    );
    ensure!(
        first["flows"] == 2 && first["carried"].as_u64() >= Some(2),
        "{top}"
    );
    let text = String::from_utf8(scene.run(&["top", "--once"])?.stdout)?;
    let row = text.lines().nth(1).context("no row")?;
    ensure!(
        row.starts_with("10.240.0.5") && row.ends_with("default/pod0"),
        "{text}"
    );
    drop((far, near));
    Ok(())
}
