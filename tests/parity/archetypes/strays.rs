//! Packets that belong to no flow: from pods, from outside, with sources that are not their sender's, to where nothing goes.

use super::{Draw, Row, alone};
use crate::{
    differences::Difference,
    family::Family,
    lane::WIRE,
    packet::{Body, End, Flaw, Spec, TCP, UDP, flag},
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
    let (mut script, talk) = alone(draw, draw.family.icmp());
    let body = Body::query(draw.answer(), 0, 12);
    script
        .push(talk.pod, Spec::new(talk.own, talk.remote, body))
        .differs = Some(Difference::InvalidLeaks);
    script
}

fn unknown_type(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(draw.family.icmp());
    let kind = draw.rng.pick(draw.family.other_icmp());
    let body = Body::query(kind, 0, 12);
    script.push(talk.pod, talk.spec(Pod, body)).differs = Some(Difference::InvalidLeaks);
    script
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
    let (kind, code, rest) = draw.family.port_unreachable();
    let body = Body::Error {
        kind,
        code,
        rest,
        quoted: Box::new(never),
        quote: draw.family.header() + 20,
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
    shot.spec.src = End::At(draw.family.foreign(), 5000);
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

fn martian(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let source = draw.rng.pick(&draw.family.martians());
    let (mut script, talk) = draw.direct(UDP, pod, port, (source, 7000));
    let shot = talk.udp(&mut script, Remote, 20);
    // Of IPv6 the kernel does not look for itself.
    if draw.family == Family::V6 && source == draw.family.node() {
        shot.differs = Some(Difference::SpoofedFromOutside);
    }
    script
}

fn nowhere(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let remote = draw.rng.pick(&draw.family.nowhere());
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
