//! Long streams: a gibibyte both ways at once, every byte compared, through every offload and every carried path.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use causeway_tests::{
    fabric::{INTERNET, NODE, VNET},
    rig::Rig,
    rules, stream,
};

const GIBIBYTE: u64 = 1 << 30;

#[test]
fn a_gibibyte_between_pods() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let (took, seen) = stream::exchange(&a.ns, &b.ns, SocketAddrV4::new(b.addr, 99), GIBIBYTE)?;
    report(&rig, "between pods", took)?;
    ensure!(seen.ip() == a.addr);
    Ok(())
}

#[test]
fn a_gibibyte_to_the_internet() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let (took, seen) = stream::exchange(
        &pod.ns,
        &rig.fabric.internet,
        SocketAddrV4::new(INTERNET, 99),
        GIBIBYTE,
    )?;
    report(&rig, "to the internet", took)?;
    ensure!(seen.ip() == NODE);
    Ok(())
}

#[test]
fn a_quarter_of_it_to_the_vnet_and_from_it() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let (took, seen) = stream::exchange(
        &pod.ns,
        &rig.fabric.vnet,
        SocketAddrV4::new(VNET, 99),
        GIBIBYTE / 4,
    )?;
    report(&rig, "to the VNet", took)?;
    ensure!(seen.ip() == pod.addr);
    let (took, seen) = stream::exchange(
        &rig.fabric.vnet,
        &pod.ns,
        SocketAddrV4::new(pod.addr, 99),
        GIBIBYTE / 4,
    )?;
    report(&rig, "from the VNet", took)?;
    ensure!(seen.ip() == VNET);
    Ok(())
}

fn report(rig: &Rig, what: &str, took: std::time::Duration) -> Result<()> {
    let forwarded = rules::forwarded(&rig.node.ns)?;
    println!("{what}: {took:?}, {forwarded} packets took the stack");
    ensure!(forwarded < 50, "{forwarded} packets took the stack");
    Ok(())
}
