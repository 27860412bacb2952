//! Flows that rest until they have expired, and what comes of their tuples then. Each rests three times (`rests`).

use super::{Draw, Row};
use crate::{
    differences::Difference,
    packet::{Body, End, TCP, UDP, flag},
    script::{
        Outlived::{self, Both, CausewayAlone, Neither},
        Script, Shot,
        Side::{Pod, Remote},
        Talk,
    },
};

const ACK: u8 = flag::ACK;

pub(super) const KINDS: &[Row] = &[
    ("rests: udp, unanswered", 2, udp_unanswered),
    ("rests: udp, stream", 2, udp_stream),
    (
        "rests: udp, answered at once and never again",
        1,
        udp_answered_once,
    ),
    ("rests: udp, one side goes on", 2, udp_goes_on),
    ("rests: ping", 2, ping),
    ("rests: tcp, SYN unanswered", 2, tcp_opening),
    ("rests: tcp, SYN answered, and no more", 1, tcp_answered),
    ("rests: tcp, established", 2, tcp_established),
    ("rests: tcp, half closed", 1, tcp_half_closed),
    ("rests: tcp, closed", 2, tcp_closed),
    ("rests: tcp, the last ACK is missing", 1, tcp_last_ack),
    ("rests: tcp, the pod resets", 2, |draw| tcp_reset(draw, Pod)),
    ("rests: tcp, the server resets", 2, |draw| tcp_reset(draw, Remote)),
    ("rests: tcp, refused", 1, tcp_refused),
    ("rests: a port passes to another pod", 2, inherited),
    ("rests: a protocol without ports", 2, without_ports),
];

/// Comes when neither lane knows the flow any more.
fn late(shot: &mut Shot) {
    shot.late = true;
}

/// The rests in which nothing is sent any more.
fn rest(script: &mut Script, outlived: &[Outlived]) {
    for &outlived in outlived {
        script.rest(outlived);
    }
}

fn udp_unanswered(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 10);
    rest(&mut script, &[Both, Neither]);
    late(talk.udp(&mut script, Remote, 20));
    talk.udp(&mut script, Pod, 10).anew = true;
    rest(&mut script, &[Neither]);
    talk.udp(&mut script, Pod, 10).anew = true;
    talk.udp(&mut script, Remote, 20);
    script
}

/// For conntrack it is a stream when packets still come two seconds after the first one.
fn udp_stream(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 10);
    talk.udp(&mut script, Remote, 10);
    rest(&mut script, &[Both]);
    talk.udp(&mut script, Pod, 10);
    talk.udp(&mut script, Remote, 10);
    rest(&mut script, &[Both]);
    talk.udp(&mut script, Remote, 30);
    talk.udp(&mut script, Pod, 30);
    rest(&mut script, &[Neither]);
    late(talk.udp(&mut script, Remote, 20));
    talk.udp(&mut script, Pod, 10).anew = true;
    talk.udp(&mut script, Remote, 10);
    script
}

/// Both have spoken: for Causeway a stream. For conntrack none yet.
fn udp_answered_once(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    rest(&mut script, &[Neither]);
    talk.udp(&mut script, Pod, 10);
    talk.udp(&mut script, Remote, 10);
    rest(&mut script, &[CausewayAlone]);
    talk.udp(&mut script, Remote, 20).differs = Some(Difference::Outlives);
    rest(&mut script, &[Neither]);
    late(talk.udp(&mut script, Remote, 20));
    script
}

/// Packets of either side keep the mapping (RFC 4787 REQ-6).
fn udp_goes_on(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 10);
    rest(&mut script, &[Both]);
    let side = draw.rng.pick(&[Pod, Remote]);
    talk.udp(&mut script, side, 10);
    let outlived = if side == Pod { Neither } else { CausewayAlone };
    rest(&mut script, &[outlived, Neither]);
    talk.udp(&mut script, Pod, 10).anew = true;
    talk.udp(&mut script, Remote, 10);
    script
}

fn ping(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.ping();
    talk.echo(&mut script, Pod, false, 1, 56);
    if draw.rng.one_in(2) {
        talk.echo(&mut script, Remote, true, 1, 56);
    }
    rest(&mut script, &[Both, Neither]);
    late(talk.echo(&mut script, Remote, true, 1, 56));
    talk.echo(&mut script, Pod, false, 2, 56).anew = true;
    talk.echo(&mut script, Remote, true, 2, 56);
    rest(&mut script, &[Neither]);
    late(talk.echo(&mut script, Remote, true, 2, 56));
    script
}

fn tcp_opening(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.tcp(&mut script, Pod, flag::SYN, 0);
    rest(&mut script, &[Both, Neither]);
    late_segment(&mut script, talk, flag::SYN | ACK, 0);
    open_again(&mut script, &mut talk);
    rest(&mut script, &[Both]);
    talk.data(&mut script, Remote, 10);
    talk.close(&mut script, Pod);
    script
}

fn tcp_answered(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.tcp(&mut script, Pod, flag::SYN, 0);
    talk.tcp(&mut script, Remote, flag::SYN | ACK, 0);
    rest(&mut script, &[Both, Neither]);
    late_segment(&mut script, talk, flag::SYN | ACK, 0);
    open_again(&mut script, &mut talk);
    rest(&mut script, &[Both]);
    talk.data(&mut script, Remote, 10);
    script
}

fn tcp_established(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    for _ in 0..3 {
        rest(&mut script, &[Both]);
        let side = draw.rng.pick(&[Pod, Remote]);
        talk.data(&mut script, side, 100);
    }
    talk.close(&mut script, Remote);
    script
}

fn tcp_half_closed(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    let first = draw.rng.pick(&[Pod, Remote]);
    talk.open(&mut script, Pod);
    talk.tcp(&mut script, first, flag::FIN | ACK, 0);
    talk.tcp(&mut script, first.other(), ACK, 0);
    rest(&mut script, &[Both, Both, Both]);
    talk.data(&mut script, first.other(), 10);
    talk.tcp(&mut script, first.other(), flag::FIN | ACK, 0);
    talk.tcp(&mut script, first, ACK, 0);
    script
}

fn tcp_closed(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    talk.data(&mut script, Remote, 10);
    let by = draw.rng.pick(&[Pod, Remote]);
    talk.close(&mut script, by);
    rest(&mut script, &[Both, Neither]);
    late_segment(&mut script, talk, flag::FIN | ACK, 0);
    open_again(&mut script, &mut talk);
    talk.close(&mut script, by);
    rest(&mut script, &[Neither]);
    late_segment(&mut script, talk, ACK, 0);
    script
}

fn tcp_last_ack(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    let by = draw.rng.pick(&[Pod, Remote]);
    talk.tcp(&mut script, by, flag::FIN | ACK, 0);
    talk.tcp(&mut script, by.other(), flag::FIN | ACK, 0);
    rest(&mut script, &[Both, Neither, Neither]);
    open_again(&mut script, &mut talk);
    script
}

fn tcp_reset(draw: &mut Draw<'_>, by: crate::script::Side) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    talk.open(&mut script, Pod);
    talk.data(&mut script, Pod, 10);
    talk.tcp(&mut script, by, flag::RST | ACK, 0);
    rest(&mut script, &[Both, Neither]);
    late_segment(&mut script, talk, ACK, 10);
    open_again(&mut script, &mut talk);
    rest(&mut script, &[Both]);
    talk.data(&mut script, Remote, 10);
    script
}

fn tcp_refused(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = super::tcp::attempt(draw);
    rest(&mut script, &[CausewayAlone, Neither]);
    open_again(&mut script, &mut talk);
    rest(&mut script, &[Both]);
    talk.data(&mut script, Remote, 10);
    script
}

/// What has expired is free for others, whether it was swept or not.
fn inherited(draw: &mut Draw<'_>) -> Script {
    let protocol = draw.rng.pick(&[TCP, UDP, draw.family.icmp()]);
    let (mut script, mut talk) = draw.outside(protocol);
    let Talk { pod: first, own, .. } = talk;
    let ask = |script: &mut Script, talk: &mut Talk| {
        match protocol {
            TCP => talk.tcp(script, Pod, flag::SYN, 0),
            UDP => drop(talk.udp(script, Pod, 10)),
            _ => drop(talk.echo(script, Pod, false, 1, 10)),
        }
        let asked = script.steps.last_mut().and_then(|step| step.last_mut());
        asked.expect("a question was just added").anew = true;
    };
    ask(&mut script, &mut talk);
    rest(&mut script, &[Both, Neither]);
    let End::At(_, port) = own else { return script };
    talk.pod = 1 + first % crate::lane::PODS;
    talk.own = End::At(draw.addr(talk.pod), port);
    ask(&mut script, &mut talk);
    match protocol {
        TCP => {
            talk.tcp(&mut script, Remote, flag::SYN | ACK, 0);
            talk.tcp(&mut script, Pod, ACK, 0);
        }
        UDP => drop(talk.udp(&mut script, Remote, 10)),
        _ => drop(talk.echo(&mut script, Remote, true, 1, 10)),
    }
    let outlived = if protocol == TCP { Both } else { Neither };
    rest(&mut script, &[outlived]);
    if protocol != TCP {
        ask(&mut script, &mut talk);
    }
    match protocol {
        TCP => talk.data(&mut script, Pod, 10),
        UDP => drop(talk.udp(&mut script, Remote, 10)),
        _ => drop(talk.echo(&mut script, Remote, true, 1, 10)),
    }
    script
}

fn without_ports(draw: &mut Draw<'_>) -> Script {
    let protocol = draw.rng.pick(&[47, 50, 4, 253]);
    let (pod, remote) = (draw.pod(), draw.stranger());
    let (mut script, talk) = draw.translated(protocol, pod, 0, (remote, 0));
    let node = draw.family.node();
    let send = |script: &mut Script, side| {
        let bytes = vec![0x20; 40];
        let mut spec = talk.spec(side, Body::Other { protocol, bytes });
        if side == Remote {
            spec.dst = End::At(node, 0);
        }
        script.push(talk.point(side), spec);
    };
    send(&mut script, Pod);
    send(&mut script, Remote);
    rest(&mut script, &[Both]);
    send(&mut script, Pod);
    rest(&mut script, &[Both]);
    send(&mut script, Remote);
    rest(&mut script, &[Neither]);
    send(&mut script, Pod);
    send(&mut script, Remote);
    script
}

fn late_segment(script: &mut Script, mut talk: Talk, flags: u8, len: usize) {
    let spec = talk.segment(Remote, flags, len);
    late(script.push(talk.point(Remote), spec));
}

/// A connection on the tuple of the one before.
fn open_again(script: &mut Script, talk: &mut Talk) {
    talk.up = talk.up.wrapping_add(1_000_000);
    let syn = talk.segment(Pod, flag::SYN, 0);
    script.push(talk.pod, syn).anew = true;
    talk.tcp(script, Remote, flag::SYN | ACK, 0);
    talk.tcp(script, Pod, ACK, 0);
    talk.data(script, Pod, 10);
}
