//! A pod speaks for itself on its link, and for nobody else (RFC 4861, RFC 6105); the node goes on listening to its router.

use std::{net::Ipv6Addr, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    dual_stack::{Connection, GATEWAY, VNET, at},
    netns::Netns,
    node::Pod,
    raw,
    rig::Rig,
};
use etherparse::{Icmpv6Header, Icmpv6Type};

/// `IPPROTO_ICMPV6`.
const ICMP: u8 = 58;

/// Who sends the frame, and what it says.
struct Frame<'a> {
    src_mac: [u8; 6],
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hop_limit: u8,
    kind: u8,
    /// Behind the ICMPv6 checksum.
    body: &'a [u8],
}

impl Frame<'_> {
    /// As it stands on the wire, its checksum computed by etherparse.
    fn bytes(&self, dst_mac: [u8; 6]) -> Result<Vec<u8>> {
        let first = self
            .body
            .first_chunk()
            .context("a message has four bytes behind its checksum")?;
        let kind = Icmpv6Type::Unknown {
            type_u8: self.kind,
            code_u8: 0,
            bytes5to8: *first,
        };
        let header =
            Icmpv6Header::with_checksum(kind, self.src.octets(), self.dst.octets(), &self.body[4..])?;
        let payload = [&header.to_bytes()[..], &self.body[4..]].concat();
        let addrs = [self.src.octets(), self.dst.octets()];
        raw::ipv6([self.src_mac, dst_mac], addrs, self.hop_limit, ICMP, &payload)
    }
}

/// The node's neighbour entries for an address.
fn neighbours(node: &Netns, addr: Ipv6Addr) -> Result<String> {
    node.output("ip", &["-6", "neigh", "show", &addr.to_string()])
}

/// An advertisement of `target` with the MAC `mac`: solicited, overriding (RFC 4861 section 4.4).
fn advertisement(target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    [&[0x60, 0, 0, 0][..], &target.octets(), &[2, 1], &mac].concat()
}

fn is_dropped(rig: &Rig, liar: &Pod, reason: &str, frames: &[Frame<'_>]) -> Result<()> {
    let before = rig.node.count(reason)?;
    let [_, gateway] = liar.macs()?;
    for frame in frames {
        raw::send(&liar.ns, "eth0", &frame.bytes(gateway)?)?;
    }
    sleep(Duration::from_millis(100));
    let counted = rig.node.count(reason)? - before;
    ensure!(
        counted == frames.len() as u64,
        "{reason} counted {counted} of {}",
        frames.len()
    );
    Ok(())
}

#[test]
fn nobody_answers_for_another_nor_routes() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (liar, victim) = (rig.pod("liar")?, rig.pod("victim")?);
    let (own, others, mac) = (liar.addr_v6()?, victim.addr_v6()?, liar.ns.mac("eth0")?);
    let all_nodes: Ipv6Addr = "ff02::1".parse()?;
    let link_local: Ipv6Addr = "fe80::7".parse()?;
    let gateway: Ipv6Addr = GATEWAY.parse()?;
    let routes = rig.node.ns.output("ip", &["-6", "route"])?;
    let known = neighbours(&rig.node.ns, others)?;

    let said = |kind, src, body| Frame {
        src_mac: mac,
        src,
        dst: all_nodes,
        hop_limit: 255,
        kind,
        body,
    };
    // Prefix fd00:20::/64, on the link and for addresses, for an hour; the sender routes for half an hour.
    let prefix = [
        &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0],
        &"fd00:20::".parse::<Ipv6Addr>()?.octets(),
    ]
    .concat();
    let redirect = [&[0; 4][..], &gateway.octets(), &VNET.octets()].concat();
    let stranger = [2, 0, 0, 0, 0, 99];
    let lies = [
        advertisement(others, mac),
        advertisement(at(0x999), mac),
        advertisement(gateway, mac),
        advertisement(own, stranger),
    ];
    let mut frames: Vec<Frame<'_>> = lies.iter().map(|lie| said(136, own, lie)).collect();
    frames.push(said(134, link_local, &prefix));
    frames.push(said(137, link_local, &redirect));
    is_dropped(&rig, &liar, "neighbour_spoofed", &frames)?;
    let frames = [
        said(128, others, &[0; 8]),
        said(134, gateway, &prefix),
        said(128, at(0x999), &[0; 8]),
    ];
    is_dropped(&rig, &liar, "source_address", &frames)?;

    ensure!(
        rig.node.ns.output("ip", &["-6", "route"])? == routes,
        "the node's routes have changed"
    );
    ensure!(
        neighbours(&rig.node.ns, others)? == known,
        "the victim's neighbour entry has changed"
    );
    ensure!(
        neighbours(&rig.node.ns, at(0x999))?.is_empty(),
        "the node has learnt a neighbour"
    );
    Connection::open(&liar.ns, &victim.ns, others, 7000)?.chat(5)
}

/// RFC 6980: what is in parts is not looked into, and nobody who is heard may send it so.
#[test]
fn a_message_that_hides_behind_other_headers_does_not_pass() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let liar = rig.pod("liar")?;
    let [mac, gateway] = liar.macs()?;
    let own = liar.addr_v6()?.octets();
    let all_nodes = "ff02::1".parse::<Ipv6Addr>()?.octets();
    let router = Frame {
        src_mac: mac,
        src: own.into(),
        dst: all_nodes.into(),
        hop_limit: 255,
        kind: 134,
        body: &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0],
    }
    .bytes(gateway)?;
    let message = &router[54..];
    let packet = |next: u8, payload: &[u8]| raw::ipv6([mac, gateway], [own, all_nodes], 255, next, payload);
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let first_part = [ICMP, 0, 0, 1, 0, 0, 0, 9];
    let mut deep = Vec::new();
    for _ in 0..7 {
        deep.extend(options(60));
    }
    deep.extend(options(ICMP));
    let before = rig.node.count("neighbour_spoofed")?;
    for frame in [
        packet(60, &[&options(ICMP), message].concat())?,
        packet(0, &[&options(ICMP), message].concat())?,
        packet(44, &[&first_part, message].concat())?,
        packet(60, &[&options(44)[..], &first_part, message].concat())?,
        packet(60, &[&deep, message].concat())?,
    ] {
        raw::send(&liar.ns, "eth0", &frame)?;
    }
    sleep(Duration::from_millis(100));
    let counted = rig.node.count("neighbour_spoofed")? - before;
    ensure!(counted == 5, "neighbour_spoofed counted {counted} of 5");
    Ok(())
}

/// What every host says when its interface comes up goes to the kernel: it asks whether its addresses are anybody's, who
/// routes, and joins its groups (with a router alert, RFC 2711).
#[test]
fn an_ordinary_pods_messages_are_the_kernels() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let pod = rig.pod("a")?;
    let before = rig.node.count("neighbour_discovery")?;
    pod.ns.ip("addr add fd00:10::7777/64 dev eth0 nodad")?;
    let [mac, gateway] = pod.macs()?;
    let own = pod.addr_v6()?;
    let unspecified = Ipv6Addr::UNSPECIFIED;
    let solicited: Ipv6Addr = "ff02::1:ff00:5".parse()?;
    let probe = [&[0; 4][..], &own.octets()].concat();
    let question = [&[0; 4][..], &GATEWAY.parse::<Ipv6Addr>()?.octets(), &[1, 1], &mac].concat();
    let frame = |kind, src, dst, body| {
        Frame {
            src_mac: mac,
            src,
            dst,
            hop_limit: 255,
            kind,
            body,
        }
        .bytes(gateway)
    };
    for frame in [
        frame(135, unspecified, solicited, &probe)?,
        frame(135, own, solicited, &question)?,
        frame(133, unspecified, "ff02::2".parse()?, &[0; 4])?,
        frame(136, own, "ff02::1".parse()?, &advertisement(own, mac))?,
    ] {
        raw::send(&pod.ns, "eth0", &frame)?;
    }
    sleep(Duration::from_millis(100));
    let counted = rig.node.count("neighbour_discovery")? - before;
    // Those, and the report of the group that the new address has joined.
    ensure!(counted >= 4, "neighbour_discovery counted {counted}");
    ensure!(
        rig.node.count("neighbour_spoofed")? == 0,
        "an ordinary message is taken for a lie"
    );
    Ok(())
}

/// That pods come makes a router of the node, which as such would take no notice of advertisements.
#[test]
fn a_route_that_the_nodes_router_advertises_stays_and_is_renewed_with_pods() -> Result<()> {
    let rig = Rig::dual_stack()?;
    let (node, router) = (&rig.node.ns, &rig.fabric.router);
    node.ip("route del default via fe80::1 dev eth0")?;
    node.sysctl("net/ipv6/conf/eth0/accept_ra", "1")?;
    let src_mac = router.mac("node")?;
    // Hop limit 64, no flags, the sender routes for so many seconds; nothing of reachability.
    let advertise = |seconds: u16| {
        let [high, low] = seconds.to_be_bytes();
        let frame = Frame {
            src_mac,
            src: "fe80::1".parse()?,
            dst: "ff02::1".parse()?,
            hop_limit: 255,
            kind: 134,
            body: &[64, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        raw::send(router, "node", &frame.bytes([0x33, 0x33, 0, 0, 0, 1])?)
    };
    let has_route = |expected: bool| -> Result<bool> {
        for _ in 0..100 {
            let routes = node.output("ip", &["-6", "route", "show", "default", "proto", "ra"])?;
            if routes.is_empty() != expected {
                return Ok(true);
            }
            sleep(Duration::from_millis(20));
        }
        Ok(false)
    };
    let forwards = || node.read_sysctl("net/ipv6/conf/all/forwarding");
    ensure!(forwards()? == "0");
    advertise(600)?;
    ensure!(has_route(true)?, "the node does not listen");
    let pod = rig.pod("a")?;
    ensure!(
        forwards()? == "1" && has_route(true)?,
        "the route went as the pod came"
    );
    Connection::open(&pod.ns, &rig.fabric.vnet, VNET, 7000)?.chat(5)?;
    advertise(0)?;
    ensure!(has_route(false)?, "the router's word is not heard any more");
    advertise(600)?;
    ensure!(has_route(true)?, "the router's word is not heard any more");
    // The pod has its own way, of which no router tells it.
    let of_routers = pod.ns.output("ip", &["-6", "route", "show", "proto", "ra"])?;
    ensure!(of_routers.is_empty(), "{of_routers}");
    Connection::open(&pod.ns, &rig.fabric.vnet, VNET, 7001)?.chat(5)
}
