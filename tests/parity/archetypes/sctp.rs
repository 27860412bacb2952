//! SCTP. nf_nat translates its ports; for Causeway it is a protocol without ports: one association of the node to a remote.

use super::{Draw, Row, alone};
use crate::{
    differences::Difference,
    lane::PODS,
    packet::{Body, End, Spec},
    script::{Script, Side, Talk},
};

use Side::{Pod, Remote};

pub(super) const KINDS: &[Row] = &[
    ("sctp", 2, association),
    ("sctp, another pod to the same remote", 2, another_pod),
];

const SCTP: u8 = 132;
/// The remote's port.
const PORT: u16 = 5060;

/// RFC 9260: INIT, INIT ACK, COOKIE ECHO, COOKIE ACK, then data.
fn association(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = alone(draw, SCTP);
    let (tag, other) = (draw.rng.next() as u32 | 1, draw.rng.next() as u32 | 1);
    let cookie = vec![10, 0, 0, 8, 1, 2, 3, 4];
    let data = vec![0, 3, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9];
    for (side, verification, chunk) in [
        (Pod, 0, init(1, tag)),
        (Remote, tag, init(2, other)),
        (Pod, other, cookie),
        (Remote, tag, vec![11, 0, 0, 4]),
        (Pod, other, data),
    ] {
        script.push(talk.point(side), packet(&talk, side, verification, &chunk));
    }
    script
}

/// While the first pod's association lives.
fn another_pod(draw: &mut Draw<'_>) -> Script {
    let mut script = association(draw);
    let first = script.steps[0][0].clone();
    let End::At(remote, port) = first.spec.dst else {
        return script;
    };
    let pod = 1 + first.point % PODS;
    let (_, talk) = draw.translated(SCTP, pod, 3000, (remote, port));
    let tag = draw.rng.next() as u32 | 1;
    script.push(pod, packet(&talk, Pod, 0, &init(1, tag))).differs = Some(Difference::SecondAssociation);
    script
}

fn init(kind: u8, tag: u32) -> Vec<u8> {
    let mut chunk = vec![kind, 0, 0, 20];
    chunk.extend(tag.to_be_bytes());
    chunk.extend([0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]);
    chunk
}

fn packet(talk: &Talk, side: Side, verification: u32, chunk: &[u8]) -> Spec {
    let own = match talk.own {
        End::At(_, port) => port,
        End::Mapped => 0,
    };
    let ports = if side == Pod { [own, PORT] } else { [PORT, own] };
    let mut bytes: Vec<u8> = ports.into_iter().flat_map(u16::to_be_bytes).collect();
    bytes.extend(verification.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(chunk);
    let check = crc32c(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&check);
    let body = Body::Other {
        protocol: SCTP,
        bytes,
    };
    match side {
        Pod => talk.spec(side, body),
        Remote => Spec::new(talk.remote, End::At(talk.family().node(), 0), body),
    }
}

/// RFC 9260 appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    });
    !crc
}
