//! A node that masquerades IPv6, too: what pods say to the internet leaves with the node's address, or not at all.

use std::{
    io::ErrorKind,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    dual_stack::{Connection, Datagrams, INTERNET, NODE, VNET, at, enable_internet, leaked},
    netns::Netns,
    offload,
    rig::Rig,
};

use super::{counted, entries, ping};

const PORT: u16 = 7000;

/// Nothing has left for the internet with a pod's address.
fn is_tight(rig: &Rig) -> Result<()> {
    let leaks = leaked(&rig.fabric)?;
    ensure!(
        leaks == 0,
        "{leaks} packets left with another address than the node's"
    );
    Ok(())
}

/// A socket of UDP in a namespace, with a port of its own, that speaks to the internet's host.
fn socket(ns: &Netns, port: u16, to: u16) -> Result<UdpSocket> {
    let socket = ns.bind(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))?;
    socket.connect((INTERNET, to))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// The internet's host, which answers and says who has asked.
struct Server(UdpSocket);

impl Server {
    fn start(rig: &Rig, port: u16) -> Result<Self> {
        let socket = rig.fabric.internet.bind(|| UdpSocket::bind((INTERNET, port)))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(socket))
    }

    /// One question and its answer; returns from where the question came.
    fn serve(&self, client: &UdpSocket) -> Result<SocketAddr> {
        let mut heard = [0; 16];
        client.send(b"question")?;
        let (_, from) = self.0.recv_from(&mut heard).context("the question")?;
        self.0.send_to(b"answer", from)?;
        let got = client.recv(&mut heard).context("the answer")?;
        ensure!(&heard[..got] == b"answer");
        Ok(from)
    }
}

#[test]
fn a_pod_talks_to_the_internet_with_the_nodes_address_past_the_stack() -> Result<()> {
    let rig = Rig::masquerading_ipv6()?;
    let pod = rig.pod("a")?;
    let internet = &rig.fabric.internet;
    let reasons = ["carried_to_pod", "carried_to_uplink"];
    let [inbound, outbound] = counted(&rig, reasons, || {
        let mut connection = Connection::open(&pod.ns, internet, INTERNET, PORT)?;
        let seen = connection.server.peer_addr()?;
        ensure!(seen.ip() == NODE, "the server sees {seen}");
        ensure!(seen.port() == connection.client.local_addr()?.port(), "{seen}");
        connection.chat(50)?;
        Datagrams::between(&pod.ns, internet, INTERNET, PORT)?.chat(100, 50)?;
        ping(&pod.ns, INTERNET, 20)
    })?;
    ensure!(
        inbound >= 115 && outbound >= 110,
        "{inbound} packets were carried to the pod, {outbound} to the uplink"
    );
    is_tight(&rig)
}

#[test]
fn long_streams_arrive_byte_by_byte_whoever_computes_the_checksums() -> Result<()> {
    for (sending, receiving) in [(true, true), (false, false), (true, false), (false, true)] {
        let rig = Rig::masquerading_ipv6()?;
        let pod = rig.pod("a")?;
        let fabric = &rig.fabric;
        let ends = [
            (&rig.node.ns, "eth0"),
            (&fabric.router, "node"),
            (&fabric.internet, "eth0"),
            (&pod.ns, "eth0"),
        ];
        for (ns, interface) in ends {
            offload::set(ns, interface, offload::TX_CHECKSUM, sending)?;
            offload::set(ns, interface, offload::RX_CHECKSUM, receiving)?;
        }
        Connection::open(&pod.ns, &fabric.internet, INTERNET, PORT)?.stream(4 << 20)?;
        Datagrams::between(&pod.ns, &fabric.internet, INTERNET, PORT)?.chat(1000, 50)?;
        ping(&pod.ns, INTERNET, 5)?;
        is_tight(&rig)?;
    }
    Ok(())
}

/// Where nobody has asked for it, and towards what is excluded, a pod's address stays.
#[test]
fn what_is_not_to_be_masqueraded_is_not() -> Result<()> {
    let rig = Rig::masquerading_ipv6()?;
    let pod = rig.pod("a")?;
    let connection = Connection::open(&pod.ns, &rig.fabric.vnet, VNET, PORT)?;
    ensure!(connection.server.peer_addr()?.ip() == pod.addr_v6()?);

    let rig = Rig::dual_stack()?;
    let pod = rig.pod("a")?;
    enable_internet(&rig.fabric)?;
    let route = format!("route add {} via fe80::1 dev eth0", pod.addr_v6()?);
    rig.fabric.internet.ip(&route)?;
    let connection = Connection::open(&pod.ns, &rig.fabric.internet, INTERNET, PORT)?;
    ensure!(connection.server.peer_addr()?.ip() == pod.addr_v6()?);
    Ok(())
}

/// Ports are shared out as those of IPv4: the first has its own, the second another of its class; those of the node are
/// nobody's.
#[test]
fn two_pods_and_the_node_share_the_ports() -> Result<()> {
    let rig = Rig::masquerading_ipv6()?;
    let (a, b) = (rig.pod("a")?, rig.pod("b")?);
    let server = Server::start(&rig, PORT)?;
    let (first, second) = (socket(&a.ns, 5000, PORT)?, socket(&b.ns, 5000, PORT)?);
    let seen = [server.serve(&first)?, server.serve(&second)?];
    ensure!(seen[0] == SocketAddr::from((NODE, 5000)), "{seen:?}");
    ensure!(seen[1].ip() == NODE && seen[1].port() >= 1024, "{seen:?}");
    ensure!(seen[1].port() != 5000, "{seen:?}");

    // A port that the node has bound is not a pod's, and one that a pod has is not the node's.
    let held = socket(&rig.node.ns, 5001, PORT)?;
    ensure!(server.serve(&held)?.port() == 5001);
    let pods = socket(&a.ns, 5001, PORT)?;
    ensure!(server.serve(&pods)?.port() != 5001);
    let late = socket(&rig.node.ns, 5000, PORT)?;
    ensure!(server.serve(&late)?.port() != 5000);
    for client in [&first, &second, &held, &pods, &late] {
        server.serve(client)?;
    }
    let reserved = socket(&a.ns, 30_123, PORT)?;
    let seen = server.serve(&reserved)?.port();
    ensure!(!(30_000..=32_767).contains(&seen), "NodePort {seen} was taken");
    is_tight(&rig)
}

/// A refusal by the far host, and its router's word on the path's MTU, reach the pod as about its own packet.
#[test]
fn errors_find_their_way_back() -> Result<()> {
    let rig = Rig::masquerading_ipv6()?;
    let pod = rig.pod("a")?;
    let asker = socket(&pod.ns, 5002, PORT + 9)?;
    asker.send(b"anybody there?")?;
    let refused = asker.recv(&mut [0; 8]).map_err(|error| error.kind());
    ensure!(refused == Err(ErrorKind::ConnectionRefused), "{refused:?}");

    rig.fabric.router.ip("link set internet mtu 1400")?;
    rig.fabric.internet.ip("link set eth0 mtu 1400")?;
    let large = socket(&pod.ns, 5004, PORT)?;
    large.send(&[0; 1440])?;
    let told = large.recv(&mut [0; 8]).map_err(|error| error.raw_os_error());
    ensure!(told.is_err(), "{told:?}");
    let known = pod
        .ns
        .output("ip", &["-6", "route", "get", &INTERNET.to_string()])?;
    ensure!(
        known.contains("mtu 1400"),
        "the pod has not learnt the MTU: {known}"
    );

    // A hop limit that ends at the router.
    let hops = pod
        .ns
        .output("ping", &["-6", "-c1", "-w3", "-t2", &INTERNET.to_string()]);
    let told = format!("{hops:?}");
    ensure!(told.contains("Time exceeded"), "{told}");
    is_tight(&rig)
}

#[test]
fn fragments_go_the_way_of_the_first_one() -> Result<()> {
    let rig = Rig::masquerading_ipv6()?;
    let pod = rig.pod("a")?;
    let large = Datagrams::between(&pod.ns, &rig.fabric.internet, INTERNET, PORT)?;
    large.chat(100, 3)?;
    large.chat(5000, 30)?;
    let echo = ["-6", "-c5", "-i0.05", "-w10", "-s", "4000", &INTERNET.to_string()];
    pod.ns.output("ping", &echo)?;
    is_tight(&rig)
}

/// A service whose backend is outside: the kernel translates the destination, and we the source.
#[test]
fn a_service_of_the_kernels_is_masqueraded_too() -> Result<()> {
    let rig = Rig::masquerading_ipv6()?;
    let pod = rig.pod("a")?;
    let service = at(0xffff);
    let rule = format!(
        "table ip6 services {{ chain pre {{ type nat hook prerouting priority dstnat; ip6 daddr {service} dnat to {INTERNET}; }}; }}"
    );
    rig.node.ns.output("nft", &[&rule])?;
    let listener = rig.fabric.internet.bind(|| TcpListener::bind((INTERNET, PORT)))?;
    let [kernel] = counted(&rig, ["snat_kernel"], || {
        let client = pod.ns.run(|| TcpStream::connect((service, PORT)))??;
        let (server, from) = listener.accept()?;
        ensure!(from.ip() == NODE, "the server sees {from}");
        Connection { client, server }.chat(50)
    })?;
    ensure!(kernel >= 50, "{kernel} packets were translated for the kernel");
    is_tight(&rig)
}

/// What the far host begins towards a port that is a flow's does not reach the pod; nor does what is for the node.
#[test]
fn a_stranger_reaches_no_pod_through_the_nodes_address() -> Result<()> {
    let rig = Rig::masquerading_ipv6()?;
    let pod = rig.pod("a")?;
    let server = Server::start(&rig, PORT)?;
    let client = socket(&pod.ns, 5003, PORT)?;
    server.serve(&client)?;
    let stranger = rig.fabric.internet.bind(|| UdpSocket::bind((INTERNET, 4444)))?;
    stranger.send_to(b"hello", (NODE, 5003))?;
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    ensure!(client.recv(&mut [0; 8]).is_err(), "a stranger's datagram arrived");
    let listener = rig.node.ns.bind(|| TcpListener::bind((NODE, PORT)))?;
    let visitor = rig.fabric.internet.run(|| TcpStream::connect((NODE, PORT)))??;
    let (accepted, _) = listener.accept()?;
    Connection {
        client: visitor,
        server: accepted,
    }
    .chat(20)
}

/// Translated flows live through an exchange of the programs, and through the loss of either half.
#[test]
fn translated_flows_outlive_what_happens_to_the_datapath() -> Result<()> {
    let rig = Rig::masquerading_ipv6()?;
    let pod = rig.pod("a")?;
    let mut connection = Connection::open(&pod.ns, &rig.fabric.internet, INTERNET, PORT)?;
    connection.chat(5)?;
    rig.node.causeway(&["upgrade", "--again"])?;
    let [carried, offered] = counted(&rig, ["carried_to_uplink", "offered"], || connection.chat(10))?;
    ensure!(
        carried >= 10 && offered == 0,
        "{carried} carried, {offered} offered anew"
    );

    let flows = crate::table::pin(&rig, "cwy_flows6").display().to_string();
    for direction in ["the pod's", "the answers'"] {
        let dump = rig
            .node
            .ns
            .json("bpftool", &["-j", "map", "dump", "pinned", &flows])?;
        let halves = dump.as_array().context("no dump")?;
        let wanted = if direction == "the pod's" { 1 } else { 2 };
        let half = halves
            .iter()
            .find(|half| half["formatted"]["value"]["nat"] == wanted)
            .with_context(|| format!("no half of {direction} in {halves:?}"))?;
        let key = half["key"].as_array().context("no key")?;
        let key: Vec<&str> = key.iter().filter_map(|byte| byte.as_str()).collect();
        let delete = [&["map", "delete", "pinned", &flows, "key", "hex"][..], &key].concat();
        let delete: Vec<&str> = delete.iter().map(|word| word.trim_start_matches("0x")).collect();
        rig.node.ns.output("bpftool", &delete)?;
        connection
            .chat(10)
            .with_context(|| format!("after the loss of {direction}"))?;
    }
    rig.node.remove(&pod)?;
    ensure!(entries(&rig)? == 0, "{} entries are left", entries(&rig)?);
    is_tight(&rig)
}
