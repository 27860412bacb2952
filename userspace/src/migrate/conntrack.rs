//! The kernel's connection tracking, over ctnetlink: connections with their translations are read, made and removed.

mod message;

use std::{collections::BTreeMap, fmt, io, net::Ipv4Addr};

use causeway_common::tuple::{ICMP, TCP, UDP};
use libc::{NLM_F_CREATE, NLM_F_EXCL};

use self::message::{connection, cta, generic, translation, tuple, with_state};
use super::{
    MigrateError,
    netlink::{Protocol, Socket},
};

/// `NFNL_SUBSYS_CTNETLINK << 8` and the messages (linux/netfilter/nfnetlink_conntrack.h, Linux 6.18).
const NEW: u16 = 0x0100;
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
/// How often a connection is made in place of one that a packet has begun meanwhile.
const ATTEMPTS: u32 = 16;

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

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((src, src_port), (dst, dst_port)) = (self.src, self.dst);
        match self.protocol {
            TCP => write!(f, "tcp {src}:{src_port} -> {dst}:{dst_port}"),
            UDP => write!(f, "udp {src}:{src_port} -> {dst}:{dst_port}"),
            ICMP => write!(f, "icmp {src} -> {dst}, echo {src_port}"),
            other => write!(f, "protocol {other} {src} -> {dst}"),
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

    /// Whether `other`, which has one of its tuples, is what a packet of this very connection has begun, or is over.
    fn supersedes(&self, other: &Self) -> bool {
        let is_translated = other.reply != other.original.reversed();
        let is_answers = other.original == self.reply || other.original == self.original.reversed();
        let is_over = other.original.protocol == TCP && matches!(other.state, tcp::TIME_WAIT | tcp::CLOSE);
        other.original == self.original || is_answers && !is_translated || is_over
    }

    /// Whether the rule of a masquerade has seen it.
    pub(crate) fn has_source_translation(&self) -> bool {
        self.status & SRC_NAT != 0
    }
}

/// A flow for which conntrack has no room.
#[derive(Debug)]
pub(crate) struct Lost {
    /// As its opener sends it.
    opener: Tuple,
    /// [`tcp`].
    state: u8,
    /// As that of the connection sends it which has its port, and that one's state.
    holder: Option<(Tuple, u8)>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.opener, self.state)?;
        match self.holder {
            Some((holder, state)) => write!(f, ", whose port conntrack has given to {holder} ({state})"),
            None => f.write_str(", which conntrack makes anew as often as it is removed"),
        }
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
            .filter_map(|message| connection(message))
            .collect())
    }

    /// The connection that this is a tuple of, in either direction; `answers`: as its answers come.
    pub(crate) fn find(&mut self, found: &Tuple, answers: bool) -> Result<Option<Connection>> {
        let message = generic().with_nested(cta::TUPLE_ORIG, &tuple(found, answers));
        match self.0.ask(GET, 0, &message.0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(failed("look for a connection of conntrack")(error)),
            Ok(messages) => Ok(messages.iter().find_map(|message| connection(message))),
        }
    }

    /// A connection that was listed, as it is. `None`: it has gone, or another one has its tuple.
    pub(crate) fn again(&mut self, listed: &Connection) -> Result<Option<Connection>> {
        let found = self.find(&listed.original, false)?;
        Ok(found.filter(|found| found.reply == listed.reply))
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

    /// Makes a connection in place of what a packet has begun since it was removed, or of what is over. Returns why it could
    /// not: a living connection of another opener may have its answers' tuple.
    pub(crate) fn replace(&mut self, connection: &Connection) -> Result<Option<Lost>> {
        let lost = |holder| {
            Some(Lost {
                opener: connection.original,
                state: connection.state,
                holder,
            })
        };
        for _ in 0..ATTEMPTS {
            if self.create(connection)? {
                return Ok(None);
            }
            let there = match self.find(&connection.original, false)? {
                None => self.find(&connection.reply, true)?,
                there => there,
            };
            match there {
                Some(there) if (there.original, there.reply) == (connection.original, connection.reply) => {
                    self.refresh(connection)?;
                    return Ok(None);
                }
                Some(there) if connection.supersedes(&there) => self.remove(&there)?,
                Some(there) => return Ok(lost(Some((there.original, there.state)))),
                None => {}
            }
        }
        Ok(lost(None))
    }

    /// Gives a connection, part of which conntrack has not seen, its state and its time.
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

    /// In a namespace of its own; needs CAP_NET_ADMIN, as the whole test run does.
    #[test]
    fn what_was_listed_is_found_as_it_is_and_another_with_its_tuple_is_not() {
        let looked_at = std::thread::spawn(|| {
            // SAFETY: only this thread changes its namespace, and nothing of it is shared.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "run as root");
            let mut conntrack = Conntrack::open().unwrap();
            let pod = (Ipv4Addr::new(10, 240, 0, 5), 4000);
            let remote = (Ipv4Addr::new(203, 0, 113, 10), 8080);
            let original = Tuple {
                protocol: TCP,
                src: pod,
                dst: remote,
            };
            let with_port = |port, state| {
                let mut reply = original.reversed();
                reply.dst = (Ipv4Addr::new(10, 240, 0, 4), port);
                Connection::new(original, reply, 100, state)
            };
            let listed = with_port(4000, tcp::SYN_RECV);
            assert!(conntrack.create(&listed).unwrap());
            conntrack.refresh(&with_port(4000, tcp::ESTABLISHED)).unwrap();
            let now = conntrack.again(&listed).unwrap().unwrap();
            assert_eq!((now.state, now.reply), (tcp::ESTABLISHED, listed.reply));
            conntrack.remove(&now).unwrap();
            assert_eq!(conntrack.again(&listed).unwrap(), None);
            assert!(conntrack.create(&with_port(4001, tcp::SYN_RECV)).unwrap());
            assert_eq!(conntrack.again(&listed).unwrap(), None);
        });
        looked_at.join().unwrap();
    }
}
