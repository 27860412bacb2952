//! What kube-proxy and portmap translate stays with the kernel, and the rest of its way is right: the server sees the right
//! client, the client never notices.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use causeway_tests::{
    fabric::{INTERNET, NODE, PARTNER, VNET},
    netns::Netns,
    rig::Rig,
    rules,
    walk::Walk,
};

const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 50), 80);
const TARGET: u16 = 8080;

fn through_the_kernel(rig: &Rig, walk: &Walk<'_>, seen: Ipv4Addr) -> Result<()> {
    walk.tcp(rig)?.expect_kernel(seen)?;
    walk.udp(rig)?.expect_kernel(seen)
}

fn cluster_ip_to(
    rig: &Rig,
    client: &Netns,
    server: &Netns,
    endpoint: Ipv4Addr,
    seen: Ipv4Addr,
) -> Result<()> {
    let endpoint = SocketAddrV4::new(endpoint, TARGET);
    rules::cluster_ip(&rig.node.ns, VIP, endpoint)?;
    through_the_kernel(
        rig,
        &Walk {
            client,
            dial: VIP,
            server,
            listen: endpoint,
        },
        seen,
    )
}

#[test]
fn cluster_ip_to_a_pod_of_the_node() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    cluster_ip_to(&rig, &a.ns, &b.ns, b.addr, a.addr)
}

#[test]
fn cluster_ip_to_an_endpoint_on_the_internet() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    cluster_ip_to(&rig, &pod.ns, &rig.fabric.internet, INTERNET, NODE)
}

#[test]
fn cluster_ip_to_a_host_of_the_vnet() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    cluster_ip_to(&rig, &pod.ns, &rig.fabric.vnet, VNET, pod.addr)
}

/// kube-proxy masquerades it, so the pod sees an address of the node.
#[test]
fn cluster_ip_to_the_calling_pod_itself() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    cluster_ip_to(&rig, &pod.ns, &pod.ns, pod.addr, NODE)
}

#[test]
fn cluster_ip_and_the_endpoint_itself_side_by_side() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let endpoint = SocketAddrV4::new(b.addr, TARGET);
    for _ in 0..3 {
        Walk::direct(&a.ns, &b.ns, endpoint)
            .tcp(&rig)?
            .expect_carried(a.addr)?;
        Walk::direct(&a.ns, &b.ns, endpoint)
            .udp(&rig)?
            .expect_carried(a.addr)?;
    }
    cluster_ip_to(&rig, &a.ns, &b.ns, b.addr, a.addr)?;
    Walk::direct(&a.ns, &b.ns, endpoint)
        .tcp(&rig)?
        .expect_carried(a.addr)?;
    Walk::direct(&a.ns, &b.ns, endpoint)
        .udp(&rig)?
        .expect_carried(a.addr)
}

#[test]
fn host_port_from_the_vnet_the_internet_and_a_partner() -> Result<()> {
    let rig = Rig::causeway()?;
    let pod = rig.pod("a")?;
    let (dial, listen) = (SocketAddrV4::new(NODE, 8081), SocketAddrV4::new(pod.addr, TARGET));
    rules::host_port(&rig.node.ns, 8081, listen)?;
    for (client, addr) in [
        (&rig.fabric.vnet, VNET),
        (&rig.fabric.internet, INTERNET),
        (&rig.fabric.partner, PARTNER),
    ] {
        through_the_kernel(
            &rig,
            &Walk {
                client,
                dial,
                server: &pod.ns,
                listen,
            },
            addr,
        )?;
    }
    Ok(())
}

#[test]
fn host_port_from_another_pod_and_from_the_pod_itself() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let (dial, listen) = (SocketAddrV4::new(NODE, 8081), SocketAddrV4::new(a.addr, TARGET));
    rules::host_port(&rig.node.ns, 8081, listen)?;
    through_the_kernel(
        &rig,
        &Walk {
            client: &b.ns,
            dial,
            server: &a.ns,
            listen,
        },
        b.addr,
    )?;
    through_the_kernel(
        &rig,
        &Walk {
            client: &a.ns,
            dial,
            server: &a.ns,
            listen,
        },
        NODE,
    )
}
