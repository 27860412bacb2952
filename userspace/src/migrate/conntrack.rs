//! The kernel's connection tracking, over ctnetlink: connections with their translations are read, made and removed.

use std::{collections::BTreeMap, io, net::Ipv4Addr};

use causeway_common::tuple::{ICMP, TCP};
use libc::{AF_INET, NLM_F_CREATE, NLM_F_EXCL};

use super::{
    MigrateError,
    netlink::{Body, Protocol, Socket, attribute},
};

/// `NFNL_SUBSYS_CTNETLINK << 8` and the messages (linux/netfilter/nfnetlink_conntrack.h, Linux 6.18).
const NEW: u16 = 0x0100;
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
/// Length of `struct nfgenmsg` in bytes.
const GENERIC: usize = 4;

/// `CTA_*` of the same file.
mod cta {
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

/// `IPS_*` (linux/netfilter/nf_conntrack_common.h).
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const CONFIRMED: u32 = 1 << 3;
const SRC_NAT: u32 = 1 << 4;

/// `TCP_CONNTRACK_*` and `IP_CT_TCP_FLAG_*` (linux/netfilter/nf_conntrack_tcp.h).
pub(crate) mod tcp {
    pub(crate) const SYN_RECV: u8 = 2;
    pub(crate) const ESTABLISHED: u8 = 3;
    pub(crate) const LAST_ACK: u8 = 6;
    pub(crate) const TIME_WAIT: u8 = 7;
    pub(crate) const CLOSE: u8 = 8;
    pub(crate) const CLOSE_INIT: u8 = 0x04;
    pub(crate) const BE_LIBERAL: u8 = 0x08;
}

/// An ICMP echo request.
const ECHO: u8 = 8;

/// Address and port; of ICMP the identifier.
pub(crate) type End = (Ipv4Addr, u16);

/// One direction of a connection. Of an ICMP query both ends have the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tuple {
    pub(crate) protocol: u8,
    pub(crate) src: End,
    pub(crate) dst: End,
}

impl Tuple {
    pub(crate) fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            ..*self
        }
    }
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    /// The first packet's, as it came.
    pub(crate) original: Tuple,
    /// The answers', as they come: what was translated shows here.
    pub(crate) reply: Tuple,
    pub(crate) status: u32,
    /// Seconds that are left.
    pub(crate) timeout: u32,
    pub(crate) mark: u32,
    /// [`tcp`].
    pub(crate) state: u8,
    /// Whether the side that opened it was the first to close it.
    pub(crate) opener_closed: bool,
    pub(crate) id: Vec<u8>,
}

impl Connection {
    /// A connection that is to be made: what is translated is what `reply` says.
    pub(crate) fn new(original: Tuple, reply: Tuple, timeout: u32, state: u8) -> Self {
        Self {
            original,
            reply,
            status: SEEN_REPLY | ASSURED | CONFIRMED,
            timeout,
            mark: 0,
            state,
            opener_closed: false,
            id: Vec::new(),
        }
    }

    /// The source in place of the opener's, where it is translated.
    pub(crate) fn source(&self) -> Option<End> {
        (self.reply.dst != self.original.src).then_some(self.reply.dst)
    }

    /// The destination in place of the one that the opener meant, where it is translated.
    pub(crate) fn destination(&self) -> Option<End> {
        let (meant, real) = (self.original.dst, self.reply.src);
        // The identifier of a query is its opener's.
        let is_same = meant == real || self.original.protocol == ICMP && meant.0 == real.0;
        (!is_same).then_some(real)
    }

    /// Whether the rule of a masquerade has seen it.
    pub(crate) fn has_source_translation(&self) -> bool {
        self.status & SRC_NAT != 0
    }
}

/// A socket of ctnetlink in the caller's network namespace.
#[derive(Debug)]
pub(crate) struct Conntrack(Socket);

type Result<T> = std::result::Result<T, MigrateError>;

impl Conntrack {
    pub(crate) fn open() -> Result<Self> {
        Socket::open(Protocol::Netfilter)
            .map(Self)
            .map_err(failed("open a netlink socket for conntrack"))
    }

    /// Every IPv4 connection of the default zone of TCP, UDP and ICMP echo.
    pub(crate) fn connections(&mut self) -> Result<Vec<Connection>> {
        let messages = self
            .0
            .list(GET, &generic().0)
            .map_err(failed("list the connections of conntrack"))?;
        Ok(messages
            .iter()
            .filter_map(|message| connection(message.get(GENERIC..)?))
            .collect())
    }

    /// Every connection by both of its tuples.
    pub(crate) fn by_tuple(&mut self) -> Result<BTreeMap<Tuple, Connection>> {
        let both = |connection: Connection| {
            [
                (connection.original, connection.clone()),
                (connection.reply, connection),
            ]
        };
        Ok(self.connections()?.into_iter().flat_map(both).collect())
    }

    /// Forgets a connection, if it is there.
    pub(crate) fn remove(&mut self, connection: &Connection) -> Result<()> {
        let mut message = generic().with_nested(cta::TUPLE_ORIG, &tuple(&connection.original, false));
        if !connection.id.is_empty() {
            message = message.with(cta::ID, &connection.id);
        }
        match self.0.ask(DELETE, 0, &message.0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done
                .map(drop)
                .map_err(failed("remove a connection from conntrack")),
        }
    }

    /// Makes a connection with its translations. Its windows are not known, so of TCP any is accepted. Returns whether
    /// there was room for it: another one may have one of its tuples.
    pub(crate) fn create(&mut self, connection: &Connection) -> Result<bool> {
        let mut message = generic()
            .with_nested(cta::TUPLE_ORIG, &tuple(&connection.original, false))
            // What it would be without translation: the kernel changes it as it translates.
            .with_nested(cta::TUPLE_REPLY, &tuple(&connection.original.reversed(), true))
            .with(cta::TIMEOUT, &connection.timeout.to_be_bytes())
            .with(
                cta::STATUS,
                &(connection.status & (SEEN_REPLY | ASSURED) | CONFIRMED).to_be_bytes(),
            )
            .with(cta::MARK, &connection.mark.to_be_bytes());
        if let Some(to) = connection.source() {
            message = message.with_nested(cta::NAT_SRC, &translation(to));
        }
        if let Some(to) = connection.destination() {
            message = message.with_nested(cta::NAT_DST, &translation(to));
        }
        message = with_state(message, connection);
        match self.0.ask(NEW, (NLM_F_CREATE | NLM_F_EXCL) as u16, &message.0) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EAGAIN)) => Ok(false),
            Err(error) => Err(failed("make a connection of conntrack")(error)),
        }
    }

    /// Makes conntrack take a connection without translation, half of which it has seen, for an open one.
    pub(crate) fn refresh(&mut self, connection: &Connection) -> Result<()> {
        let message = generic()
            .with_nested(cta::TUPLE_ORIG, &tuple(&connection.original, false))
            .with(cta::TIMEOUT, &connection.timeout.to_be_bytes());
        match self.0.ask(NEW, 0, &with_state(message, connection).0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.create(connection).map(drop),
            done => done.map(drop).map_err(failed("change a connection of conntrack")),
        }
    }
}

fn with_state(message: Body, connection: &Connection) -> Body {
    if connection.original.protocol != TCP {
        return message;
    }
    let flags = [tcp::BE_LIBERAL, tcp::BE_LIBERAL];
    let info = Body::default()
        .with(cta::TCP_STATE, &[connection.state])
        .with(cta::TCP_FLAGS_ORIGINAL, &flags)
        .with(cta::TCP_FLAGS_REPLY, &flags);
    let info = Body::default().with_nested(cta::PROTOINFO_TCP, &info);
    message.with_nested(cta::PROTOINFO, &info)
}

fn generic() -> Body {
    Body::new(&[AF_INET as u8, 0, 0, 0])
}

fn tuple(tuple: &Tuple, answers: bool) -> Body {
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

fn translation((address, port): End) -> Body {
    let ports = Body::default()
        .with(cta::NAT_PORT_MIN, &port.to_be_bytes())
        .with(cta::NAT_PORT_MAX, &port.to_be_bytes());
    Body::default()
        .with(cta::NAT_MIN_IP, &address.octets())
        .with(cta::NAT_MAX_IP, &address.octets())
        .with_nested(cta::NAT_PROTO, &ports)
}

fn connection(bytes: &[u8]) -> Option<Connection> {
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

fn failed(action: &'static str) -> impl Fn(io::Error) -> MigrateError {
    move |source| MigrateError::Kernel {
        action: action.to_owned(),
        source,
    }
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

    #[test]
    fn translations_show_in_the_answers() {
        let (pod, vip, endpoint) = (
            (Ipv4Addr::new(10, 240, 0, 5), 4000),
            (Ipv4Addr::new(10, 0, 0, 1), 80),
            (Ipv4Addr::new(203, 0, 113, 10), 8080),
        );
        let node = (Ipv4Addr::new(10, 240, 0, 4), 4001);
        let original = Tuple {
            protocol: TCP,
            src: pod,
            dst: vip,
        };
        let plain = Connection::new(original, original.reversed(), 1, 0);
        assert_eq!((plain.source(), plain.destination()), (None, None));
        let reply = Tuple {
            protocol: TCP,
            src: endpoint,
            dst: node,
        };
        let both = Connection::new(original, reply, 1, 0);
        assert_eq!((both.source(), both.destination()), (Some(node), Some(endpoint)));
        let ping = Tuple {
            protocol: ICMP,
            src: (pod.0, 7),
            dst: (endpoint.0, 7),
        };
        let reply = Tuple {
            protocol: ICMP,
            src: (endpoint.0, 8),
            dst: (node.0, 8),
        };
        let moved = Connection::new(ping, reply, 1, 0);
        assert_eq!((moved.source(), moved.destination()), (Some((node.0, 8)), None));
    }
}
