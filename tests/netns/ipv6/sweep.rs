//! Flows of IPv6 that are over are forgotten, by a schedule of their own.

use std::{
    fs::File,
    thread::sleep,
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};
use causeway_tests::{
    dual_stack::{Connection, Datagrams, VNET},
    rig::Rig,
};

use super::entries;
use crate::{
    sweep::{OVER, SHORT, sweep},
    table::set_timeouts,
};

const PORT: u16 = 7000;

#[test]
fn idle_flows_go_and_those_with_a_connection_stay() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let pod = rig.pod("a")?;
    set_timeouts(&rig, SHORT)?;
    let mut connection = Connection::open(&pod.ns, &rig.fabric.vnet, VNET, PORT)?;
    connection.chat(5)?;
    Datagrams::between(&pod.ns, &rig.fabric.vnet, VNET, PORT)?.chat(100, 5)?;
    ensure!(entries(&rig)? == 4, "{} entries of two flows", entries(&rig)?);
    sleep(OVER);
    let [_, deleted] = sweep(&rig)?;
    ensure!(deleted >= 2, "{deleted} entries were forgotten");
    ensure!(entries(&rig)? == 2, "{} entries are left", entries(&rig)?);
    connection.chat(5)
}

/// Nothing of IPv4 is due then.
#[test]
fn a_del_sweeps_when_ipv6_is_due() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (pod, guest) = (rig.pod("a")?, rig.pod("b")?);
    set_timeouts(&rig, SHORT)?;
    Datagrams::between(&pod.ns, &rig.fabric.vnet, VNET, PORT)?.chat(100, 5)?;
    sweep(&rig)?;
    sleep(OVER);
    rig.node.remove(&guest)?;
    ensure!(entries(&rig)? == 2, "swept right after the last sweep");
    let mark = File::options()
        .append(true)
        .open(rig.node.root.join("/run/causeway/sweep-ipv6"))?;
    mark.set_modified(SystemTime::now() - Duration::from_mins(10))?;
    rig.node.remove(&guest)?;
    ensure!(entries(&rig)? == 0, "a DEL that was due did not sweep");
    Ok(())
}
