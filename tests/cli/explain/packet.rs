//! Packets of all kinds.

use std::net::SocketAddr;

use anyhow::Result;
use causeway_common::tuple::FlowKey;
use causeway_tests::{
    craft::{self, TcpFlags},
    rng::Rng,
};

use super::family::Family;

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Pod(usize),
    Wire,
}

/// A packet, and the words by which the command is asked about it.
pub(super) struct Packet<A> {
    pub(super) words: String,
    pub(super) from: From,
    pub(super) key: FlowKey<A>,
    pub(super) bytes: Vec<u8>,
}

/// A packet of any protocol between two ends.
pub(super) fn packet<A: Family>(
    rng: &mut Rng,
    from: From,
    (src_addr, src_port): (A, u16),
    (dst_addr, dst_port): (A, u16),
) -> Result<Packet<A>> {
    const GRE: u8 = 47;
    let (src, dst) = (
        SocketAddr::new(src_addr.ip(), src_port),
        SocketAddr::new(dst_addr.ip(), dst_port),
    );
    let (protocol, role, ports, bytes) = match rng.below(20) {
        0..=8 => {
            let (role, syn, ack) = rng.pick(&[
                ("opens", true, None),
                ("opens", true, None),
                ("answers", true, Some(1)),
                ("continues", false, Some(1)),
            ]);
            let flags = TcpFlags {
                syn,
                ack,
                ..TcpFlags::default()
            };
            (
                6,
                role,
                (src.port(), dst.port()),
                craft::tcp(src, dst, flags, b"")?,
            )
        }
        9..=15 => (17, "opens", (src.port(), dst.port()), craft::udp(src, dst, b"x")?),
        16..=18 => {
            let (id, is_reply) = (src.port().max(1024), rng.one_in(2));
            let bytes = craft::echo(src.ip(), dst.ip(), id, is_reply, b"x")?;
            if is_reply {
                (A::ICMP, "answers", (0, id), bytes)
            } else {
                (A::ICMP, "opens", (id, 0), bytes)
            }
        }
        _ => {
            let bytes = craft::ip([src.ip(), dst.ip()], etherparse::IpNumber(GRE), &[0, 0, 0x08, 0])?;
            (GRE, "opens", (0, 0), bytes)
        }
    };
    let name = match protocol {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        icmp if icmp == A::ICMP => "icmp".to_owned(),
        other => other.to_string(),
    };
    let (from_end, to_end) = (
        SocketAddr::new(src.ip(), ports.0),
        SocketAddr::new(dst.ip(), ports.1),
    );
    // The command takes an identifier from whichever end names it; zeros name none.
    let words = match (protocol == A::ICMP, ports.0) {
        (false, _) => format!("{from_end} {to_end} {name} {role}"),
        (true, 0) => format!("{} {to_end} {name} {role}", src.ip()),
        (true, _) => format!("{from_end} {} {name} {role}", dst.ip()),
    };
    Ok(Packet {
        words,
        from,
        key: FlowKey {
            src: src_addr,
            dst: dst_addr,
            src_port: ports.0.to_be_bytes(),
            dst_port: ports.1.to_be_bytes(),
            protocol,
            _pad: [0; 3],
        },
        bytes,
    })
}
