//! Headers between that of IPv6 and what it carries, and what Causeway does not translate of IPv6.

use super::{Draw, Row, alone};
use crate::{
    differences::Difference,
    packet::{Body, Extension, Piece, Spec, TCP, UDP},
    script::{Script, Shot, Side},
};

use Side::{Pod, Remote};

pub(super) const KINDS: &[Row] = &[
    ("options for the destination", 6, options),
    (
        "error that quotes options for the destination",
        3,
        quoting_options,
    ),
    ("whole packets that call themselves fragments", 4, atomic),
    ("untranslated: options for every router", 3, router_options),
    ("untranslated: ICMP node information", 2, node_information),
];

/// Padding (RFC 8200 section 4.2).
const PADDING: Extension = Extension {
    number: 60,
    bytes: &[0, 0, 1, 4, 0, 0, 0, 0],
};

/// An option that who does not know it skips.
const UNKNOWN: Extension = Extension {
    number: 60,
    bytes: &[0, 1, 0x1e, 2, 9, 9, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0],
};

fn options(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = alone(draw, UDP);
    let extensions = draw
        .rng
        .pick(&[&[PADDING] as &[Extension], &[UNKNOWN], &[PADDING, UNKNOWN]]);
    let from_the_start = draw.rng.one_in(2);
    if !from_the_start {
        talk.udp(&mut script, Pod, 10);
        talk.udp(&mut script, Remote, 10);
    }
    for side in [Pod, Remote, Pod, Remote] {
        talk.udp(&mut script, side, 20).spec.extensions = extensions;
    }
    talk.udp(&mut script, Pod, 10);
    talk.udp(&mut script, Remote, 10);
    script
}

fn quoting_options(draw: &mut Draw<'_>) -> Script {
    let port = draw.port();
    let (mut script, talk) = draw.twin(UDP, port);
    let shot = talk.udp(&mut script, Pod, 50);
    shot.spec.extensions = &[PADDING];
    let sent = shot.spec.clone();
    let (kind, code, rest) = draw.rng.pick(draw.family.errors());
    let body = Body::Error {
        kind,
        code,
        rest,
        quoted: Box::new(talk.as_seen_outside(&sent)),
        quote: 80,
    };
    script.push(talk.point(Remote), Spec::new(talk.remote, talk.seen, body));
    talk.udp(&mut script, Pod, 50);
    script
}

/// RFC 6946.
fn atomic(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 10);
    for side in [Pod, Remote, Pod, Remote] {
        let len = draw.len(1000);
        let shot = talk.udp(&mut script, side, len);
        shot.spec.piece = Some(Piece {
            from: 0,
            len: 8 + len,
            last: true,
        });
        shot.differs = Some(Difference::Rejoined);
    }
    talk.udp(&mut script, Pod, 10);
    script
}

fn untranslated(shot: &mut Shot) {
    shot.differs = Some(Difference::Untranslated);
}

fn router_options(draw: &mut Draw<'_>) -> Script {
    const HOP_BY_HOP: Extension = Extension { number: 0, ..PADDING };
    let protocol = draw.rng.pick(&[TCP, UDP, draw.family.icmp()]);
    let (mut script, mut talk) = alone(draw, protocol);
    match protocol {
        TCP => talk.tcp(&mut script, Pod, crate::packet::flag::SYN, 0),
        UDP => drop(talk.udp(&mut script, Pod, 20)),
        _ => drop(talk.echo(&mut script, Pod, false, 1, 20)),
    }
    for shot in script.steps.iter_mut().flatten() {
        shot.spec.extensions = &[HOP_BY_HOP];
        untranslated(shot);
    }
    script
}

/// RFC 4620. Where an echo has its identifier, these have what is asked.
fn node_information(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = alone(draw, draw.family.icmp());
    let body = Body::query(139, 0, 12);
    untranslated(script.push(talk.pod, talk.spec(Pod, body)));
    script
}
