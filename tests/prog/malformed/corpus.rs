//! Packets that are right, one of each kind, to be broken.

use std::net::Ipv4Addr;

use causeway_common::tuple::{ICMP, TCP, UDP};
use etherparse::{IpNumber, Ipv4Header, TcpHeader};

use super::scene::{CLIENT, Flow, Scene};
use crate::{
    bench::{Hook, INTERNET, NODE, ROUTER_MAC, VNET_HOST},
    fragments::cut,
    icmp_errors::{error, original},
    packets::{Ends, Link, echo, tcp, udp},
    portless,
};

/// A packet, and the hook where it is at home.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) hook: Hook,
    pub(crate) ifindex: u32,
    pub(crate) packet: Vec<u8>,
}

/// A router between the node and the internet.
const HOP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

pub(crate) fn samples(scene: &Scene) -> Vec<Sample> {
    let (a, uplink) = (scene.bench.a, scene.bench.uplink_ifindex);
    let (to_wire, from_wire) = (
        (scene.bench.uplink_mac, ROUTER_MAC),
        (ROUTER_MAC, scene.bench.uplink_mac),
    );
    let mut samples = Vec::new();
    let mut at = |hook, ifindex, packets: Vec<Vec<u8>>| {
        samples.extend(packets.into_iter().map(|packet| Sample {
            hook,
            ifindex,
            packet,
        }));
    };
    for flow in scene.flows() {
        let outside = outside(flow);
        if flow.ends.src == a.addr {
            at(Hook::FromPod, a.ifindex, of_flow(a.sends(), flow.ends));
            at(
                Hook::FromPod,
                a.ifindex,
                errors(a.sends(), a.addr, flow.ends.dst, flow.ends.reversed()),
            );
            at(
                Hook::ToPod,
                a.ifindex,
                of_flow((a.host_mac, a.mac), flow.ends.reversed()),
            );
        }
        at(Hook::ToUplink, uplink, of_flow(to_wire, flow.ends));
        at(
            Hook::ToUplink,
            uplink,
            errors(to_wire, flow.ends.src, flow.ends.dst, flow.ends.reversed()),
        );
        at(
            Hook::ToUplink,
            uplink,
            errors(to_wire, NODE, flow.ends.dst, flow.ends.reversed()),
        );
        at(Hook::FromUplink, uplink, of_flow(from_wire, outside.reversed()));
        at(
            Hook::FromUplink,
            uplink,
            errors(from_wire, HOP, outside.src, outside),
        );
    }
    for dst in [INTERNET, VNET_HOST, CLIENT] {
        at(Hook::FromPod, a.ifindex, without_ports(a.sends(), a.addr, dst));
        at(Hook::ToUplink, uplink, without_ports(to_wire, a.addr, dst));
        at(Hook::ToUplink, uplink, without_ports(to_wire, NODE, dst));
        at(Hook::FromUplink, uplink, without_ports(from_wire, dst, NODE));
        at(
            Hook::ToPod,
            a.ifindex,
            without_ports((a.host_mac, a.mac), dst, a.addr),
        );
    }
    for (hook, ifindex, link) in [
        (Hook::FromPod, a.ifindex, a.sends()),
        (Hook::ToPod, a.ifindex, (a.host_mac, a.mac)),
        (Hook::FromUplink, uplink, from_wire),
        (Hook::ToUplink, uplink, to_wire),
    ] {
        at(hook, ifindex, no_ipv4(link, a.addr));
    }
    samples
}

/// The flow as the wire sees it.
fn outside(flow: Flow) -> Ends {
    match flow.port {
        Some(src_port) => Ends {
            src: NODE,
            src_port,
            ..flow.ends
        },
        None => flow.ends,
    }
}

/// What both ends of a flow may say.
fn of_flow(link: Link, ends: Ends) -> Vec<Vec<u8>> {
    type Flags = fn(&mut TcpHeader);
    let flags: [Flags; 6] = [
        |header| header.syn = true,
        |header| (header.syn, header.ack) = (true, true),
        |header| header.ack = true,
        |header| (header.fin, header.ack) = (true, true),
        |header| header.rst = true,
        // Maximum segment size, window scale, timestamps.
        |header| {
            header.ack = true;
            header
                .set_options_raw(&[2, 4, 5, 180, 1, 3, 3, 7, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
                .unwrap();
        },
    ];
    let payload = b"some bytes of payload";
    let mut packets: Vec<_> = flags
        .iter()
        .map(|flags| tcp(link, ends, 64, flags, payload))
        .collect();
    let datagram = udp(link, ends, 64, payload);
    let mut without_checksum = datagram.clone();
    without_checksum[40..42].copy_from_slice(&[0, 0]);
    let id = |ends: Ends| {
        if ends.dst == NODE {
            Ends { src_port: 0, ..ends }
        } else {
            Ends { dst_port: 0, ..ends }
        }
    };
    let request = echo(link, id(ends), true);
    let long = udp(link, ends, 64, &[7; 60]);
    packets.extend(cut(&long, 24, 0x1234));
    packets.extend(cut(&packets[2].clone(), 24, 0x1235));
    packets.extend(cut(&request, 8, 0x1236));
    // Record route, and a source route.
    packets.extend(
        [&[7, 7, 4, 0, 0, 0, 0, 0][..], &[131, 7, 4, 9, 9, 9, 9, 1]]
            .iter()
            .flat_map(|options| {
                [&datagram, &packets[0], &packets[2], &request].map(|packet| with_options(packet, options))
            })
            .collect::<Vec<_>>(),
    );
    packets.extend([datagram, without_checksum, request, echo(link, id(ends), false)]);
    packets
}

/// ICMP errors of every type about a flow whose packets go as `quoted` says, with as much quoted as one likes.
fn errors(link: Link, src: Ipv4Addr, dst: Ipv4Addr, quoted: Ends) -> Vec<Vec<u8>> {
    let kinds = [(3, 0), (3, 3), (3, 4), (4, 0), (5, 1), (11, 0), (11, 1), (12, 0)];
    let mut packets = Vec::new();
    for protocol in [TCP, UDP, ICMP] {
        let ends = match protocol {
            ICMP if quoted.src == INTERNET => Ends {
                src_port: 0,
                ..quoted
            },
            ICMP => Ends {
                dst_port: 0,
                ..quoted
            },
            _ => quoted,
        };
        let whole = original(protocol, ends);
        packets.extend(kinds.map(|kind| error(link, src, dst, kind, &whole)));
        let inside = with_options(&[&[0; 14][..], &whole].concat(), &[1, 1, 1, 0]);
        packets.push(error(link, src, dst, (3, 1), &inside[14..]));
        packets.push(error(link, src, dst, (3, 1), &whole[..28]));
    }
    packets
}

/// SCTP, GRE, ESP, IPIP, UDP-Lite, and one that nobody has; a first and a later fragment; what ICMP says besides.
fn without_ports(link: Link, src: Ipv4Addr, dst: Ipv4Addr) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for protocol in [132, 47, 50, 4, 136, 253] {
        packets.push(portless::packet(link, protocol, src, dst, 0));
        packets.push(portless::packet(link, protocol, src, dst, 20));
    }
    // Redirect, router advertisement, timestamp, address mask.
    packets.extend([5, 9, 13, 14, 17].map(|kind| error(link, src, dst, (kind, 0), &[0; 12])));
    packets
}

/// Frames without an IPv4 header behind an Ethernet header: ARP, IPv6, a VLAN tag in the frame, and others.
fn no_ipv4(link: Link, pod: Ipv4Addr) -> Vec<Vec<u8>> {
    let ends = Ends {
        src: pod,
        src_port: 40_000,
        dst: INTERNET,
        dst_port: 443,
    };
    let datagram = udp(link, ends, 64, b"x");
    let frame = |kind: u16, body: &[u8]| [&link.1[..], &link.0, &kind.to_be_bytes(), body].concat();
    let arp = |operation: u8, sender: Ipv4Addr| {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        [&head[..], &link.0, &sender.octets(), &[0; 6], &[169, 254, 1, 1]].concat()
    };
    let tag = |inner: &[u8]| [&[0x20, 100][..], inner].concat();
    vec![
        frame(0x0806, &arp(1, pod)),
        frame(0x0806, &arp(2, pod)),
        frame(0x0806, &arp(1, Ipv4Addr::UNSPECIFIED)),
        frame(
            0x86dd,
            &[
                &[0x60, 0, 0, 0, 0, 8, 17, 64][..],
                &[0xfd; 32],
                &[0, 53, 0, 53, 0, 8, 0, 0],
            ]
            .concat(),
        ),
        frame(0x8100, &tag(&datagram[12..])),
        frame(0x88a8, &tag(&frame(0x8100, &tag(&datagram[12..]))[12..])),
        frame(0x8847, &[&[0, 1, 1, 64][..], &datagram[14..]].concat()),
        frame(
            0x8864,
            &[&[0x11, 0, 0, 1, 0, 31, 0, 0x21][..], &datagram[14..]].concat(),
        ),
        frame(0x88cc, &[2, 7, 4, 1, 2, 3, 4, 5, 6, 0, 0]),
        frame(46, &[0xaa; 46]),
    ]
}

/// The same packet with IP options, a multiple of four bytes.
pub(crate) fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let (mut header, payload) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    header.options = options.try_into().unwrap();
    header.set_payload_len(payload.len()).unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut packet = frame[..14].to_vec();
    header.write_raw(&mut packet).unwrap();
    packet.extend_from_slice(payload);
    packet
}

/// The same packet as another protocol's.
pub(crate) fn as_protocol(frame: &[u8], protocol: u8) -> Vec<u8> {
    let (mut header, payload) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    header.protocol = IpNumber(protocol);
    header.header_checksum = header.calc_header_checksum();
    let mut packet = frame[..14].to_vec();
    header.write_raw(&mut packet).unwrap();
    packet.extend_from_slice(payload);
    packet
}
