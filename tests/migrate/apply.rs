//! There and back under traffic.

use anyhow::Result;
use causeway_tests::{fabric::INTERNET, netns::Netns, talk::Tcp};
use std::net::SocketAddrV4;

use crate::{
    incumbent::{PORT, Site},
    snapshot::Snapshot,
    traffic::{Lost, Traffic},
};

/// Five datagram flows lose two of their packets each at most.
fn assert_few(lost: &Lost) {
    assert!(lost.lost <= 10 && lost.lost < lost.asked / 2, "{lost:?}");
}

fn round_trips(times: u32) -> Result<()> {
    let site = Site::new(3)?;
    let mut traffic = Traffic::open(&site)?;
    let before = Snapshot::of(&site)?;
    for trip in 0..times {
        let (applied, lost) = traffic.during(|| site.migrate("--apply"))?;
        println!("trip {trip}: {applied}, {lost:?}");
        assert_few(&lost);
        traffic.assert_works()?;
        assert_eq!(site.node.causeway_json("status")?["uplink"]["interface"], "eth0");
        let (back, lost) = traffic.during(|| site.migrate("--rollback"))?;
        println!("trip {trip}: {back}, {lost:?}");
        assert_few(&lost);
        traffic.assert_works()?;
        Snapshot::of(&site)?.assert_is(&before);
        site.assert_no_leak();
    }
    Ok(())
}

#[test]
fn flows_live_through_five_round_trips_and_the_node_is_as_it_was() -> Result<()> {
    round_trips(5)
}

#[test]
#[ignore = "some minutes"]
fn long_flows_live_through_a_hundred_round_trips() -> Result<()> {
    round_trips(100)
}

#[test]
fn a_node_that_was_taken_over_needs_neither_bridge_nor_rule() -> Result<()> {
    let site = Site::new(3)?;
    let mut traffic = Traffic::open(&site)?;
    let applied = site.migrate("--apply")?;
    assert_eq!(applied["pods"], 3);
    assert_eq!(
        (&applied["carried"], &applied["kernel"]),
        (&7.into(), &2.into()),
        "{applied}"
    );
    traffic.assert_works()?;
    // The bridge carries nothing, and no rule translates.
    assert_eq!(
        site.node.ns.output("ip", &["link", "show", "master", "azure0"])?,
        ""
    );
    assert!(
        !site
            .node
            .ns
            .output("iptables-save", &["-t", "nat"])?
            .contains("168.63.129.16")
    );
    let mut tcp = Tcp::connect(&site.pods[0].ns, SocketAddrV4::new(INTERNET, PORT))?;
    tcp.chat(5)?;
    assert_eq!(
        site.node.flow_states("tcp", tcp.local()?)?,
        ["carried", "carried"]
    );
    site.assert_no_leak();
    Ok(())
}

#[test]
fn pods_that_come_and_go_meanwhile_are_on_the_bridge_afterwards_or_gone() -> Result<()> {
    let site = Site::new(3)?;
    site.migrate("--apply")?;
    // One of theirs goes, and one of ours gets an address.
    let theirs = &site.pods[0];
    let ours = site.node.add("ours")?;
    let outside = SocketAddrV4::new(INTERNET, PORT);
    let _server = causeway_tests::echo::Echo::start(&site.fabric.internet, PORT)?;
    let mut open = Tcp::connect(&ours.ns, outside)?;
    open.chat(3)?;
    theirs.ns.ip("link del eth0")?;
    let back = site.migrate("--rollback")?;
    assert_eq!(back["pods"], 3, "{back}");
    open.chat(3)?;
    Tcp::connect(&ours.ns, outside)?.chat(3)?;
    reach(&site.pods[1].ns, &ours.addr.to_string())?;
    reach(&ours.ns, &site.pods[2].addr.to_string())?;
    reach(&site.fabric.vnet, &ours.addr.to_string())?;
    let host_if = site.node.host_interface(&ours)?;
    let ports = site.node.ns.output("bridge", &["link", "show"])?;
    assert!(ports.contains(&host_if), "{ports}");
    let rules = site
        .node
        .ns
        .output("ebtables", &["-t", "nat", "-L", "PREROUTING"])?;
    assert!(rules.contains(&format!("--ip-dst {} ", ours.addr)), "{rules}");
    assert!(!rules.contains(&format!("--ip-dst {} ", theirs.addr)), "{rules}");
    site.assert_no_leak();
    Ok(())
}

fn reach(ns: &Netns, to: &str) -> Result<String> {
    ns.output("ping", &["-c1", "-i0.2", "-w5", to])
}
