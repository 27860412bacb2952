//! Packets of all kinds.

use std::net::SocketAddrV4;

use anyhow::Result;
use causeway_common::tuple::FlowKey;
use causeway_tests::{
    craft::{self, TcpFlags},
    rng::Rng,
};

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Pod(usize),
    Wire,
}

/// A packet, and the words by which the command is asked about it.
pub(super) struct Packet {
    pub(super) words: String,
    pub(super) from: From,
    pub(super) key: FlowKey<[u8; 4]>,
    pub(super) bytes: Vec<u8>,
}

/// A packet of any protocol between two ends.
pub(super) fn packet(rng: &mut Rng, from: From, src: SocketAddrV4, dst: SocketAddrV4) -> Result<Packet> {
    const GRE: u8 = 47;
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
            let bytes = craft::echo(*src.ip(), *dst.ip(), id, is_reply, b"x")?;
            if is_reply {
                (1, "answers", (0, id), bytes)
            } else {
                (1, "opens", (id, 0), bytes)
            }
        }
        _ => {
            let header = etherparse::Ipv4Header::new(
                4,
                64,
                etherparse::IpNumber(GRE),
                src.ip().octets(),
                dst.ip().octets(),
            )?;
            let mut bytes = Vec::new();
            header.write(&mut bytes)?;
            bytes.extend([0, 0, 0x08, 0]);
            (GRE, "opens", (0, 0), bytes)
        }
    };
    let name = match protocol {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        1 => "icmp".to_owned(),
        other => other.to_string(),
    };
    let words = format!("{}:{} {}:{} {name} {role}", src.ip(), ports.0, dst.ip(), ports.1);
    // The command takes an identifier from whichever end names it; zeros name none.
    let words = if protocol == 1 {
        let (from, to) = if ports.0 == 0 {
            (src.ip().to_string(), format!("{}:{}", dst.ip(), ports.1))
        } else {
            (format!("{}:{}", src.ip(), ports.0), dst.ip().to_string())
        };
        format!("{from} {to} {name} {role}")
    } else {
        words
    };
    Ok(Packet {
        words,
        from,
        key: FlowKey {
            src: src.ip().octets(),
            dst: dst.ip().octets(),
            src_port: ports.0.to_be_bytes(),
            dst_port: ports.1.to_be_bytes(),
            protocol,
            _pad: [0; 3],
        },
        bytes,
    })
}
