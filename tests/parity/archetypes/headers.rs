//! Headers that are not the usual ones: type of service, options of TCP, lengths that contradict each other, frames for other
//! stations.

use super::{Draw, Row};
use crate::{
    differences::Difference,
    packet::{Body, Flaw, TCP, UDP, flag},
    script::{Script, Side},
};

use Side::{Pod, Remote};

pub(super) const KINDS: &[Row] = &[
    ("type of service", 4, type_of_service),
    ("tcp with options", 8, tcp_options),
    ("tcp with a header length that lies", 2, tcp_header_length),
    ("udp with a length that says too little", 2, udp_too_little),
    ("stray UDP of a pod, with no length", 2, udp_no_length),
    ("frames for another station", 2, |draw| {
        frame(draw, Flaw::OtherStation)
    }),
    ("frames for every station", 2, |draw| {
        frame(draw, Flaw::EveryStation)
    }),
];

/// Of IPv6 no router fragments.
pub(super) const OF_IPV4: &[Row] = &[("udp, may be fragmented or not", 4, may_be_fragmented)];

/// RFC 2474 and RFC 3168; not the precedence with which kernels send errors of their own.
fn type_of_service(draw: &mut Draw<'_>) -> Script {
    let tos = draw.rng.pick(&[0x01, 0x02, 0x03, 0x10, 0x28, 0x88, 0xb8]);
    let protocol = draw.rng.pick(&[TCP, UDP]);
    let (mut script, mut talk) = draw.outside(protocol);
    if protocol == TCP {
        talk.open(&mut script, Pod);
        talk.data(&mut script, Pod, 100);
        talk.close(&mut script, Remote);
    } else {
        for side in [Pod, Remote, Pod, Remote] {
            talk.udp(&mut script, side, 100);
        }
    }
    for shot in script.steps.iter_mut().flatten() {
        shot.spec.tos = tos;
    }
    script
}

fn may_be_fragmented(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    for side in [Pod, Remote, Pod, Remote] {
        let shot = talk.udp(&mut script, side, 100);
        shot.spec.dont_fragment = draw.rng.one_in(2);
    }
    script
}

/// Segment size, SACK, timestamps, window scale (RFC 9293, RFC 2018, RFC 7323).
fn tcp_options(draw: &mut Draw<'_>) -> Script {
    const OF_SYN: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    const LATER: &[u8] = &[1, 1, 8, 10, 0, 0, 0, 2, 0, 0, 0, 1];
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    for side in [Pod, Remote] {
        let largest = draw.family.largest_segment() - LATER.len();
        let len = draw.len(largest);
        talk.data(&mut script, side, len);
    }
    talk.close(&mut script, Pod);
    for shot in script.steps.iter_mut().flatten() {
        let Body::Tcp { flags, .. } = shot.spec.body else {
            continue;
        };
        shot.spec.tcp_options = if flags & flag::SYN == 0 { LATER } else { OF_SYN };
    }
    script
}

/// Shorter than a header, or longer than the packet.
fn tcp_header_length(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    let before = talk;
    let flaw = draw.rng.pick(&[Flaw::TcpHeaderShort, Flaw::TcpHeaderLong]);
    let spec = talk.segment(Pod, flag::ACK, 4);
    let shot = script.push(talk.pod, spec);
    shot.spec.flaw = flaw;
    shot.differs = Some(Difference::InvalidLeaks);
    let spec = talk.segment(Remote, flag::ACK, 4);
    script.push(talk.point(Remote), spec).spec.flaw = flaw;
    talk = before;
    talk.data(&mut script, Pod, 10);
    script
}

/// Bytes behind the datagram and inside the IP packet.
fn udp_too_little(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 40);
    talk.udp(&mut script, Remote, 40);
    for side in [Pod, Remote] {
        let shot = talk.udp(&mut script, side, 40);
        shot.spec.flaw = Flaw::UdpShort;
    }
    script
}

fn udp_no_length(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    let shot = talk.udp(&mut script, Pod, 40);
    shot.spec.flaw = Flaw::UdpNoLength;
    shot.differs = Some(Difference::InvalidLeaks);
    script
}

fn frame(draw: &mut Draw<'_>, flaw: Flaw) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 40);
    for side in [Remote, Pod] {
        talk.udp(&mut script, side, 41).spec.flaw = flaw;
        talk.udp(&mut script, side, 42);
    }
    script
}
