//! What is not a flow's usual course: wrong checksums and lengths, IP options, the ends of a time to live, packets that are
//! too large, packets for the node, between pods, and to where no pod may go.

use causeway_tests::fabric::WIRESERVER;

use super::{Draw, Row, tcp};
use crate::{
    differences::Difference,
    lane::{NARROW_MTU, PODS, WIRE},
    packet::{Body, Flaw, TCP, UDP, flag},
    script::{Script, Side},
};

use Side::{Pod, Remote};

pub(super) const KINDS: &[Row] = &[
    ("tcp, to an excluded range", 8, tcp::excluded),
    ("tcp, from outside to a pod", 10, tcp::from_outside),
    ("wrong checksum of a pod", 4, |draw| wrong_checksum(draw, Pod)),
    ("wrong checksum of a remote", 4, |draw| {
        wrong_checksum(draw, Remote)
    }),
    ("time to live 1 and 2", 8, time_to_live),
    ("too large, may not be fragmented", 4, |draw| {
        too_large(draw, true)
    }),
    ("IP length that lies", 2, lying_length),
    ("a pod to itself", 2, to_itself),
    ("between pods", 10, between_pods),
    ("a pod to its node", 4, to_the_node),
];

/// What the header of IPv6 has not, and the platform's services, which have addresses of IPv4 alone.
pub(super) const OF_IPV4: &[Row] = &[
    ("wrong IP checksum", 4, wrong_ip_checksum),
    ("IP options", 6, options),
    ("IP option: record route", 3, record_route),
    ("too large, may be fragmented", 3, |draw| too_large(draw, false)),
    ("tcp to the wireserver's guarded ports", 2, guarded),
];

fn wrong_ip_checksum(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    if draw.rng.one_in(2) {
        talk.udp(&mut script, Pod, 10);
        talk.udp(&mut script, Remote, 10);
        talk.udp(&mut script, Remote, 11).spec.flaw = Flaw::IpChecksum;
    }
    talk.udp(&mut script, Pod, 11).spec.flaw = Flaw::IpChecksum;
    script
}

fn wrong_checksum(draw: &mut Draw<'_>, side: Side) -> Script {
    let protocol = draw.rng.pick(&[TCP, UDP, draw.family.icmp()]);
    let (mut script, mut talk) = draw.outside(protocol);
    let wrong = match protocol {
        TCP => {
            talk.open(&mut script, Pod);
            talk.segment(side, flag::ACK, 10)
        }
        UDP => {
            talk.udp(&mut script, Pod, 10);
            talk.udp(&mut script, Remote, 10);
            talk.spec(
                side,
                Body::Udp {
                    len: 9,
                    checksum: true,
                },
            )
        }
        _ => {
            talk.echo(&mut script, Pod, false, 1, 10);
            talk.echo(&mut script, Remote, true, 1, 10);
            talk.spec(side, echo_body(draw, side, 2, 10))
        }
    };
    let shot = script.push(talk.point(side), wrong);
    shot.spec.flaw = Flaw::Checksum;
    shot.differs = Some(match side {
        Pod => Difference::InvalidFromPod,
        Remote => Difference::InvalidFromOutside,
    });
    script
}

fn echo_body(draw: &Draw<'_>, side: Side, seq: u16, len: usize) -> Body {
    let (question, answer) = draw.family.echo();
    Body::query(if side == Pod { question } else { answer }, seq, len)
}

fn options(draw: &mut Draw<'_>) -> Script {
    // No operation; a security label (RFC 1108); the router alert (RFC 2113) between no operations.
    const OPTIONS: &[&[u8]] = &[&[1, 1, 1, 0], &[130, 4, 1, 0], &[1, 1, 1, 1, 148, 4, 0, 0]];
    let (mut script, talk) = draw.outside(UDP);
    let options = draw.rng.pick(OPTIONS);
    let from_the_start = draw.rng.one_in(2);
    if !from_the_start {
        talk.udp(&mut script, Pod, 10);
        talk.udp(&mut script, Remote, 10);
    }
    for side in [Pod, Remote, Pod, Remote] {
        talk.udp(&mut script, side, 20).spec.options = options;
    }
    talk.udp(&mut script, Pod, 10);
    talk.udp(&mut script, Remote, 10);
    script
}

/// Every router on the way writes its address (RFC 791).
fn record_route(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    for side in [Pod, Remote, Pod, Remote] {
        talk.udp(&mut script, side, 20).spec.options = &[7, 7, 4, 0, 0, 0, 0, 0];
    }
    script
}

fn time_to_live(draw: &mut Draw<'_>) -> Script {
    let protocol = draw.rng.pick(&[TCP, UDP, draw.family.icmp()]);
    let (mut script, mut talk) = draw.outside(protocol);
    let first = draw.rng.pick(&[1, 2, 64]);
    match protocol {
        TCP => talk.tcp(&mut script, Pod, flag::SYN, 0),
        UDP => drop(talk.udp(&mut script, Pod, 10)),
        _ => drop(talk.echo(&mut script, Pod, false, 1, 10)),
    }
    for step in &mut script.steps {
        step[0].spec.ttl = first;
    }
    if first == 1 {
        return script;
    }
    for ttl in [2, 1, 2] {
        for side in [Remote, Pod] {
            let spec = match protocol {
                TCP if side == Remote => {
                    let down = talk.down;
                    let again = talk.segment(side, flag::SYN | flag::ACK, 0);
                    talk.down = down;
                    again
                }
                TCP => talk.segment(side, flag::SYN, 0),
                UDP => talk.spec(
                    side,
                    Body::Udp {
                        len: 100,
                        checksum: true,
                    },
                ),
                _ => talk.spec(side, echo_body(draw, side, 7, 100)),
            };
            if protocol == TCP && side == Pod {
                talk.up = talk.up.wrapping_sub(1);
                continue;
            }
            script.push(talk.point(side), spec).spec.ttl = ttl;
        }
    }
    script
}

fn too_large(draw: &mut Draw<'_>, dont_fragment: bool) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let remote = (draw.family.narrow(draw.rng.port(1, 254) as u8), draw.port());
    let (mut script, talk) = draw.translated(UDP, pod, port, remote);
    let largest = draw.family.largest_datagram();
    let fits = largest + usize::from(NARROW_MTU) - 1500;
    if draw.rng.one_in(2) {
        talk.udp(&mut script, Pod, fits + 1);
    }
    talk.udp(&mut script, Pod, fits);
    talk.udp(&mut script, Remote, largest);
    talk.udp(&mut script, Pod, fits + 1);
    talk.udp(&mut script, Pod, largest);
    talk.udp(&mut script, Pod, 10);
    for shot in script.steps.iter_mut().flatten() {
        shot.spec.dont_fragment = dont_fragment;
    }
    script
}

/// The header says more than has come.
fn lying_length(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 10);
    for side in [Pod, Remote] {
        talk.udp(&mut script, side, 100).spec.flaw = Flaw::IpLength;
    }
    talk.udp(&mut script, Remote, 10);
    script
}

/// To its own address, which is not on any interface of its own here: the node sends it back.
fn to_itself(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let remote = (draw.addr(pod), draw.rng.pick(&[port, 7]));
    let (mut script, talk) = draw.direct(UDP, pod, port, remote);
    talk.udp(&mut script, Pod, 20);
    talk.udp(&mut script, Pod, 20);
    script
}

fn between_pods(draw: &mut Draw<'_>) -> Script {
    let pod = draw.pod();
    let other = 1 + pod % PODS;
    let remote = (draw.addr(other), draw.rng.port(1, 30_000));
    let protocol = draw.rng.pick(&[TCP, UDP]);
    let port = draw.port();
    let (mut script, mut talk) = draw.direct(protocol, pod, port, remote);
    let len = draw.segment();
    if protocol == TCP {
        talk.open(&mut script, Pod);
        talk.data(&mut script, Pod, len);
        talk.data(&mut script, Remote, len);
        talk.close(&mut script, Remote);
    } else {
        for side in [Pod, Remote, Pod, Remote] {
            talk.udp(&mut script, side, len);
        }
    }
    for shot in script
        .steps
        .iter_mut()
        .flatten()
        .filter(|shot| shot.point == WIRE)
    {
        shot.point = other;
    }
    script
}

fn to_the_node(draw: &mut Draw<'_>) -> Script {
    let protocol = draw.rng.pick(&[TCP, UDP]);
    let (pod, port) = (draw.pod(), draw.port());
    let (mut script, mut talk) = draw.direct(protocol, pod, port, (draw.family.node(), 1));
    talk.remote = draw.node_end();
    if protocol == TCP {
        talk.tcp(&mut script, Pod, flag::SYN, 0);
    } else {
        talk.udp(&mut script, Pod, 50);
    }
    script
}

fn guarded(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let to = draw.rng.pick(&[80, 32_526, 443]);
    let (mut script, mut talk) = draw.direct(TCP, pod, port, (WIRESERVER.into(), to));
    talk.tcp(&mut script, Pod, flag::SYN, 0);
    script
}
