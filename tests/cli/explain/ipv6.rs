//! The same for packets of IPv6: what is said of one is what becomes of it.

use anyhow::{Context, Result, bail, ensure};
use causeway_tests::{
    dual_stack::{Connection, VNET},
    netns::Netns,
    rig::Rig,
};
use serde_json::Value;

const PORT: u16 = 7000;

/// Asks about a packet. The programs it passes with their reasons, and the outcome.
fn ask(rig: &Rig, packet: &str) -> Result<(Vec<(String, String)>, String)> {
    let words: Vec<&str> = ["explain"].into_iter().chain(packet.split(' ')).collect();
    let said = rig.node.causeway(&[&words[..], &["--json"]].concat())?;
    let fate: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let hooks = fate["hooks"].as_array().with_context(|| said.clone())?;
    let passages = hooks
        .iter()
        .map(|hook| (text(&hook["program"]), text(&hook["reason"])))
        .collect();
    ensure!(fate["translated"] == false, "{said}");
    Ok((passages, text(&fate["outcome"])))
}

fn expect(rig: &Rig, packet: &str, passages: &[(&str, &str)], outcome: &str) -> Result<()> {
    let (said, ends) = ask(rig, packet)?;
    let said: Vec<(&str, &str)> = said
        .iter()
        .map(|(program, reason)| (&**program, &**reason))
        .collect();
    ensure!(said == passages && ends == outcome, "{packet}: {said:?}, {ends}");
    Ok(())
}

#[test]
fn packets_of_ipv6_become_what_was_predicted() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let (from, pod) = (a.addr_v6()?, b.addr_v6()?);
    let ways: [(&Netns, _, [&str; 2], &str); 2] = [
        (
            &rig.fabric.vnet,
            VNET,
            ["cwy_to_wire6", "cwy_from_wire6"],
            "carried_to_uplink",
        ),
        (&b.ns, pod, ["cwy_to_pod6", "cwy_from_pod6"], "carried_to_pod"),
    ];
    for (to, address, [leaves_by, answers_by], carried) in ways {
        // What the second program says of the first packet is what is counted when it comes.
        let (passages, outcome) = ask(&rig, &format!("{from} [{address}]:{PORT} tcp"))?;
        let [(entered_by, offered), (left_by, learnt)] = &passages[..] else {
            bail!("to {address}: {passages:?}");
        };
        ensure!(entered_by == "cwy_from_pod6" && offered == "offered" && left_by == leaves_by);
        ensure!(outcome == "stack", "to {address}: {outcome}");
        let before = rig.node.count(learnt)?;
        let mut connection = Connection::open(&a.ns, to, address, PORT)?;
        connection.chat(5)?;
        ensure!(rig.node.count(learnt)? > before, "nothing was {learnt}");

        let client = connection.client.local_addr()?;
        let there = format!("{client} [{address}]:{PORT} tcp continues");
        let back = format!("[{address}]:{PORT} {client} tcp continues");
        let before = rig.node.count(carried)?;
        expect(&rig, &there, &[("cwy_from_pod6", carried)], "carried")?;
        expect(&rig, &back, &[(answers_by, "carried_to_pod")], "carried")?;
        connection.chat(20)?;
        ensure!(
            rig.node.count(carried)? >= before + 20,
            "packets to {address} were not {carried}"
        );
    }
    let nobody = "fd00:10::ffff";
    let outside = format!("[{VNET}]:1 [{nobody}]:{PORT} udp");
    expect(&rig, &outside, &[("cwy_from_wire6", "not_to_pod")], "stack")?;
    let tunnel = format!("{from} {VNET} 47");
    let passages = [
        ("cwy_from_pod6", "other_protocol"),
        ("cwy_to_wire6", "recorded_kernel"),
    ];
    expect(&rig, &tunnel, &passages, "stack")
}

#[test]
fn without_pods_of_ipv6_it_is_the_kernels() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    expect(&rig, "fd00:10::5 [fd00:10::6]:443 tcp", &[], "stack")?;
    let text = rig
        .node
        .causeway(&["explain", "fd00:10::5", "[fd00:10::6]:443", "tcp"])?;
    ensure!(text.contains("no pod has IPv6 here"), "{text}");
    let mixed = format!("{} [fd00:10::6]:443 tcp", pod.addr);
    ensure!(ask(&rig, &mixed).is_err(), "two families in one packet");
    Ok(())
}
