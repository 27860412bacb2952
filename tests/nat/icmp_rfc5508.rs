//! RFC 5508, NAT behavioral requirements for ICMP: queries.

use anyhow::{Result, ensure};
use causeway_tests::{capture::Capture, craft, fabric::INTERNET, raw};

use crate::{
    family::{Family, of_both_families},
    mapping::{Flow, expect_seconds, sysctl},
    side::{Side, agree, both, both_with},
    wire::{arrival, packet_of},
};

const ID: u16 = 0x1d;

of_both_families!(
    req_1_pings_pass_and_keep_their_identifier,
    req_1a_each_remote_has_a_mapping_of_its_own,
    req_2_a_query_mapping_lives_for_a_minute,
    req_2a_the_timer_is_the_kernels_sysctl,
);

/// RFC 5508 REQ-1 | queries of an inside host and their answers pass | echo, of every size, the identifier kept where it is free | the same | met
fn req_1_pings_pass_and_keep_their_identifier(family: Family) -> Result<()> {
    agree(family, |side| {
        let wire = Capture::start(side.internet(), "eth0")?;
        let pinger = side.pinger(&side.pod.ns, ID)?;
        for (number, len) in [0, 1, 56, 1472, 1473, 9000].into_iter().enumerate() {
            pinger.ping(side.near(), number as u16, len)?;
        }
        let requests = wire.stop().into_iter().filter_map(|frame| packet_of(&frame));
        let mut requests = requests.filter(|ip| ip.icmp == Some(side.echo()) && ip.dst == side.near());
        ensure!(requests.all(|ip| ip.src == side.node() && ip.src_port == ID && ip.checksums_good));
        Ok(())
    })
}

/// RFC 5508 REQ-1 (other queries) | and so do timestamp and address mask queries | a flow of its own for each kind of question | the same | met
#[test]
fn req_1_a_timestamp_query_is_answered() -> Result<()> {
    let [causeway, nf_nat] = both(Family::V4, |side| {
        let inside = Capture::start(&side.pod.ns, "eth0")?;
        let query = craft::icmp(side.pod.addr, INTERNET, (13, 0), [0, 7, 0, 1], &[0; 12])?;
        raw::send_ip(&side.pod.ns, &[query])?;
        Ok(arrival(&inside, |ip| ip.icmp == Some((14, 0))).is_some())
    })?;
    ensure!(causeway && nf_nat, "answered: {causeway}, {nf_nat}");
    Ok(())
}

/// RFC 5508 REQ-1a | the mapping of an identifier does not depend on the remote | a mapping for each remote; the identifier is kept for each of them where it can be |
/// the same | by design not: as with ports, see RFC 4787 REQ-1
fn req_1a_each_remote_has_a_mapping_of_its_own(family: Family) -> Result<()> {
    let ids = agree(family, |side| {
        let neighbour = side.rig.pod("b")?;
        side.pinger(&neighbour.ns, ID)?.ping(side.far_at(0).ip(), 1, 8)?;
        let wire = Capture::start(side.internet(), "eth0")?;
        let pinger = side.pinger(&side.pod.ns, ID)?;
        pinger.ping(side.near(), 1, 8)?;
        pinger.ping(side.far_at(0).ip(), 2, 8)?;
        let requests = wire.stop().into_iter().filter_map(|frame| packet_of(&frame));
        let ids: Vec<u16> = requests
            .filter(|ip| ip.icmp == Some(side.echo()))
            .map(|ip| ip.src_port)
            .collect();
        ensure!(ids.len() == 2, "{ids:?}");
        Ok((ids[0] == ID, ids[1] == ID))
    })?;
    ensure!(ids == (true, false), "{ids:?}");
    Ok(())
}

/// RFC 5508 REQ-2 | an idle query mapping lives for 60 s at least | 60 s | 30 s (`nf_conntrack_icmp_timeout`, `…_icmpv6_timeout`) | met
fn req_2_a_query_mapping_lives_for_a_minute(family: Family) -> Result<()> {
    let [causeway, nf_nat] = both(family, lifetime_of_a_ping)?;
    expect_seconds(causeway, 60)?;
    expect_seconds(nf_nat, 30)
}

/// RFC 5508 REQ-2a | that timer should be configurable | by the kernel's `nf_conntrack_icmp_timeout` and `…_icmpv6_timeout`, the longer one for both families, not below 60 s | by
/// the same, each for its own | met
fn req_2a_the_timer_is_the_kernels_sysctl(family: Family) -> Result<()> {
    let timer = sysctl(match family {
        Family::V4 => "icmp_timeout",
        Family::V6 => "icmpv6_timeout",
    });
    for (seconds, expected) in [("10", [60, 10]), ("444", [444, 444])] {
        let lifetimes = both_with(family, &[(&timer, seconds)], lifetime_of_a_ping)?;
        for (seconds, expected) in lifetimes.into_iter().zip(expected) {
            expect_seconds(seconds, expected)?;
        }
    }
    Ok(())
}

fn lifetime_of_a_ping(side: &Side) -> Result<u32> {
    side.pinger(&side.pod.ns, ID)?.ping(side.near(), 1, 8)?;
    side.lifetime(Flow(side.icmp(), side.at(&side.pod, ID)?))
}
