//! The packet that is asked about: `10.240.0.5:40000 203.0.113.9:443 tcp`.

use std::net::Ipv4Addr;

use causeway_common::{
    decide::Role,
    tuple::{self, FlowKey, has_ports},
};

use crate::cli::flows::parse_protocol;

/// A packet, by what the programs look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(super) key: FlowKey<[u8; 4]>,
    pub(super) role: Role,
    /// Whether the source's port was said: without it no flow can be looked up.
    pub(super) is_whole: bool,
}

impl Packet {
    /// From the words `SRC[:PORT] DST[:PORT] PROTO [opens|answers|continues]`. The port of an ICMP query is its identifier.
    pub(crate) fn parse(words: &[&str]) -> Result<Self, String> {
        let (source, destination, protocol, role) = match words {
            [source, destination, protocol] => (source, destination, protocol, None),
            [source, destination, protocol, role] => (source, destination, protocol, Some(*role)),
            _ => return Err("say SRC[:PORT] DST[:PORT] PROTO, or a code such as CWY021".to_owned()),
        };
        let protocol = parse_protocol(protocol)?;
        let ((src, src_port), (dst, dst_port)) = (end(source)?, end(destination)?);
        let (src_port, dst_port, is_whole) = if !has_ports::<[u8; 4]>(protocol) {
            (0, 0, true)
        } else if protocol == tuple::ICMP {
            let is_answer = role == Some("answers");
            let id = src_port.or(dst_port);
            let port = id.unwrap_or(0);
            if is_answer {
                (0, port, id.is_some())
            } else {
                (port, 0, id.is_some())
            }
        } else {
            let named =
                dst_port.ok_or_else(|| format!("{destination:?} has no port: {destination}:443, say"))?;
            (src_port.unwrap_or(0), named, src_port.is_some())
        };
        Ok(Self {
            key: FlowKey {
                src: src.octets(),
                dst: dst.octets(),
                src_port: src_port.to_be_bytes(),
                dst_port: dst_port.to_be_bytes(),
                protocol,
                _pad: [0; 3],
            },
            role: role.map_or(Ok(Role::Opens), |name| named_role(protocol, name))?,
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
fn named_role(protocol: u8, name: &str) -> Result<Role, String> {
    match (protocol, name) {
        (_, "opens") => Ok(Role::Opens),
        (tuple::TCP | tuple::ICMP, "answers") => Ok(Role::Answers),
        (tuple::TCP, "continues") => Ok(Role::Continues),
        _ => Err(format!(
            "a packet of this protocol cannot be one that {name:?}: use opens; of TCP and ICMP answers, of TCP continues"
        )),
    }
}

fn end(text: &str) -> Result<(Ipv4Addr, Option<u16>), String> {
    let (addr, port) = match text.split_once(':') {
        Some((addr, port)) => (addr, Some(port)),
        None => (text, None),
    };
    let addr = addr.parse().map_err(|_| format!("{addr:?} is no IPv4 address"))?;
    let port = port.map(|port| port.parse().map_err(|_| format!("{port:?} is no port")));
    Ok((addr, port.transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Packet, String> {
        Packet::parse(&text.split_whitespace().collect::<Vec<_>>())
    }

    #[test]
    fn ports_stand_where_the_programs_have_them() {
        let ports = |text: &str| {
            let key = parse(text).unwrap().key;
            (u16::from_be_bytes(key.src_port), u16::from_be_bytes(key.dst_port))
        };
        assert_eq!(ports("10.0.0.1:7 10.0.0.2:443 tcp"), (7, 443));
        assert_eq!(ports("10.0.0.1:9 10.0.0.2 icmp"), (9, 0));
        assert_eq!(ports("10.0.0.1 10.0.0.2:9 icmp answers"), (0, 9));
        assert_eq!(ports("10.0.0.1:7 10.0.0.2:443 47"), (0, 0));
        assert!(!parse("10.0.0.1 10.0.0.2:443 udp").unwrap().is_whole);
    }

    #[test]
    fn what_is_no_packet_is_refused_with_a_hint() {
        for (text, hint) in [
            ("10.0.0.1 10.0.0.2", "SRC[:PORT]"),
            ("10.0.0.1 10.0.0.2 tcp", "no port"),
            ("10.0.0.1 10.0.0.2:1 xyz", "tcp, udp"),
            ("10.0.0.1 10.0.0.2:99999 udp", "no port"),
            ("::1 10.0.0.2:1 udp", "no IPv4 address"),
            ("10.0.0.1:1 10.0.0.2:1 udp continues", "use opens"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
