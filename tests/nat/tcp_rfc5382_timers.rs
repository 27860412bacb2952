//! RFC 5382: how long a connection that is idle is remembered.

use std::{io::Read, net::Shutdown};

use anyhow::{Result, ensure};
use causeway_tests::{craft, echo::Echo, raw, rules};

use crate::{
    family::{Family, of_both_families},
    mapping::{Flow, TCP, expect_seconds, sysctl},
    side::{Side, both, both_with},
    tcp_rfc5382::{PORT, SERVER, connect},
};

of_both_families!(
    req_5_an_established_connection_lives_for_hours,
    req_5_no_setting_makes_it_shorter,
    req_5_an_opening_connection_lives_for_four_minutes,
    req_5_a_closed_connection_lives_for_four_minutes,
    req_5a_the_timers_are_the_kernels_sysctls,
);

/// RFC 5382 REQ-5 | an idle established connection lives for 2 h 4 min at least | 5 days (`nf_conntrack_tcp_timeout_established`) | 5 days
/// | met
fn req_5_an_established_connection_lives_for_hours(family: Family) -> Result<()> {
    for seconds in both(family, established)? {
        expect_seconds(seconds, 432_000)?;
    }
    Ok(())
}

/// RFC 5382 REQ-5 (floor) | and not less by a setting either | a sysctl below 7,440 s counts as 7,440 s | follows the sysctl | met
fn req_5_no_setting_makes_it_shorter(family: Family) -> Result<()> {
    let timer = sysctl("tcp_timeout_established");
    let [causeway, nf_nat] = both_with(family, &[(&timer, "600")], established)?;
    expect_seconds(causeway, 7440)?;
    expect_seconds(nf_nat, 600)
}

fn established(side: &Side) -> Result<u32> {
    let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
    let mut connection = connect(side)?;
    connection.chat(3)?;
    let lifetime = side.lifetime(Flow(TCP, connection.0.local_addr()?))?;
    connection.chat(3)?;
    Ok(lifetime)
}

/// RFC 5382 REQ-5 (opening) | a connection that is not yet open lives for 4 min at least | 240 s | 120 s (`…_syn_sent`) | met
fn req_5_an_opening_connection_lives_for_four_minutes(family: Family) -> Result<()> {
    let lifetimes = both(family, |side| {
        rules::ignore_syns(side.internet(), SERVER)?;
        let from = side.at(&side.pod, PORT)?;
        let syn = craft::TcpFlags {
            syn: true,
            ..Default::default()
        };
        raw::send_ip(&side.pod.ns, &[craft::tcp(from, side.near_at(SERVER), syn, &[])?])?;
        side.settle()?;
        side.lifetime(Flow(TCP, from))
    })?;
    expect_seconds(lifetimes[0], 240)?;
    expect_seconds(lifetimes[1], 120)
}

/// RFC 5382 REQ-5 (closing) | a connection that both have closed lives for 4 min at least | 240 s | 120 s (`…_time_wait`) | met
fn req_5_a_closed_connection_lives_for_four_minutes(family: Family) -> Result<()> {
    let lifetimes = both(family, |side| {
        rules::send_no_resets(side.internet())?;
        let _echo = Echo::on(side.internet(), side.near_at(SERVER))?;
        let mut connection = connect(side)?;
        connection.chat(3)?;
        let flow = Flow(TCP, connection.0.local_addr()?);
        connection.0.shutdown(Shutdown::Write)?;
        ensure!(connection.0.read(&mut [0])? == 0);
        drop(connection);
        side.settle()?;
        side.lifetime(flow)
    })?;
    expect_seconds(lifetimes[0], 240)?;
    expect_seconds(lifetimes[1], 120)
}

/// RFC 5382 REQ-5a | the timers may be configurable | by conntrack's own sysctls, upwards | by the same | met
fn req_5a_the_timers_are_the_kernels_sysctls(family: Family) -> Result<()> {
    let timer = sysctl("tcp_timeout_established");
    for seconds in both_with(family, &[(&timer, "86400")], established)? {
        expect_seconds(seconds, 86_400)?;
    }
    Ok(())
}
