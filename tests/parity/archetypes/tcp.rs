//! TCP: opens, data, ends of every kind, and tuples that come back.

use super::{Draw, Row};
use crate::{
    differences::Difference,
    lane::WIRE,
    mappings::Inside,
    packet::{TCP, flag},
    script::{Script, Side, Talk},
};

use Side::{Pod, Remote};

const ACK: u8 = flag::ACK;

pub(super) const KINDS: &[Row] = &[
    ("tcp", 40, whole),
    ("tcp, the server closes", 10, server_closes),
    ("tcp, SYN again", 6, syn_again),
    ("tcp, SYN-ACK again", 4, syn_ack_again),
    ("tcp, no answer", 4, no_answer),
    ("tcp, refused", 6, refused),
    ("tcp, the pod resets", 6, |draw| reset(draw, Pod)),
    ("tcp, the server resets", 6, |draw| reset(draw, Remote)),
    ("tcp, half closed", 8, half_closed),
    ("tcp, both close at once", 6, both_close),
    ("tcp, both open at once", 4, both_open),
    ("tcp, segments again", 6, segments_again),
    ("tcp, the tuple comes back after a close", 8, |draw| {
        comes_back(draw, false)
    }),
    ("tcp, the tuple comes back after a reset", 6, |draw| {
        comes_back(draw, true)
    }),
    ("tcp, one port in two pods", 8, one_port_two_pods),
    ("tcp, privileged port in two pods", 4, privileged),
    ("tcp, many to one remote", 8, many_to_one),
    ("tcp, keep-alive", 4, keep_alive),
    ("tcp, SYN on a living connection", 4, syn_on_a_living_one),
    ("tcp, SYN with other flags", 3, syn_with_flags),
    ("tcp, out of a pod's window", 2, |draw| out_of_window(draw, Pod)),
    ("tcp, out of a remote's window", 2, |draw| {
        out_of_window(draw, Remote)
    }),
];

fn whole(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    for _ in 0..=draw.rng.below(3) {
        let (up, down) = (draw.segment(), draw.segment());
        talk.data(&mut script, Pod, up);
        talk.data(&mut script, Remote, down);
    }
    talk.close(&mut script, Pod);
    script
}

fn server_closes(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    let len = draw.segment();
    talk.data(&mut script, Remote, len);
    talk.close(&mut script, Remote);
    script
}

fn syn_again(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    for _ in 0..=draw.rng.below(3) {
        let before = talk;
        talk.tcp(&mut script, Pod, flag::SYN, 0);
        talk = before;
    }
    talk.open(&mut script, Pod);
    talk.data(&mut script, Pod, 100);
    talk.close(&mut script, Pod);
    script
}

fn syn_ack_again(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.tcp(&mut script, Pod, flag::SYN, 0);
    let before = talk;
    talk.tcp(&mut script, Remote, flag::SYN | ACK, 0);
    talk = before;
    talk.tcp(&mut script, Remote, flag::SYN | ACK, 0);
    talk.tcp(&mut script, Pod, ACK, 0);
    talk.data(&mut script, Remote, 10);
    talk.close(&mut script, Remote);
    script
}

fn no_answer(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    for _ in 0..3 {
        let before = talk;
        talk.tcp(&mut script, Pod, flag::SYN, 0);
        talk = before;
    }
    script
}

fn refused(draw: &mut Draw<'_>) -> Script {
    attempt(draw).0
}

/// A SYN and a RST in answer.
pub(super) fn attempt(draw: &mut Draw<'_>) -> (Script, Talk) {
    let (mut script, mut talk) = draw.outside(TCP);
    let syn = talk.segment(Pod, flag::SYN, 0);
    let refused = talk.segment(Remote, flag::RST | ACK, 0);
    script.push(talk.pod, syn.clone());
    script.push(WIRE, refused).forgets = Inside::of(&syn);
    (script, talk)
}

fn reset(draw: &mut Draw<'_>, by: Side) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    if draw.rng.one_in(2) {
        talk.data(&mut script, Pod, 700);
    }
    talk.tcp(&mut script, by, flag::RST | ACK, 0);
    script
}

fn half_closed(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    let first = draw.rng.pick(&[Pod, Remote]);
    talk.open(&mut script, Pod);
    talk.tcp(&mut script, first, flag::FIN | ACK, 0);
    talk.tcp(&mut script, first.other(), ACK, 0);
    for _ in 0..3 {
        let len = draw.segment();
        talk.data(&mut script, first.other(), len);
    }
    talk.tcp(&mut script, first.other(), flag::FIN | ACK, 0);
    talk.tcp(&mut script, first, ACK, 0);
    script
}

fn both_close(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    // Neither has seen the other's FIN.
    let before = talk;
    talk.tcp(&mut script, Pod, flag::FIN | ACK, 0);
    talk.up = before.up;
    talk.tcp(&mut script, Remote, flag::FIN | ACK, 0);
    talk.up = before.up.wrapping_add(1);
    talk.tcp(&mut script, Pod, ACK, 0);
    talk.tcp(&mut script, Remote, ACK, 0);
    script
}

fn both_open(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    let before = talk;
    talk.tcp(&mut script, Pod, flag::SYN, 0);
    talk.tcp(&mut script, Remote, flag::SYN, 0);
    let after = talk;
    // Each repeats its SYN with an acknowledgement of the other's (RFC 9293 figure 8).
    talk.up = before.up;
    talk.tcp(&mut script, Pod, flag::SYN | ACK, 0);
    talk = after;
    talk.down = before.down;
    talk.tcp(&mut script, Remote, flag::SYN | ACK, 0);
    talk = after;
    talk.data(&mut script, Pod, 20);
    talk.close(&mut script, Pod);
    script
}

fn segments_again(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    for side in [Pod, Remote] {
        let before = talk;
        talk.tcp(&mut script, side, flag::PSH | ACK, 300);
        talk = before;
        talk.data(&mut script, side, 300);
    }
    talk.close(&mut script, Pod);
    talk.tcp(&mut script, Pod, ACK, 0);
    script
}

fn comes_back(draw: &mut Draw<'_>, by_reset: bool) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    for _ in 0..2 {
        let syn = talk.segment(Pod, flag::SYN, 0);
        script.push(talk.pod, syn).anew = true;
        talk.tcp(&mut script, Remote, flag::SYN | ACK, 0);
        talk.tcp(&mut script, Pod, ACK, 0);
        talk.data(&mut script, Pod, 50);
        if by_reset {
            talk.tcp(&mut script, Pod, flag::RST | ACK, 0);
        } else {
            talk.close(&mut script, Pod);
        }
        // RFC 9293 section 3.4.1: a new connection starts above what the old one has sent.
        talk.up = talk.up.wrapping_add(1_000_000);
        talk.down = talk.down.wrapping_add(1_000_000);
    }
    script
}

fn one_port_two_pods(draw: &mut Draw<'_>) -> Script {
    let port = draw.port();
    let (mut script, mut talk) = draw.twin(TCP, port);
    talk.open(&mut script, Pod);
    talk.data(&mut script, Pod, 10);
    talk.data(&mut script, Remote, 10);
    talk.close(&mut script, Pod);
    script
}

fn privileged(draw: &mut Draw<'_>) -> Script {
    let port = draw.rng.pick(&[20, 400, 700, 1023]);
    let (mut script, mut talk) = draw.twin(TCP, port);
    talk.open(&mut script, Pod);
    talk.close(&mut script, Remote);
    script
}

fn many_to_one(draw: &mut Draw<'_>) -> Script {
    let (pod, port, remote) = draw.busy();
    let (mut script, mut talk) = draw.translated(TCP, pod, port, remote);
    talk.open(&mut script, Pod);
    talk.data(&mut script, Remote, 40);
    talk.close(&mut script, Pod);
    script
}

fn keep_alive(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    talk.data(&mut script, Pod, 20);
    // RFC 9293 section 3.8.4: a byte before what is next.
    talk.up = talk.up.wrapping_sub(1);
    talk.tcp(&mut script, Pod, ACK, 0);
    talk.up = talk.up.wrapping_add(1);
    talk.tcp(&mut script, Remote, ACK, 0);
    talk.close(&mut script, Pod);
    script
}

/// The pod has lost its connection and opens another one from the same port: the server, which knows the old one, asks what
/// that is (RFC 9293 section 3.5.1), the pod resets it and tries again.
fn syn_on_a_living_one(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    talk.data(&mut script, Pod, 50);
    let lost = talk;
    talk.up = talk.up.wrapping_add(1_000_000);
    let fresh = talk;
    talk.tcp(&mut script, Pod, flag::SYN, 0);
    talk = lost;
    talk.tcp(&mut script, Remote, ACK, 0);
    talk.tcp(&mut script, Pod, flag::RST, 0);
    talk = fresh;
    talk.down = talk.down.wrapping_add(7_000_000);
    let syn = talk.segment(Pod, flag::SYN, 0);
    script.push(talk.pod, syn).anew = true;
    talk.tcp(&mut script, Remote, flag::SYN | ACK, 0);
    talk.tcp(&mut script, Pod, ACK, 0);
    talk.data(&mut script, Pod, 10);
    talk.close(&mut script, Pod);
    script
}

/// ECN (RFC 3168 section 6.1.1), and urgent data that there cannot be yet.
fn syn_with_flags(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    let more = draw
        .rng
        .pick(&[flag::ECE | flag::CWR, flag::URG, flag::PSH, flag::ECE]);
    talk.tcp(&mut script, Pod, flag::SYN | more, 0);
    talk.tcp(&mut script, Remote, flag::SYN | ACK | flag::ECE, 0);
    talk.tcp(&mut script, Pod, ACK, 0);
    talk.data(&mut script, Pod, 10);
    talk.close(&mut script, Pod);
    script
}

/// Conntrack keeps account of both windows, and calls INVALID what is not in them.
fn out_of_window(draw: &mut Draw<'_>, side: Side) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    talk.data(&mut script, Pod, 50);
    talk.data(&mut script, Remote, 50);
    let before = talk;
    match side {
        Pod => talk.up = talk.up.wrapping_add(10_000_000),
        Remote => talk.down = talk.down.wrapping_add(10_000_000),
    }
    let beyond = talk.segment(side, ACK, 10);
    script.push(talk.point(side), beyond).differs = Some(match side {
        Pod => Difference::InvalidFromPod,
        Remote => Difference::InvalidFromOutside,
    });
    talk = before;
    talk.data(&mut script, side, 50);
    talk.close(&mut script, Pod);
    script
}

/// A remote in an excluded range.
pub(super) fn excluded(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let remote = (draw.excluded(7), 443);
    let (mut script, mut talk) = draw.direct(TCP, pod, port, remote);
    talk.open(&mut script, Pod);
    let len = draw.segment();
    talk.data(&mut script, Remote, len);
    talk.close(&mut script, Pod);
    script
}

/// A connection from outside straight to a pod's address.
pub(super) fn from_outside(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.rng.port(1, 30_000));
    let partner = draw.internet();
    let peered = draw.peered();
    let remote = (draw.rng.pick(&[partner, peered]), draw.port());
    let (mut script, mut talk) = draw.direct(TCP, pod, port, remote);
    talk.open(&mut script, Remote);
    talk.data(&mut script, Remote, 200);
    let len = draw.segment();
    talk.data(&mut script, Pod, len);
    talk.close(&mut script, draw.rng.pick(&[Pod, Remote]));
    script
}
