//! How the programs are held on their hooks.

use std::net::SocketAddrV4;

use anyhow::{Context, Result, ensure};
use causeway_tests::{echo::Echo, fabric::INTERNET, kernel, rig::Rig, talk::Tcp};
use serde_json::Value;

#[test]
fn a_hook_is_a_link_where_the_kernel_has_tcx_and_a_filter_where_it_has_not() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let host_if = rig.node.host_interface(&pod)?;
    for interface in ["eth0", &host_if] {
        for direction in ["ingress", "egress"] {
            let filters = rig
                .node
                .ns
                .output("tc", &["filter", "show", "dev", interface, direction])?;
            ensure!(
                filters.contains("cwy_") != kernel::has_tcx()?,
                "{interface} {direction}: {filters}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_doctor_says_what_the_kernel_is_without_and_finds_nothing_wrong_with_it() -> Result<()> {
    let rig = Rig::causeway()?;
    let _pod = rig.pod("a")?;
    let command = rig.node.causeway_command(&["doctor", "--json"])?.output()?;
    let diagnosis: Value = serde_json::from_slice(&command.stdout)?;
    let lacks = diagnosis["lacks"].as_array().context("a list")?;
    let is_without_tcx = lacks
        .iter()
        .filter_map(Value::as_str)
        .any(|lack| lack.starts_with("tcx"));
    ensure!(is_without_tcx != kernel::has_tcx()?, "{diagnosis:#}");
    // A node of the rig's has no agent and no configuration of its own: of the kernel nothing may be wrong.
    let codes = diagnosis["findings"].as_array().context("a list")?;
    let of_the_kernel = |finding: &&Value| {
        finding["code"]
            .as_str()
            .is_some_and(|code| code.starts_with("CWY00"))
    };
    ensure!(codes.iter().find(of_the_kernel).is_none(), "{diagnosis:#}");
    Ok(())
}

/// A filter of ours needs a clsact, which such a qdisc keeps out: the plug-in takes nothing away that others have put there.
#[test]
fn an_ingress_qdisc_of_others_on_the_uplink_is_no_matter_with_tcx_and_named_without() -> Result<()> {
    let rig = Rig::causeway()?;
    let tc = |words: &str| rig.node.ns.output("tc", &words.split(' ').collect::<Vec<_>>());
    tc("qdisc add dev eth0 ingress")?;
    if !kernel::has_tcx()? {
        let refused = rig.pod("a").map(drop).unwrap_err().to_string();
        ensure!(refused.contains("tc qdisc replace dev eth0 clsact"), "{refused}");
        tc("qdisc replace dev eth0 clsact").or_else(|_| {
            tc("qdisc del dev eth0 ingress")?;
            tc("qdisc add dev eth0 clsact")
        })?;
    }
    let pod = rig.pod("b")?;
    let _echo = Echo::start(&rig.fabric.internet, 7)?;
    Tcp::connect(&pod.ns, SocketAddrV4::new(INTERNET, 7))?.chat(3)
}
