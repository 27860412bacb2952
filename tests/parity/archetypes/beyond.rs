//! Fragments and protocols without ports.

use std::net::IpAddr;

use super::{Draw, Row, alone};
use crate::{
    differences::Difference,
    family::Family,
    packet::{Body, End, Piece, Spec, UDP},
    script::{Script, Side},
};

use Side::{Pod, Remote};

pub(super) const KINDS: &[Row] = &[
    ("fragments, in order", 4, |draw| datagram(draw, InOrder)),
    ("fragments, out of order behind the first", 4, |draw| {
        datagram(draw, FirstThenAnyOrder)
    }),
    ("fragments, no translation", 3, untranslated),
    ("fragments of an echo", 3, echo),
    ("fragments, the last of 1 to 3 bytes", 3, short_end),
    ("fragments, the first is missing", 3, headless),
    ("fragments, the first comes last", 3, head_last),
    ("fragments from outside to a pod", 3, from_outside),
    ("protocols without ports", 4, without_ports),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    InOrder,
    FirstThenAnyOrder,
}

use Order::{FirstThenAnyOrder, InOrder};

/// Adds a step with a packet in pieces that are as large as they can be.
fn in_pieces(draw: &mut Draw<'_>, script: &mut Script, point: usize, whole: &Spec, order: Order) {
    let len = 8 + whole.body.len();
    let most = draw.family.piece();
    let mut pieces: Vec<Piece> = (0..len)
        .step_by(most)
        .map(|from| Piece {
            from,
            len: most.min(len - from),
            last: from + most >= len,
        })
        .collect();
    if order == FirstThenAnyOrder {
        for last in (2..pieces.len()).rev() {
            pieces.swap(last, 1 + draw.rng.below(last));
        }
    }
    for (number, piece) in pieces.into_iter().enumerate() {
        let spec = Spec {
            dont_fragment: false,
            piece: Some(piece),
            ..whole.clone()
        };
        if number == 0 {
            script.push(point, spec);
        } else {
            script.also(point, spec).same_id = true;
        }
    }
}

fn datagram(draw: &mut Draw<'_>, order: Order) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    if draw.rng.one_in(2) {
        talk.udp(&mut script, Pod, 10);
        talk.udp(&mut script, Remote, 10);
    }
    for side in [Pod, Remote, Pod] {
        let len = 1473 + draw.rng.below(6000);
        let whole = talk.spec(side, Body::Udp { len, checksum: true });
        in_pieces(draw, &mut script, talk.point(side), &whole, order);
    }
    script
}

/// To an excluded range.
fn untranslated(draw: &mut Draw<'_>) -> Script {
    let remote = draw.excluded(8);
    direct(draw, remote, [Pod, Remote, Pod])
}

/// To a pod's own address; what the pod sends then is an answer.
fn from_outside(draw: &mut Draw<'_>) -> Script {
    let remote = draw.stranger();
    direct(draw, remote, [Remote, Pod, Remote])
}

fn direct(draw: &mut Draw<'_>, remote: IpAddr, sides: [Side; 3]) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let (mut script, talk) = draw.direct(UDP, pod, port, (remote, 4000));
    for side in sides {
        let len = 1473 + draw.rng.below(6000);
        let whole = talk.spec(side, Body::Udp { len, checksum: true });
        in_pieces(draw, &mut script, talk.point(side), &whole, FirstThenAnyOrder);
    }
    script
}

fn echo(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.ping();
    let len = 1473 + draw.rng.below(6000);
    let order = draw.rng.pick(&[InOrder, FirstThenAnyOrder]);
    let (question, answer) = draw.family.echo();
    for (side, kind) in [(Pod, question), (Remote, answer)] {
        let whole = talk.spec(side, Body::query(kind, 1, len));
        in_pieces(draw, &mut script, talk.point(side), &whole, order);
    }
    script
}

fn short_end(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 10);
    for rest in 1..=3 {
        for side in [Pod, Remote] {
            let len = draw.family.piece() - 8 + rest;
            let whole = talk.spec(side, Body::Udp { len, checksum: true });
            in_pieces(draw, &mut script, talk.point(side), &whole, InOrder);
            if draw.family == Family::V6 {
                script.steps.last_mut().expect("a step was just added")[0].differs =
                    Some(Difference::Rejoined);
            }
        }
    }
    script
}

/// Nobody knows whose the rest is: nothing comes out of it. The flow itself goes on.
fn headless(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = alone(draw, UDP);
    talk.udp(&mut script, Pod, 10);
    for side in [Pod, Remote] {
        let len = 1473 + draw.rng.below(6000);
        let whole = talk.spec(side, Body::Udp { len, checksum: true });
        in_pieces(draw, &mut script, talk.point(side), &whole, InOrder);
        let pieces = script.steps.last_mut().expect("a step was just added");
        pieces.remove(0);
        pieces[0].same_id = false;
        talk.udp(&mut script, side, 20);
    }
    script
}

/// Later than anything else that is under way.
fn head_last(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = alone(draw, UDP);
    let id = draw.identification();
    talk.udp(&mut script, Pod, 10);
    for side in [Pod, Remote] {
        let len = 1473 + draw.rng.below(6000);
        let whole = talk.spec(side, Body::Udp { len, checksum: true });
        in_pieces(draw, &mut script, talk.point(side), &whole, InOrder);
        let mut rest = script.steps.pop().expect("a step was just added");
        for shot in &mut rest {
            shot.id = Some(id);
        }
        let mut head = rest.remove(0);
        head.differs = Some(Difference::LateHead);
        script.steps.extend([rest, vec![head]]);
        talk.udp(&mut script, side, 20);
    }
    script
}

fn without_ports(draw: &mut Draw<'_>) -> Script {
    const GRE: u8 = 47;
    const ESP: u8 = 50;
    const IPIP: u8 = 4;
    const UNKNOWN: u8 = 253;
    let protocol = draw.rng.pick(&[GRE, ESP, IPIP, UNKNOWN]);
    let (mut script, talk) = draw.outside(protocol);
    for side in [Pod, Remote, Pod, Remote] {
        let bytes = vec![0x20; 8 + draw.rng.below(200)];
        let mut spec = talk.spec(side, Body::Other { protocol, bytes });
        if side == Remote {
            spec.dst = End::At(draw.family.node(), 0);
        }
        script.push(talk.point(side), spec);
    }
    script
}
