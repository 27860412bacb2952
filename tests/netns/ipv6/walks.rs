//! Who reaches whom, and which way the packets go.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use causeway_tests::{
    dual_stack::{Connection, Datagrams, NODE, VNET, at, enable, list},
    echo::Echo,
    rig::Rig,
    talk::Tcp,
};

use super::{counted, entries, ping};

const PORT: u16 = 7000;

#[test]
fn two_pods_talk_past_the_stack() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let to = b.addr_v6()?;
    let [carried] = counted(&rig, ["carried_to_pod"], || {
        Connection::open(&a.ns, &b.ns, to, PORT)?.chat(50)
    })?;
    ensure!(carried >= 100, "{carried} packets of TCP were carried");
    let [carried] = counted(&rig, ["carried_to_pod"], || {
        Datagrams::between(&a.ns, &b.ns, to, PORT)?.chat(100, 50)
    })?;
    ensure!(carried >= 95, "{carried} datagrams were carried");
    let [carried] = counted(&rig, ["carried_to_pod"], || ping(&a.ns, to, 20))?;
    ensure!(carried >= 36, "{carried} echoes were carried");
    Ok(())
}

#[test]
fn a_pod_and_the_vnet_talk_past_the_stack_in_both_directions() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let pod = rig.pod("a")?;
    let vnet = &rig.fabric.vnet;
    let ways = [(&pod.ns, vnet, VNET), (vnet, &pod.ns, pod.addr_v6()?)];
    for (from, to, address) in ways {
        let reasons = ["carried_to_pod", "carried_to_uplink"];
        let [inbound, outbound] = counted(&rig, reasons, || {
            Connection::open(from, to, address, PORT)?.chat(50)?;
            Datagrams::between(from, to, address, PORT)?.chat(100, 50)?;
            ping(from, address, 20)
        })?;
        ensure!(
            inbound >= 110 && outbound >= 110,
            "to {address}: {inbound} packets were carried to the pod, {outbound} to the uplink"
        );
    }
    Ok(())
}

/// The other host sees the pod's own address: nothing of IPv6 is translated.
#[test]
fn a_pod_keeps_its_address() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let pod = rig.pod("a")?;
    let connection = Connection::open(&pod.ns, &rig.fabric.vnet, VNET, PORT)?;
    ensure!(connection.server.peer_addr()? == connection.client.local_addr()?);
    ensure!(connection.client.local_addr()?.ip() == pod.addr_v6()?);
    Ok(())
}

#[test]
fn long_streams_arrive_byte_by_byte() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    Connection::open(&a.ns, &b.ns, b.addr_v6()?, PORT)?.stream(32 << 20)?;
    Connection::open(&a.ns, &rig.fabric.vnet, VNET, PORT)?.stream(32 << 20)?;
    Connection::open(&rig.fabric.vnet, &b.ns, b.addr_v6()?, PORT)?.stream(32 << 20)
}

#[test]
fn the_node_and_its_pods_reach_each_other() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let pod = rig.pod("a")?;
    Connection::open(&pod.ns, &rig.node.ns, NODE, PORT)?.chat(20)?;
    Connection::open(&rig.node.ns, &pod.ns, pod.addr_v6()?, PORT)?.chat(20)?;
    Datagrams::between(&rig.node.ns, &pod.ns, pod.addr_v6()?, PORT)?.chat(100, 20)
}

/// A ClusterIP as kube-proxy makes it: the kernel translates the first packet, so the flow is the kernel's.
#[test]
fn a_service_of_the_kernels_stays_with_the_kernel() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let (service, pod) = (at(0xffff), b.addr_v6()?);
    let rule = format!(
        "table ip6 services {{ chain pre {{ type nat hook prerouting priority dstnat; ip6 daddr {service} dnat to {pod}; }}; }}"
    );
    rig.node.ns.output("nft", &[&rule])?;
    let listening = std::net::TcpListener::bind;
    let listener = b.ns.bind(|| listening((pod, PORT)))?;
    let [carried, kernel] = counted(&rig, ["carried_to_pod", "kernel_flow"], || {
        let to = std::net::SocketAddr::new(service.into(), PORT);
        let client = a.ns.run(|| std::net::TcpStream::connect(to))??;
        let (server, _) = listener.accept()?;
        Connection { client, server }.chat(50)
    })?;
    ensure!(
        carried == 0,
        "{carried} packets of a translated flow were carried"
    );
    ensure!(kernel >= 100, "{kernel} packets were left to the kernel by name");
    Ok(())
}

#[test]
fn flows_outlive_an_exchange_of_the_programs() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let mut inside = Connection::open(&a.ns, &b.ns, b.addr_v6()?, PORT)?;
    let mut outside = Connection::open(&rig.fabric.vnet, &a.ns, a.addr_v6()?, PORT)?;
    for connection in [&mut inside, &mut outside] {
        connection.chat(5)?;
    }
    for _ in 0..3 {
        rig.node.causeway(&["upgrade", "--again"])?;
        let [carried, offered] = counted(&rig, ["carried_to_pod", "offered"], || {
            inside.chat(10)?;
            outside.chat(10)
        })?;
        ensure!(
            carried >= 30 && offered == 0,
            "{carried} packets were carried, {offered} offered anew"
        );
    }
    Ok(())
}

/// What is known of a pod's flows goes with the pod, and its address may be another's.
#[test]
fn a_pod_that_goes_leaves_no_flow_behind() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let addr = b.addr_v6()?;
    let mut flow = Connection::open(&a.ns, &b.ns, addr, PORT)?;
    flow.chat(5)?;
    ensure!(entries(&rig)? >= 2, "{} entries", entries(&rig)?);
    rig.node.remove(&b)?;
    ensure!(entries(&rig)? == 0, "{} entries", entries(&rig)?);
    let again = rig.pod("c")?;
    Connection::open(&a.ns, &again.ns, again.addr_v6()?, PORT)?.chat(5)
}

/// What the node has of IPv6 changes nothing for a pod that has none of it, and nothing for what it has by other hands.
#[test]
fn a_pod_of_ipv4_beside_them_is_served_as_before() -> Result<()> {
    let rig = Rig::causeway()?;
    let old = rig.pod("old")?;
    let [a, b] = [5, 6].map(at);
    enable(&rig.fabric, &rig.node.ns, &[a, b])?;
    list(&rig.node, 3, &[("fd00:10::/64", &[a, b])])?;
    let new = rig.pod("new")?;
    let _echo = Echo::start(&old.ns, PORT)?;
    let [carried] = counted(&rig, ["carried_to_pod"], || {
        Tcp::connect(&new.ns, SocketAddrV4::new(old.addr, PORT))?.chat(20)
    })?;
    ensure!(carried >= 40, "{carried} packets of IPv4 were carried");

    let host_if = rig.node.host_interface(&old)?;
    for (ns, name, addr) in [
        (&old.ns, "eth0", "fd00:77::2"),
        (&rig.node.ns, &host_if, "fd00:77::1"),
    ] {
        ns.sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
        ns.ip(&format!("addr add {addr}/64 dev {name} nodad"))?;
    }
    let [carried] = counted(&rig, ["carried_to_pod"], || {
        Connection::open(&old.ns, &rig.node.ns, "fd00:77::1".parse()?, PORT + 1)?.chat(20)?;
        Connection::open(&rig.node.ns, &old.ns, "fd00:77::2".parse()?, PORT + 1)?.chat(20)
    })?;
    ensure!(
        carried == 0,
        "{carried} packets of an address that is not the pod's"
    );
    ping(&new.ns, NODE, 3)
}
