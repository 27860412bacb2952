//! Fragments and protocols without ports.

use causeway_tests::fabric::NODE;

use super::{Draw, Row};
use crate::{
    packet::{Body, End, Piece, Spec, UDP, query},
    script::{Script, Side},
};

use Side::{Pod, Remote};

const COMPARED: &[Row] = &[
    ("fragments, in order", 4, |draw| datagram(draw, false)),
    ("fragments of an echo", 3, echo),
    ("fragments, the last of 1 to 3 bytes", 3, short_end),
    ("protocols without ports", 4, without_ports),
];

/// Kinds that are not compared, and why.
const WAITING: &[(Row, &str)] = &[
    (
        ("fragments, the first is missing", 2, headless),
        "nf_nat keeps them for 30 s and mixes them with a later datagram of the same identification",
    ),
    (
        ("fragments, out of order", 4, |draw| datagram(draw, true)),
        "a fragment of a pod that overtakes its first one is dropped (snat_fragment), where nf_nat holds it",
    ),
];

/// The kinds that are compared, and why the others are not.
pub(super) fn kinds() -> (Vec<Row>, Vec<String>) {
    let waiting = WAITING.iter().map(|(row, reason)| format!("{}: {reason}", row.0));
    (COMPARED.to_vec(), waiting.collect())
}

/// Adds a step with a packet in pieces of `size` bytes, a multiple of 8.
fn in_pieces(script: &mut Script, point: usize, whole: &Spec, len: usize, size: usize, reversed: bool) {
    let mut pieces: Vec<Piece> = (0..len)
        .step_by(size)
        .map(|from| Piece {
            from,
            len: size.min(len - from),
            last: from + size >= len,
        })
        .collect();
    if reversed {
        pieces.reverse();
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

fn datagram(draw: &mut Draw<'_>, reversed: bool) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    if draw.rng.one_in(2) {
        talk.udp(&mut script, Pod, 10);
        talk.udp(&mut script, Remote, 10);
    }
    for side in [Pod, Remote, Pod] {
        let len = 1473 + draw.rng.below(6000);
        let whole = talk.spec(side, Body::Udp { len, checksum: true });
        in_pieces(&mut script, talk.point(side), &whole, len + 8, 1480, reversed);
    }
    script
}

fn echo(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.ping();
    let len = 2000 + draw.rng.below(3000);
    for side in [Pod, Remote] {
        let kind = if side == Pod { query::ECHO.0 } else { query::ECHO.1 };
        let whole = talk.spec(side, Body::query(kind, 1, len));
        in_pieces(&mut script, talk.point(side), &whole, len + 8, 1480, false);
    }
    script
}

fn short_end(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    for rest in 1..=3 {
        for side in [Pod, Remote] {
            let len = 1480 - 8 + rest;
            let whole = talk.spec(side, Body::Udp { len, checksum: true });
            in_pieces(&mut script, talk.point(side), &whole, len + 8, 1480, false);
        }
    }
    script
}

/// Nobody knows whose it is: nothing comes out.
fn headless(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 10);
    let mut late = talk.spec(
        Pod,
        Body::Udp {
            len: 2000,
            checksum: true,
        },
    );
    late.dont_fragment = false;
    late.piece = Some(Piece {
        from: 1480,
        len: 528,
        last: true,
    });
    script.push(talk.pod, late);
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
            spec.dst = End::At(NODE, 0);
        }
        script.push(talk.point(side), spec);
    }
    script
}
