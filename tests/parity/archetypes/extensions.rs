//! Headers between that of IPv6 and what it carries, and what Causeway does not translate of IPv6.

use super::{Draw, Row, alone};
use crate::{
    differences::Difference,
    packet::{Body, Extension, Piece, Spec, TCP, UDP},
    script::{Script, Side},
};

use Side::{Pod, Remote};

pub(super) const KINDS: &[Row] = &[
    ("options for the destination", 6, options),
    ("options for every router", 6, router_options),
    ("options for every router that none passes on", 3, refused_options),
    (
        "error that quotes options for the destination",
        3,
        quoting_options,
    ),
    ("whole packets that call themselves fragments", 4, atomic),
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
    let extensions = draw
        .rng
        .pick(&[&[PADDING] as &[Extension], &[UNKNOWN], &[PADDING, UNKNOWN]]);
    datagrams_with(draw, extensions)
}

/// RFC 8200 section 4.3.
fn router_options(draw: &mut Draw<'_>) -> Script {
    const TO_PASS: Extension = for_routers(PADDING.bytes);
    const TO_SKIP: Extension = for_routers(&[0, 0, 0x1e, 2, 9, 9, 1, 0]);
    // RFC 2711, of a value that nobody has asked the kernel for.
    const ALERT: Extension = for_routers(&[0, 0, 5, 2, 0xff, 0xf0, 1, 0]);
    let extensions = draw.rng.pick(&[
        &[TO_PASS] as &[Extension],
        &[TO_SKIP],
        &[ALERT],
        &[TO_PASS, PADDING],
    ]);
    if draw.rng.one_in(2) {
        return datagrams_with(draw, extensions);
    }
    let protocol = draw.rng.pick(&[TCP, draw.family.icmp()]);
    let (mut script, mut talk) = alone(draw, protocol);
    if protocol == TCP {
        talk.open(&mut script, Pod);
        talk.data(&mut script, Pod, 100);
        talk.data(&mut script, Remote, 100);
        talk.close(&mut script, Remote);
    } else {
        for (side, answers) in [(Pod, false), (Remote, true)] {
            talk.echo(&mut script, side, answers, 1, 20);
        }
    }
    for shot in script.steps.iter_mut().flatten() {
        shot.spec.extensions = extensions;
    }
    script
}

/// Linux drops what has more than seven bytes of padding (`ip6_parse_tlv`, Linux 6.18; RFC 4942 section 2.1.9.5): it has to see
/// such a packet, though the flow is carried.
fn refused_options(draw: &mut Draw<'_>) -> Script {
    const PADDED: Extension = for_routers(UNKNOWN.bytes);
    let (mut script, talk) = alone(draw, UDP);
    for extensions in [&[] as &[Extension], &[PADDED], &[]] {
        for side in [Pod, Remote] {
            talk.udp(&mut script, side, 20).spec.extensions = extensions;
        }
    }
    script
}

const fn for_routers(bytes: &'static [u8]) -> Extension {
    Extension { number: 0, bytes }
}

/// A flow that has them in some of its packets, perhaps in its first ones.
fn datagrams_with(draw: &mut Draw<'_>, extensions: &'static [Extension]) -> Script {
    let (mut script, talk) = alone(draw, UDP);
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

/// RFC 4620. Where an echo has its identifier, these have what is asked.
fn node_information(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = alone(draw, draw.family.icmp());
    let body = Body::query(139, 0, 12);
    script.push(talk.pod, talk.spec(Pod, body)).differs = Some(Difference::Untranslated);
    script
}
