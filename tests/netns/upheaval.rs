//! What may happen to the way of a connection in its middle, beside the rule of kube-proxy that forwards nothing INVALID: conntrack knows little of
//! a carried connection, so nothing that happens may bring it before that rule.

use std::{net::SocketAddrV4, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{GATEWAY, INTERNET, VNET},
    raw,
    rig::Rig,
    rules,
    talk::Tcp,
};

fn lives_through_all_of_it(be_liberal: &str) -> Result<()> {
    let rig = Rig::causeway()?;
    let (pod, other) = (rig.pod("a")?, rig.pod("b")?);
    let fabric = &rig.fabric;
    rules::forbid_invalid(&rig.node.ns)?;
    rig.node
        .ns
        .sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", be_liberal)?;
    let servers = [
        (&fabric.internet, INTERNET),
        (&fabric.vnet, VNET),
        (&other.ns, other.addr),
    ];
    let echoes: Vec<Echo> = servers
        .iter()
        .map(|(ns, _)| Echo::start(ns, 7))
        .collect::<Result<_>>()?;
    let mut connections: Vec<Tcp> = servers
        .iter()
        .map(|&(_, addr)| Tcp::connect(&pod.ns, SocketAddrV4::new(addr, 7)))
        .collect::<Result<_>>()?;
    let mut chat = |what: &str| {
        let mut each = connections.iter_mut().zip(&servers);
        each.try_for_each(|(connection, (_, addr))| {
            connection
                .chat(5)
                .with_context(|| format!("{what}: the connection to {addr}"))
        })
    };
    chat("before")?;

    let router = &fabric.router;
    router.ip("link set node address 02:00:00:00:00:77")?;
    let mac = router.mac("node")?;
    // The kernel believes another MAC for an address a second after the last one (`locktime`), no sooner.
    thread::sleep(Duration::from_millis(1100));
    for addr in [GATEWAY, VNET] {
        let claim = raw::arp_claim(mac, mac, addr.octets(), addr.octets())?;
        raw::send(router, "node", &claim)?;
    }
    chat("another MAC of the gateway")?;

    rig.node
        .ns
        .ip(&format!("route add {INTERNET} via {GATEWAY} mtu lock 1300"))?;
    chat("a smaller MTU of the route")?;

    for (connection, (_, addr)) in connections.iter_mut().zip(&servers) {
        connection.0.set_ttl(1)?;
        let socket = connection.0.try_clone()?;
        let lengthened = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            socket.set_ttl(64)
        });
        connection
            .chat(5)
            .with_context(|| format!("a segment that expires at the node: {addr}"))?;
        lengthened.join().expect("no panic")?;
        // More than fits the smaller MTU.
        let long = vec![7; 20_000];
        std::io::Write::write_all(&mut connection.0, &long)?;
        let mut back = vec![0; long.len()];
        std::io::Read::read_exact(&mut connection.0, &mut back)
            .with_context(|| format!("long segments: {addr}"))?;
        ensure!(back == long);
    }
    let seen: Vec<usize> = echoes.iter().map(|echo| echo.seen().len()).collect();
    ensure!(seen == [1; 3], "{seen:?} connections");
    Ok(())
}

#[test]
fn a_carried_connection_lives_with_a_strict_conntrack() -> Result<()> {
    lives_through_all_of_it("0")
}

#[test]
fn a_carried_connection_lives_with_a_liberal_conntrack() -> Result<()> {
    lives_through_all_of_it("1")
}
