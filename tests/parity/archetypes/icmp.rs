//! ICMP: echo, and errors about packets of every kind of flow.

use std::net::Ipv4Addr;

use causeway_tests::fabric::GATEWAY;

use super::{Draw, Row, alone};
use crate::{
    lane::WIRE,
    packet::{Body, End, Piece, Spec, TCP, UDP, flag, query},
    script::{Script, Side, Talk},
};

use Side::{Pod, Remote};

pub(super) const KINDS: &[Row] = &[
    ("ping", 12, ping),
    ("ping, one identifier in two pods", 6, one_id_two_pods),
    ("ping, from outside to a pod", 6, from_outside),
    ("error about tcp", 10, about_tcp),
    ("error about udp", 10, about_udp),
    ("error about ping", 8, about_ping),
    ("error of a pod about a reply", 8, of_a_pod),
    ("error about a flow that keeps its address", 6, about_direct),
    ("error about nothing known", 4, about_nothing),
    ("error about a flow from outside", 3, about_from_outside),
    ("error that quotes too little", 3, quoting_too_little),
    ("error that quotes a first fragment", 3, quoting_a_fragment),
    ("error of a pod about a stranger's packet", 4, about_a_stranger),
    ("ping with a code", 2, |draw| asks(draw, draw.family.echo(), 1)),
    ("ICMP, an answer to no question", 3, unasked),
    ("ICMP, an answer of another type or code", 2, wrong_answer),
];

/// Queries and messages that ICMPv6 does not have, and options of the header.
pub(super) const OF_IPV4: &[Row] = &[
    ("error that quotes IP options", 3, quoting_options),
    ("redirect of a router", 3, redirect),
    ("ICMP timestamp", 3, |draw| asks(draw, query::TIMESTAMP, 0)),
    ("ICMP information", 2, |draw| asks(draw, query::INFORMATION, 0)),
    ("ICMP address mask", 2, |draw| asks(draw, query::ADDRESS_MASK, 0)),
    (
        "ICMP, several questions with one identifier",
        3,
        several_questions,
    ),
    ("error about an ICMP timestamp", 2, about_timestamp),
];

/// Kinds of which nothing comes out.
pub(super) const SILENT: &[&str] = &["error about nothing known"];

fn ping(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.ping();
    for seq in 0..3 {
        let len = draw.datagram();
        talk.echo(&mut script, Pod, false, seq, len);
        talk.echo(&mut script, Remote, true, seq, len);
    }
    script
}

fn one_id_two_pods(draw: &mut Draw<'_>) -> Script {
    let id = draw.id();
    let (mut script, talk) = draw.twin(draw.family.icmp(), id);
    for seq in 0..2 {
        talk.echo(&mut script, Pod, false, seq, 56);
        talk.echo(&mut script, Remote, true, seq, 56);
    }
    script
}

/// A question and its answer, from two pods with one identifier.
fn asks(draw: &mut Draw<'_>, (question, answer): (u8, u8), code: u8) -> Script {
    let id = draw.id();
    let (mut script, talk) = draw.twin(draw.family.icmp(), id);
    for seq in 0..2 {
        for (side, kind) in [(Pod, question), (Remote, answer)] {
            let len = 12;
            let body = Body::Query { kind, code, seq, len };
            script.push(talk.point(side), talk.spec(side, body));
        }
    }
    script
}

/// Each is a flow of its own, whose answer does not fit the others.
fn several_questions(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = alone(draw, draw.family.icmp());
    let questions = [query::ECHO, query::TIMESTAMP, query::ADDRESS_MASK];
    for (question, _) in questions {
        script.push(talk.pod, talk.spec(Pod, Body::query(question, 1, 12)));
    }
    for (_, answer) in questions.into_iter().rev() {
        script.push(WIRE, talk.spec(Remote, Body::query(answer, 1, 12)));
    }
    script
}

fn unasked(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = alone(draw, draw.family.icmp());
    let (pod, id) = (draw.pod(), draw.port());
    talk.seen = draw
        .rng
        .pick(&[End::At(draw.family.node(), id), End::At(draw.addr(pod), id)]);
    let kind = draw.answer();
    script.push(WIRE, talk.spec(Remote, Body::query(kind, 1, 12)));
    script
}

fn wrong_answer(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = alone(draw, draw.family.icmp());
    talk.echo(&mut script, Pod, false, 1, 12);
    let (_, answer) = draw.family.echo();
    let (kind, code) = match draw.answer() {
        kind if kind == answer => (kind, 1),
        kind => (kind, 0),
    };
    let wrong = Body::Query {
        kind,
        code,
        seq: 1,
        len: 12,
    };
    script.push(WIRE, talk.spec(Remote, wrong));
    talk.echo(&mut script, Remote, true, 1, 12);
    script
}

fn about_timestamp(draw: &mut Draw<'_>) -> Script {
    let id = draw.port();
    let (mut script, talk) = draw.twin(draw.family.icmp(), id);
    let sent = talk.spec(Pod, Body::query(query::TIMESTAMP.0, 1, 12));
    script.push(talk.pod, sent.clone());
    about(draw, &mut script, &talk, &sent);
    script.push(WIRE, talk.spec(Remote, Body::query(query::TIMESTAMP.1, 1, 12)));
    script
}

fn from_outside(draw: &mut Draw<'_>) -> Script {
    let (pod, id) = (draw.pod(), draw.port());
    let partner = draw.internet();
    let peered = draw.peered();
    let remote = (draw.rng.pick(&[partner, peered]), 0);
    let (mut script, mut talk) = draw.direct(draw.family.icmp(), pod, id, remote);
    // The remote asks: the identifier is its own.
    talk.remote = End::At(remote.0, id);
    for seq in 0..3 {
        talk.echo(&mut script, Remote, false, seq, 56);
        talk.echo(&mut script, Pod, true, seq, 56);
    }
    script
}

/// An error of a router, or of the remote itself, about what a pod has sent.
fn about(draw: &mut Draw<'_>, script: &mut Script, talk: &Talk, sent: &Spec) {
    let (kind, code, rest) = draw.rng.pick(draw.family.errors());
    let router = End::At(draw.internet(), 0);
    let from = draw.rng.pick(&[router, talk.remote]);
    let body = Body::Error {
        kind,
        code,
        rest,
        quoted: Box::new(talk.as_seen_outside(sent)),
        quote: draw.rng.pick(&draw.family.quotes()),
    };
    let mut spec = Spec::new(from, talk.seen, body);
    spec.dont_fragment = false;
    script.push(WIRE, spec);
}

fn about_tcp(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(TCP);
    if draw.rng.one_in(3) {
        let syn = talk.segment(Pod, flag::SYN, 0);
        script.push(talk.pod, syn.clone());
        about(draw, &mut script, &talk, &syn);
        return script;
    }
    talk.open(&mut script, Pod);
    let data = talk.segment(Pod, flag::PSH | flag::ACK, 1000);
    script.push(talk.pod, data.clone());
    about(draw, &mut script, &talk, &data);
    talk.tcp(&mut script, Remote, flag::ACK, 0);
    talk.close(&mut script, Pod);
    script
}

fn about_udp(draw: &mut Draw<'_>) -> Script {
    let port = draw.port();
    let (mut script, talk) = draw.twin(UDP, port);
    let checksum = !draw.rng.one_in(4);
    let sent = talk.spec(
        Pod,
        Body::Udp {
            len: draw.datagram(),
            checksum,
        },
    );
    script.push(talk.pod, sent.clone());
    about(draw, &mut script, &talk, &sent);
    talk.udp(&mut script, Remote, 10);
    about(draw, &mut script, &talk, &sent);
    script
}

fn about_ping(draw: &mut Draw<'_>) -> Script {
    let id = draw.port();
    let (mut script, talk) = draw.twin(draw.family.icmp(), id);
    let sent = talk.spec(Pod, Body::query(draw.family.echo().0, 1, 56));
    script.push(talk.pod, sent.clone());
    about(draw, &mut script, &talk, &sent);
    talk.echo(&mut script, Pod, false, 2, 56);
    talk.echo(&mut script, Remote, true, 2, 56);
    script
}

/// The pod has closed its socket before the answer came.
fn of_a_pod(draw: &mut Draw<'_>) -> Script {
    let port = draw.port();
    let (mut script, talk) = draw.twin(UDP, port);
    talk.udp(&mut script, Pod, 30);
    let answer = talk.spec(
        Remote,
        Body::Udp {
            len: draw.datagram(),
            checksum: true,
        },
    );
    script.push(WIRE, answer.clone());
    let family = draw.family;
    let unreachable = family.port_unreachable();
    let (kind, code, rest) = draw.rng.pick(&[unreachable, unreachable, family.prohibited()]);
    let [least, _, _, more, most] = family.quotes();
    let body = Body::Error {
        kind,
        code,
        rest,
        quoted: Box::new(talk.as_seen_inside(&answer)),
        quote: draw.rng.pick(&[least, more, most]),
    };
    let mut spec = Spec::new(talk.own, talk.remote, body);
    spec.dont_fragment = false;
    script.push(talk.pod, spec);
    script
}

fn about_direct(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.port());
    let remote = (draw.excluded(9), 5000);
    let (mut script, talk) = draw.direct(UDP, pod, port, remote);
    let sent = talk.udp(&mut script, Pod, 50).spec.clone();
    about(draw, &mut script, &talk, &sent);
    talk.udp(&mut script, Remote, 10);
    about(draw, &mut script, &talk, &sent);
    script
}

/// To a port at which the pod does not listen.
fn about_a_stranger(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.rng.port(1, 30_000));
    let remote = (draw.internet(), draw.port());
    let (mut script, talk) = draw.direct(UDP, pod, port, remote);
    for _ in 0..2 {
        let sent = talk.udp(&mut script, Remote, 50).spec.clone();
        let (kind, code, rest) = draw.family.port_unreachable();
        let [least, _, _, more, _] = draw.family.quotes();
        let body = Body::Error {
            kind,
            code,
            rest,
            quoted: Box::new(talk.as_seen_inside(&sent)),
            quote: draw.rng.pick(&[least, more]),
        };
        script.push(talk.pod, Spec::new(talk.own, talk.remote, body));
    }
    script
}

fn about_from_outside(draw: &mut Draw<'_>) -> Script {
    let (pod, port) = (draw.pod(), draw.rng.port(1, 30_000));
    let remote = (draw.internet(), draw.port());
    let (mut script, talk) = draw.direct(UDP, pod, port, remote);
    talk.udp(&mut script, Remote, 50);
    let answer = talk.udp(&mut script, Pod, 50).spec.clone();
    about(draw, &mut script, &talk, &answer);
    talk.udp(&mut script, Remote, 10);
    script
}

fn quoting_options(draw: &mut Draw<'_>) -> Script {
    let port = draw.port();
    let (mut script, talk) = draw.twin(UDP, port);
    let shot = talk.udp(&mut script, Pod, 50);
    shot.spec.options = &[1, 1, 1, 0];
    let sent = shot.spec.clone();
    about(draw, &mut script, &talk, &sent);
    let Body::Error { quote, .. } = &mut script.steps.last_mut().expect("an error")[0].spec.body else {
        return script;
    };
    *quote = 60;
    talk.udp(&mut script, Pod, 50);
    script
}

/// Less than RFC 792 asks for, and RFC 4443: the header and eight bytes.
fn quoting_too_little(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    let sent = talk.udp(&mut script, Pod, 50).spec.clone();
    about(draw, &mut script, &talk, &sent);
    if let Body::Error { quote, .. } = &mut script.steps.last_mut().expect("an error")[0].spec.body {
        let header = draw.family.header();
        *quote = draw.rng.pick(&[0, 8, header - 1, header, header + 4, header + 7]);
    }
    talk.udp(&mut script, Remote, 50);
    script
}

/// Such as the word of a router that it is too large.
fn quoting_a_fragment(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    talk.udp(&mut script, Pod, 50);
    let mut sent = talk.spec(
        Pod,
        Body::Udp {
            len: 3000,
            checksum: true,
        },
    );
    sent.dont_fragment = false;
    sent.piece = Some(Piece {
        from: 0,
        len: draw.family.piece(),
        last: false,
    });
    about(draw, &mut script, &talk, &sent);
    talk.udp(&mut script, Remote, 50);
    script
}

/// The quoted flow has never been.
fn about_nothing(draw: &mut Draw<'_>) -> Script {
    let (mut script, mut talk) = draw.outside(UDP);
    let port = draw.port();
    talk.seen = End::At(draw.family.node(), port);
    let sent = talk.spec(
        Pod,
        Body::Udp {
            len: 50,
            checksum: true,
        },
    );
    about(draw, &mut script, &talk, &sent);
    script
}

fn redirect(draw: &mut Draw<'_>) -> Script {
    let (mut script, talk) = draw.outside(UDP);
    let sent = talk.udp(&mut script, Pod, 50).spec.clone();
    let body = Body::Error {
        kind: 5,
        code: 1,
        rest: u32::from(Ipv4Addr::new(10, 240, 0, 99)),
        quoted: Box::new(talk.as_seen_outside(&sent)),
        quote: 28,
    };
    script.push(WIRE, Spec::new(End::At(GATEWAY.into(), 0), talk.seen, body));
    talk.udp(&mut script, Pod, 50);
    script
}
