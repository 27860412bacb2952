//! What kube-proxy and portmap translate stays with the kernel, and the rest of its way is right: the server sees the right
//! client, the client never notices.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE, PARTNER, VNET},
    netns::Netns,
    rig::Rig,
    rules,
    talk::{Tcp, Udp},
    walk::Walk,
};
use rustix::net::sockopt::set_socket_linger;

const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 50), 80);
const TARGET: u16 = 8080;

fn through_the_kernel(rig: &Rig, walk: &Walk<'_>, seen: Ipv4Addr) -> Result<()> {
    for (protocol, talk) in [("tcp", walk.tcp(rig)?), ("udp", walk.udp(rig)?)] {
        talk.expect_kernel(seen)?;
        let states = rig.node.flow_states(protocol, talk.local)?;
        ensure!(
            !states.iter().any(|state| state == "carried"),
            "{protocol} to {}: {states:?}",
            walk.dial
        );
        // A call of a pod to itself through the node is masqueraded, and known by another address at each hook.
        ensure!(
            seen == NODE || states.iter().any(|state| state == "kernel"),
            "{protocol}: {states:?}"
        );
    }
    Ok(())
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

/// The endpoint is a pod of the node, and a host elsewhere: what the node masquerades leaves with its address either way.
#[test]
fn a_node_port_from_outside_and_from_a_pod() -> Result<()> {
    const NODE_PORT: u16 = 30_080;
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let fabric = &rig.fabric;
    for (n, server, addr) in [
        (0, &a.ns, a.addr),
        (1, &fabric.vnet, VNET),
        (2, &fabric.internet, INTERNET),
    ] {
        let dial = SocketAddrV4::new(NODE, NODE_PORT + n);
        let listen = SocketAddrV4::new(addr, TARGET);
        rules::node_port(&rig.node.ns, dial.port(), listen)?;
        for client in [&fabric.vnet, &fabric.partner, &fabric.internet, &b.ns, &a.ns] {
            let direct = Walk::direct(&b.ns, server, listen);
            direct.tcp(&rig)?;
            let walk = Walk {
                client,
                dial,
                server,
                listen,
            };
            through_the_kernel(&rig, &walk, NODE)
                .with_context(|| format!("to {listen}, client {client:?}"))?;
        }
    }
    Ok(())
}

/// A question and an answer a flow, many times, as resolvers do.
#[test]
fn names_are_resolved_through_a_service() -> Result<()> {
    let rig = Rig::causeway()?;
    let (client, server) = (rig.pod("client")?, rig.pod("dns")?);
    let endpoint = SocketAddrV4::new(server.addr, 53);
    let vip = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 10), 53);
    rules::cluster_ip(&rig.node.ns, vip, endpoint)?;
    let echo = Echo::start(&server.ns, 53)?;
    for _ in 0..200 {
        Udp::connect(&client.ns, vip)?.ask(40)?;
        Udp::connect(&client.ns, endpoint)?.ask(40)?;
    }
    ensure!(echo.seen().iter().all(|peer| *peer.ip() == client.addr));
    Ok(())
}

/// Both conversations come from one port of the client and end at one port of the server: behind the DNAT they are one tuple.
#[test]
fn a_direct_flow_and_a_translated_one_in_one_tuple() -> Result<()> {
    const FROM: u16 = 45_000;
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let endpoint = SocketAddrV4::new(b.addr, TARGET);
    rules::cluster_ip(&rig.node.ns, VIP, endpoint)?;
    let _echo = Echo::start(&b.ns, TARGET)?;
    let mut from = SocketAddrV4::new(a.addr, FROM);
    for order in [[endpoint, VIP], [VIP, endpoint]] {
        let talk = |to: SocketAddrV4| -> Result<()> {
            Udp::connect_from(&a.ns, from, to)?
                .chat(10)
                .with_context(|| format!("UDP to {to} of {order:?}"))?;
            let mut connection = Tcp::connect_from(&a.ns, from, to)?;
            connection
                .chat(10)
                .with_context(|| format!("TCP to {to} of {order:?}"))?;
            set_socket_linger(&connection.0, Some(Duration::ZERO))?;
            Ok(())
        };
        order.into_iter().chain(order).try_for_each(talk)?;
        from.set_port(FROM + 1);
    }
    Ok(())
}

/// And at the same time: the newcomer must not break the one that talks already for longer than a retry.
#[test]
fn a_translated_flow_joins_a_direct_one_in_one_tuple() -> Result<()> {
    let rig = Rig::causeway()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let endpoint = SocketAddrV4::new(b.addr, TARGET);
    rules::cluster_ip(&rig.node.ns, VIP, endpoint)?;
    let _echo = Echo::start(&b.ns, TARGET)?;
    let from = SocketAddrV4::new(a.addr, 45_000);
    let mut direct = Tcp::connect_from(&a.ns, from, endpoint)?;
    direct.chat(10)?;
    let mut translated = Tcp::connect_from(&a.ns, from, VIP)?;
    for _ in 0..5 {
        translated.chat(3).context("the translated one")?;
        direct.chat(3).context("the direct one")?;
    }
    Ok(())
}
