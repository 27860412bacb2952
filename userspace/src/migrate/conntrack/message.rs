//! A connection as ctnetlink writes it.

use std::net::Ipv4Addr;

use causeway_common::tuple::{ICMP, TCP};
use libc::AF_INET;

use super::{
    super::netlink::{Body, attribute},
    Connection, End, Tuple, tcp,
};

/// Length of `struct nfgenmsg` in bytes.
const GENERIC: usize = 4;

/// `CTA_*` (linux/netfilter/nfnetlink_conntrack.h, Linux 6.18).
pub(super) mod cta {
    pub(crate) const TUPLE_ORIG: u16 = 1;
    pub(crate) const TUPLE_REPLY: u16 = 2;
    pub(crate) const STATUS: u16 = 3;
    pub(crate) const PROTOINFO: u16 = 4;
    pub(crate) const NAT_SRC: u16 = 6;
    pub(crate) const TIMEOUT: u16 = 7;
    pub(crate) const MARK: u16 = 8;
    pub(crate) const ID: u16 = 12;
    pub(crate) const NAT_DST: u16 = 13;
    pub(crate) const ZONE: u16 = 18;
    pub(crate) const TUPLE_IP: u16 = 1;
    pub(crate) const TUPLE_PROTO: u16 = 2;
    pub(crate) const IP_SRC: u16 = 1;
    pub(crate) const IP_DST: u16 = 2;
    pub(crate) const PROTO_NUM: u16 = 1;
    pub(crate) const PROTO_SRC_PORT: u16 = 2;
    pub(crate) const PROTO_DST_PORT: u16 = 3;
    pub(crate) const PROTO_ICMP_ID: u16 = 4;
    pub(crate) const PROTO_ICMP_TYPE: u16 = 5;
    pub(crate) const PROTO_ICMP_CODE: u16 = 6;
    pub(crate) const PROTOINFO_TCP: u16 = 1;
    pub(crate) const TCP_STATE: u16 = 1;
    pub(crate) const TCP_FLAGS_ORIGINAL: u16 = 4;
    pub(crate) const TCP_FLAGS_REPLY: u16 = 5;
    pub(crate) const NAT_MIN_IP: u16 = 1;
    pub(crate) const NAT_MAX_IP: u16 = 2;
    pub(crate) const NAT_PROTO: u16 = 3;
    pub(crate) const NAT_PORT_MIN: u16 = 1;
    pub(crate) const NAT_PORT_MAX: u16 = 2;
}

/// An ICMP echo request.
const ECHO: u8 = 8;

pub(super) fn with_state(message: Body, connection: &Connection) -> Body {
    if connection.original.protocol != TCP {
        return message;
    }
    // Of one that is over it tells that a SYN opens another.
    let closed = if connection.state == tcp::TIME_WAIT {
        tcp::CLOSE_INIT
    } else {
        0
    };
    let flags = [tcp::BE_LIBERAL | closed; 2];
    let info = Body::default()
        .with(cta::TCP_STATE, &[connection.state])
        .with(cta::TCP_FLAGS_ORIGINAL, &flags)
        .with(cta::TCP_FLAGS_REPLY, &flags);
    let info = Body::default().with_nested(cta::PROTOINFO_TCP, &info);
    message.with_nested(cta::PROTOINFO, &info)
}

pub(super) fn generic() -> Body {
    Body::new(&[AF_INET as u8, 0, 0, 0])
}

pub(super) fn tuple(tuple: &Tuple, answers: bool) -> Body {
    let addresses = Body::default()
        .with(cta::IP_SRC, &tuple.src.0.octets())
        .with(cta::IP_DST, &tuple.dst.0.octets());
    let protocol = Body::default().with(cta::PROTO_NUM, &[tuple.protocol]);
    let protocol = match tuple.protocol {
        ICMP => protocol
            .with(cta::PROTO_ICMP_ID, &tuple.src.1.to_be_bytes())
            .with(cta::PROTO_ICMP_TYPE, &[if answers { 0 } else { ECHO }])
            .with(cta::PROTO_ICMP_CODE, &[0]),
        _ => protocol
            .with(cta::PROTO_SRC_PORT, &tuple.src.1.to_be_bytes())
            .with(cta::PROTO_DST_PORT, &tuple.dst.1.to_be_bytes()),
    };
    Body::default()
        .with_nested(cta::TUPLE_IP, &addresses)
        .with_nested(cta::TUPLE_PROTO, &protocol)
}

pub(super) fn translation((address, port): End) -> Body {
    let ports = Body::default()
        .with(cta::NAT_PORT_MIN, &port.to_be_bytes())
        .with(cta::NAT_PORT_MAX, &port.to_be_bytes());
    Body::default()
        .with(cta::NAT_MIN_IP, &address.octets())
        .with(cta::NAT_MAX_IP, &address.octets())
        .with_nested(cta::NAT_PROTO, &ports)
}

/// Reads a message. `None`: not of the default zone, or of another protocol than TCP, UDP and ICMP echo.
pub(super) fn connection(message: &[u8]) -> Option<Connection> {
    let bytes = message.get(GENERIC..)?;
    let number = |kind| {
        let value = attribute(bytes, kind).and_then(|value| value.try_into().ok());
        value.map_or(0, u32::from_be_bytes)
    };
    if attribute(bytes, cta::ZONE).is_some_and(|zone| zone != [0, 0]) {
        return None;
    }
    let info = attribute(bytes, cta::PROTOINFO).and_then(|info| attribute(info, cta::PROTOINFO_TCP));
    let info = |kind| info.and_then(|info| attribute(info, kind)?.first().copied());
    Some(Connection {
        original: read_tuple(attribute(bytes, cta::TUPLE_ORIG)?)?,
        reply: read_tuple(attribute(bytes, cta::TUPLE_REPLY)?)?,
        status: number(cta::STATUS),
        timeout: number(cta::TIMEOUT),
        mark: number(cta::MARK),
        state: info(cta::TCP_STATE).unwrap_or_default(),
        opener_closed: info(cta::TCP_FLAGS_ORIGINAL).is_some_and(|flags| flags & tcp::CLOSE_INIT != 0),
        id: attribute(bytes, cta::ID).unwrap_or_default().to_vec(),
    })
}

fn read_tuple(bytes: &[u8]) -> Option<Tuple> {
    let (addresses, protocol) = (
        attribute(bytes, cta::TUPLE_IP)?,
        attribute(bytes, cta::TUPLE_PROTO)?,
    );
    let address = |kind| {
        let address: [u8; 4] = attribute(addresses, kind)?.try_into().ok()?;
        Some(Ipv4Addr::from(address))
    };
    let port = |kind| Some(u16::from_be_bytes(attribute(protocol, kind)?.try_into().ok()?));
    let number = *attribute(protocol, cta::PROTO_NUM)?.first()?;
    let (src, dst) = match number {
        ICMP => {
            let kind = *attribute(protocol, cta::PROTO_ICMP_TYPE)?.first()?;
            let id = port(cta::PROTO_ICMP_ID)?;
            (matches!(kind, 0 | ECHO)).then_some((id, id))?
        }
        _ => (port(cta::PROTO_SRC_PORT)?, port(cta::PROTO_DST_PORT)?),
    };
    Some(Tuple {
        protocol: number,
        src: (address(cta::IP_SRC)?, src),
        dst: (address(cta::IP_DST)?, dst),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_is_read_as_it_was_written() {
        for (protocol, ports) in [(TCP, (40_000, 443)), (17, (53, 53)), (ICMP, (7, 7))] {
            let written = Tuple {
                protocol,
                src: (Ipv4Addr::new(10, 240, 0, 5), ports.0),
                dst: (Ipv4Addr::new(203, 0, 113, 10), ports.1),
            };
            assert_eq!(read_tuple(&tuple(&written, false).0), Some(written));
        }
    }
}
