//! UDP.

use std::net::Ipv4Addr;

use causeway_tests::fabric::WIRESERVER;

use super::{Draw, Row};
use crate::{
    packet::{Body, End, UDP},
    script::{Script, Side},
};

use Side::{Pod, Remote};

pub(super) const KINDS: &[Row] = &[
    ("udp, one way", 8, one_way),
    ("udp, request and reply", 20, request),
    ("udp, stream", 10, stream),
    ("udp, many to one remote", 10, many_to_one),
    ("udp, one port in two pods", 8, one_port_two_pods),
    ("udp, one socket to many remotes", 8, one_socket),
    ("udp, from port 0", 2, from_port_0),
    ("udp, NTP", 6, ntp),
    ("udp, without a checksum", 6, no_checksum),
    ("udp, none and as many bytes as fit", 6, sizes),
    ("udp, padded frames", 4, padded),
    ("udp, another port of the remote answers", 4, stranger),
    ("udp, another address answers", 4, another_address),
    ("udp, to an excluded range", 6, excluded),
    ("udp, from outside to a pod", 6, from_outside),
];

/// The platform's services have addresses of IPv4 alone.
pub(super) const OF_IPV4: &[Row] = &[
    ("udp, wireserver", 3, wireserver),
    ("udp, link-local service", 3, link_local),
];

fn one_way(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    for _ in 0..=draw.rng.below(5) {
        let len = draw.datagram();
        talk.udp(&mut script, Pod, len);
    }
    script
}

fn request(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    for _ in 0..=draw.rng.below(3) {
        let (up, down) = (draw.datagram(), draw.datagram());
        talk.udp(&mut script, Pod, up);
        talk.udp(&mut script, Remote, down);
    }
    script
}

fn stream(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 30);
    for _ in 0..4 {
        let side = draw.rng.pick(&[Pod, Remote]);
        talk.udp(&mut script, side, 500);
        for _ in 0..3 {
            let spec = talk.spec(
                side,
                Body::Udp {
                    len: draw.datagram(),
                    checksum: true,
                },
            );
            script.also(talk.point(side), spec);
        }
    }
    script
}

fn many_to_one(draw: &mut Draw<'_>) -> Script {
    let (pod, port, remote) = draw.busy();
    let (mut script, talk) = draw.translated(UDP, pod, port, remote);
    talk.udp(&mut script, Pod, 40);
    talk.udp(&mut script, Remote, 200);
    script
}

fn one_port_two_pods(draw: &mut Draw<'_>) -> Script {
    let port = draw.port();
    let (mut script, talk) = draw.twin(UDP, port);
    for _ in 0..3 {
        talk.udp(&mut script, Pod, 10);
        talk.udp(&mut script, Remote, 10);
    }
    script
}

fn one_socket(draw: &mut Draw<'_>) -> Script {
    let ((pod, port), remote) = (draw.socket(), (draw.internet(), draw.rng.port(1, 65_535)));
    let (mut script, talk) = draw.translated(UDP, pod, port, remote);
    for _ in 0..2 {
        talk.udp(&mut script, Pod, 40);
        talk.udp(&mut script, Remote, 40);
    }
    script
}

/// Nobody is to answer (RFC 768).
fn from_port_0(draw: &mut Draw<'_>) -> Script {
    let (pod, remote) = (draw.pod(), (draw.internet(), draw.rng.port(1, 65_535)));
    let (mut script, talk) = draw.translated(UDP, pod, 0, remote);
    talk.udp(&mut script, Pod, 40);
    talk.udp(&mut script, Pod, 41);
    script
}

fn ntp(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.twin(UDP, 123);
    talk.udp(&mut script, Pod, 48);
    talk.udp(&mut script, Remote, 48);
    script
}

fn no_checksum(draw: &mut Draw<'_>) -> Script {
    let port = draw.port();
    let (mut script, talk) = draw.twin(UDP, port);
    for side in [Pod, Remote, Pod, Remote] {
        let spec = talk.spec(
            side,
            Body::Udp {
                len: draw.datagram(),
                checksum: false,
            },
        );
        script.push(talk.point(side), spec);
    }
    script
}

fn sizes(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    let largest = draw.family.largest_datagram();
    for len in [0, largest, 1, largest - 1] {
        talk.udp(&mut script, Pod, len);
        talk.udp(&mut script, Remote, len);
    }
    script
}

/// Network cards fill frames up to 60 bytes.
fn padded(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    for side in [Pod, Remote, Pod, Remote] {
        talk.udp(&mut script, side, 4).spec.padding = 14;
    }
    script
}

fn stranger(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 20);
    let End::At(addr, port) = talk.remote else {
        return script;
    };
    let body = Body::Udp {
        len: 20,
        checksum: true,
    };
    let mut spec = talk.spec(Remote, body);
    spec.src = End::At(addr, port ^ 1);
    script.push(talk.point(Remote), spec);
    talk.udp(&mut script, Remote, 20);
    script
}

/// It knows the node's port: only whom the pod has written to may answer.
fn another_address(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 20);
    let stranger = End::At(draw.stranger(), draw.port());
    talk.udp(&mut script, Remote, 20).spec.src = stranger;
    talk.udp(&mut script, Remote, 20);
    script
}

fn wireserver(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let (mut script, talk) = draw.direct(UDP, pod, port, (WIRESERVER.into(), 53));
    for _ in 0..2 {
        talk.udp(&mut script, Pod, 40);
        talk.udp(&mut script, Remote, 80);
    }
    script
}

fn link_local(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let remote = (Ipv4Addr::new(169, 254, 169, 254).into(), draw.rng.port(1, 65_535));
    let (mut script, talk) = draw.translated(UDP, pod, port, remote);
    for _ in 0..2 {
        talk.udp(&mut script, Pod, 40);
        talk.udp(&mut script, Remote, 80);
    }
    script
}

fn excluded(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let hosts = [draw.excluded(7), draw.family.vnet()];
    let remote = (draw.rng.pick(&hosts), draw.rng.port(1, 65_535));
    let (mut script, talk) = draw.direct(UDP, pod, port, remote);
    for _ in 0..3 {
        let len = draw.datagram();
        talk.udp(&mut script, Pod, len);
        talk.udp(&mut script, Remote, len);
    }
    script
}

fn from_outside(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.rng.port(1, 30_000));
    let hosts = [draw.internet(), draw.family.vnet()];
    let remote = (draw.rng.pick(&hosts), draw.port());
    let (mut script, talk) = draw.direct(UDP, pod, port, remote);
    for _ in 0..3 {
        let len = draw.datagram();
        talk.udp(&mut script, Remote, len);
        talk.udp(&mut script, Pod, len);
    }
    script
}
