//! The packet that is asked about: `10.240.0.5:40000 203.0.113.9:443 tcp`.

use std::net::{IpAddr, SocketAddr};

use causeway_common::{
    addr::Address,
    decide::Role,
    tuple::{self, FlowKey, has_ports},
};

use crate::cli::flows::parse_protocol;

/// A packet of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnyPacket {
    V4(Packet<[u8; 4]>),
    V6(Packet<[u8; 16]>),
}

/// A packet, by what the programs look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet<A: Address> {
    pub(super) key: FlowKey<A>,
    pub(super) role: Role,
    /// Whether the source's port was said: without it no flow can be looked up.
    pub(super) is_whole: bool,
}

impl AnyPacket {
    /// From the words `SRC[:PORT] DST[:PORT] PROTO [opens|answers|continues]`. The port of an ICMP query is its identifier.
    pub(crate) fn parse(words: &[&str]) -> Result<Self, String> {
        let (source, destination, protocol, role) = match words {
            [source, destination, protocol] => (source, destination, protocol, None),
            [source, destination, protocol, role] => (source, destination, protocol, Some(*role)),
            _ => return Err("say SRC[:PORT] DST[:PORT] PROTO, or a code such as CWY021".to_owned()),
        };
        let ((src, src_port), (dst, dst_port)) = (end(source)?, end(destination)?);
        let ports = (src_port, dst_port);
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                Packet::new((src.octets(), dst.octets()), ports, protocol, role).map(Self::V4)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                Packet::new((src.octets(), dst.octets()), ports, protocol, role).map(Self::V6)
            }
            _ => Err(format!("{src} and {dst} are of different families")),
        }
    }
}

impl<A: Address> Packet<A> {
    fn new(
        (src, dst): (A, A),
        (src_port, dst_port): (Option<u16>, Option<u16>),
        protocol: &str,
        role: Option<&str>,
    ) -> Result<Self, String> {
        let protocol = if protocol.eq_ignore_ascii_case("icmp") {
            A::ICMP
        } else {
            parse_protocol(protocol)?
        };
        let (src_port, dst_port, is_whole) = if !has_ports::<A>(protocol) {
            (0, 0, true)
        } else if protocol == A::ICMP {
            let is_answer = role == Some("answers");
            let id = src_port.or(dst_port);
            let port = id.unwrap_or(0);
            if is_answer {
                (0, port, id.is_some())
            } else {
                (port, 0, id.is_some())
            }
        } else {
            let named = dst_port.ok_or("the destination has no port")?;
            (src_port.unwrap_or(0), named, src_port.is_some())
        };
        Ok(Self {
            key: FlowKey {
                src,
                dst,
                src_port: src_port.to_be_bytes(),
                dst_port: dst_port.to_be_bytes(),
                protocol,
                _pad: [0; 3],
            },
            role: role.map_or(Ok(Role::Opens), |name| named_role::<A>(protocol, name))?,
            is_whole,
        })
    }

    /// What it is to its flow, in a word.
    pub(super) fn role_name(&self) -> &'static str {
        match self.role {
            Role::Opens => "opens",
            Role::Answers => "answers",
            Role::Continues => "continues",
        }
    }
}

/// What a packet of the protocol can be to its flow: a datagram always opens one.
fn named_role<A: Address>(protocol: u8, name: &str) -> Result<Role, String> {
    match (protocol, name) {
        (_, "opens") => Ok(Role::Opens),
        (protocol, "answers") if protocol == tuple::TCP || protocol == A::ICMP => Ok(Role::Answers),
        (tuple::TCP, "continues") => Ok(Role::Continues),
        _ => Err(format!(
            "a packet of this protocol cannot be one that {name:?}: use opens; of TCP and ICMP answers, of TCP continues"
        )),
    }
}

/// `ADDRESS` or `ADDRESS:PORT`; one of IPv6 that has a port stands in brackets.
fn end(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(addr) = text.parse() {
        return Ok((addr, None));
    }
    if let Ok(whole) = text.parse::<SocketAddr>() {
        return Ok((whole.ip(), Some(whole.port())));
    }
    match text.rsplit_once(':') {
        Some((addr, port)) if format!("{addr}:0").parse::<SocketAddr>().is_ok() => {
            Err(format!("{port:?} is no port"))
        }
        _ => Err(format!(
            "{text:?} is no address: say 10.240.0.5 or fd00::5, with a port 10.240.0.5:443 or [fd00::5]:443"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AnyPacket, String> {
        AnyPacket::parse(&text.split_whitespace().collect::<Vec<_>>())
    }

    /// Ports, protocol, and whether the source's was said.
    fn parts(text: &str) -> (u16, u16, u8, bool) {
        fn of<A: Address>(packet: Packet<A>) -> (u16, u16, u8, bool) {
            let Packet { key, is_whole, .. } = packet;
            let [src, dst] = [key.src_port, key.dst_port].map(u16::from_be_bytes);
            (src, dst, key.protocol, is_whole)
        }
        match parse(text).unwrap() {
            AnyPacket::V4(packet) => of(packet),
            AnyPacket::V6(packet) => of(packet),
        }
    }

    #[test]
    fn ports_stand_where_the_programs_have_them() {
        for (text, expected) in [
            ("10.0.0.1:7 10.0.0.2:443 tcp", (7, 443, 6, true)),
            ("10.0.0.1:9 10.0.0.2 icmp", (9, 0, 1, true)),
            ("10.0.0.1 10.0.0.2:9 icmp answers", (0, 9, 1, true)),
            ("10.0.0.1:7 10.0.0.2:443 47", (0, 0, 47, true)),
            ("10.0.0.1 10.0.0.2:443 udp", (0, 443, 17, false)),
            ("[fd00::5]:7 [fd00::6]:443 TCP", (7, 443, 6, true)),
            ("fd00::5 [fd00::6]:443 udp", (0, 443, 17, false)),
            ("[fd00::5]:9 fd00::6 icmp", (9, 0, 58, true)),
            ("fd00::5 [fd00::6]:9 icmpv6 answers", (0, 9, 58, true)),
        ] {
            assert_eq!(parts(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_packet_is_refused_with_a_hint() {
        for (text, hint) in [
            ("10.0.0.1 10.0.0.2", "SRC[:PORT]"),
            ("10.0.0.1 10.0.0.2 tcp", "no port"),
            ("10.0.0.1 10.0.0.2:1 xyz", "tcp, udp"),
            ("10.0.0.1 10.0.0.2:99999 udp", "no port"),
            ("::1 10.0.0.2:1 udp", "different families"),
            ("fd00::5 [fd00::6]:99999 udp", "no port"),
            ("10.0.0.300 10.0.0.2:1 udp", "no address"),
            ("fd00::5 fd00::6 tcp", "no port"),
            ("10.0.0.1:1 10.0.0.2:1 udp continues", "use opens"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
