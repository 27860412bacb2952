//! Packets that belong to no flow: from pods, from outside, with sources that are not their sender's, to where nothing goes.

use std::net::Ipv4Addr;

use causeway_tests::fabric::NODE;

use super::{Draw, Row, alone};
use crate::{
    differences::Difference,
    lane::WIRE,
    packet::{Body, End, Flaw, ICMP, Spec, TCP, UDP, flag, query},
    script::{Script, Side},
};

use Side::{Pod, Remote};

pub(super) const KINDS: &[Row] = &[
    ("stray ACK of a pod", 3, |draw| segment(draw, flag::ACK)),
    ("stray RST of a pod", 2, |draw| segment(draw, flag::RST)),
    ("stray FIN of a pod", 2, |draw| {
        segment(draw, flag::FIN | flag::ACK)
    }),
    ("stray TCP flags of a pod", 2, meaningless),
    ("stray ICMP answer of a pod", 2, answer),
    ("stray ICMP of a pod, of an unknown type", 2, unknown_type),
    ("stray ICMP error of a pod", 2, error),
    ("stray UDP of a pod, with a length that lies", 2, lying_length),
    ("strays from outside to the node", 4, from_outside),
    ("strays from outside to a pod", 3, to_a_pod),
    ("a source that is not the pod's", 2, spoofed),
    ("a source that is a pod's, from outside", 2, spoofed_from_outside),
    ("a source that nobody has, from outside", 2, martian),
    ("to where nothing is forwarded", 2, nowhere),
];

/// Kinds of which nothing comes out.
pub(super) const SILENT: &[&str] = &[
    "a source that nobody has, from outside",
    "to where nothing is forwarded",
];

fn segment(draw: &mut Draw<'_>, flags: u8) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    let spec = talk.segment(Pod, flags, 0);
    script.push(talk.pod, spec).differs = Some(if flags == flag::ACK {
        Difference::MidFlow
    } else {
        Difference::InvalidLeaks
    });
    script
}

/// Flags that no state of TCP sends.
fn meaningless(draw: &mut Draw<'_>) -> Script {
    use flag::{ACK, FIN, PSH, RST, SYN, URG};
    let flags = [
        0,
        FIN,
        SYN | FIN,
        SYN | RST,
        SYN | FIN | ACK,
        FIN | PSH | URG,
        FIN | RST,
    ];
    let flags = draw.rng.pick(&flags);
    let (mut script, mut talk) = draw.outside(TCP);
    let spec = talk.segment(Pod, flags, 0);
    script.push(talk.pod, spec).differs = Some(Difference::InvalidLeaks);
    script
}

fn answer(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = alone(draw, ICMP);
    let kind = draw.rng.pick(&[query::ECHO.1, query::TIMESTAMP.1]);
    let body = Body::Other {
        protocol: ICMP,
        bytes: icmp(kind, 12),
    };
    script
        .push(talk.pod, Spec::new(talk.own, talk.remote, body))
        .differs = Some(Difference::InvalidLeaks);
    script
}

/// Router discovery (RFC 1256), traceroute (RFC 1393), security failures (RFC 2521), extended echo (RFC 8335), no type at all.
fn unknown_type(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(ICMP);
    let kind = draw.rng.pick(&[9, 10, 30, 40, 42, 255]);
    let body = Body::Other {
        protocol: ICMP,
        bytes: icmp(kind, 12),
    };
    script.push(talk.pod, talk.spec(Pod, body)).differs = Some(Difference::InvalidLeaks);
    script
}

fn icmp(kind: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.resize(8 + len, 0x11);
    let check = crate::packet::checksum(&bytes, 0).to_be_bytes();
    bytes[2..4].copy_from_slice(&check);
    bytes
}

/// About a packet that the pod has never received.
fn error(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    let never = Spec::new(
        talk.remote,
        talk.own,
        Body::Udp {
            len: 30,
            checksum: true,
        },
    );
    let body = Body::Error {
        kind: 3,
        code: 3,
        rest: 0,
        quoted: Box::new(never),
        quote: 40,
    };
    script
        .push(talk.pod, Spec::new(talk.own, talk.remote, body))
        .differs = Some(Difference::InvalidLeaks);
    script
}

fn lying_length(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    let shot = talk.udp(&mut script, Pod, 40);
    shot.spec.flaw = Flaw::UdpLength;
    shot.differs = Some(Difference::InvalidLeaks);
    script
}

fn spoofed(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    let shot = talk.udp(&mut script, Pod, 20);
    shot.spec.src = End::At([192, 168, 7, 7].into(), 5000);
    shot.differs = Some(Difference::Spoofed);
    script
}

/// In the name of one pod to another.
fn spoofed_from_outside(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let other = 1 + pod % crate::lane::PODS;
    let remote = (draw.addr(other), draw.port());
    let (mut script, talk) = draw.direct(UDP, pod, port, remote);
    talk.udp(&mut script, Remote, 20).differs = Some(Difference::SpoofedFromOutside);
    script
}

/// Sources that no packet may have (RFC 1812 section 5.3.7), and the node's own address.
fn martian(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let sources: [[u8; 4]; 5] = [
        [127, 0, 0, 1],
        [0, 0, 0, 1],
        [224, 0, 0, 1],
        [255; 4],
        NODE.octets(),
    ];
    let source: Ipv4Addr = draw.rng.pick(&sources).into();
    let (mut script, talk) = draw.direct(UDP, pod, port, (source, 7000));
    talk.udp(&mut script, Remote, 20);
    script
}

fn nowhere(draw: &mut Draw<'_>) -> Script {
    let destinations: [[u8; 4]; 5] = [
        [224, 0, 0, 1],
        [239, 1, 2, 3],
        [255; 4],
        [127, 0, 0, 1],
        [10, 240, 255, 255],
    ];
    let (pod, port) = (draw.pod(), draw.port());
    let remote = Ipv4Addr::from(draw.rng.pick(&destinations));
    let (mut script, talk) = draw.direct(UDP, pod, port, (remote, 7000));
    talk.udp(&mut script, Pod, 20);
    script
}

/// To ports of the node that belong to nobody: the node itself answers.
fn from_outside(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.seen = draw.node_end();
    for flags in [
        flag::SYN,
        flag::ACK,
        flag::SYN | flag::ACK,
        flag::RST,
        flag::FIN | flag::ACK,
    ] {
        talk.tcp(&mut script, Remote, flags, 0);
    }
    let datagram = Spec::new(
        talk.remote,
        talk.seen,
        Body::Udp {
            len: 40,
            checksum: true,
        },
    );
    script.push(WIRE, datagram);
    script
}

fn to_a_pod(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let remote = (draw.internet(), draw.port());
    let (mut script, mut talk) = draw.direct(TCP, pod, port, remote);
    let flags = draw
        .rng
        .pick(&[flag::ACK, flag::RST, flag::SYN | flag::ACK, flag::FIN | flag::ACK]);
    talk.tcp(&mut script, Remote, flags, 0);
    script
}
