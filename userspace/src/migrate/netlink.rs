//! Netlink messages as bytes: what the kernel says of an object is kept as it came, and given back as it came. A typed
//! message would lose what its type does not know, and a node is to be left exactly as it was found.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    thread,
};

use rustix::{
    io::retry_on_intr,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::go_json::{base64, parse_base64};

/// Length of `struct nlmsghdr` in bytes.
const HEADER: usize = 16;
/// The kernel makes no larger datagram of a dump (`netlink_dump`, Linux 6.18). Bytes.
const DATAGRAM: usize = 64 << 10;
/// How often a list is asked for that changes while the kernel tells it.
const DUMPS: usize = 8;
/// Bits of an attribute's type that are no part of its number (`NLA_TYPE_MASK`).
const TYPE_FLAGS: u16 = 0xc000;
const NESTED: u16 = 0x8000;

/// A netlink protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    /// Links, addresses, routes and neighbours.
    Route,
    /// Conntrack among others.
    Netfilter,
    /// Sockets: what they are connected to, and their end.
    SockDiag,
}

/// A socket. It belongs to the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    /// What the kernel writes its answers to.
    datagram: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the thread's network namespace.
    pub(crate) fn open(protocol: Protocol) -> io::Result<Self> {
        let number = match protocol {
            // No protocol is number 0.
            Protocol::Route => None,
            Protocol::Netfilter => Some(netlink::NETFILTER),
            Protocol::SockDiag => Some(netlink::SOCK_DIAG),
        };
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            number,
        )?;
        Ok(Self {
            fd,
            sequence: 0,
            datagram: vec![0; DATAGRAM],
        })
    }

    /// Opens a socket of rtnetlink in another network namespace, which a thread of its own enters for that.
    pub(crate) fn open_inside(netns: &File) -> io::Result<Self> {
        thread::scope(|scope| {
            let open = || {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                Self::open(Protocol::Route)
            };
            let opened = scope.spawn(open).join();
            opened.unwrap_or_else(|_| Err(io::Error::other("the thread that opens the socket has panicked")))
        })
    }

    /// Asks for one thing, or to do one, and waits until the kernel says that it is done.
    pub(crate) fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        Ok(self
            .exchange(kind, flags | libc::NLM_F_ACK as u16, body)?
            .messages)
    }

    /// Asks for a list; for one that changed meanwhile again.
    pub(crate) fn list(&mut self, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut answers = self.exchange(kind, libc::NLM_F_DUMP as u16, body)?;
        for _ in 1..DUMPS {
            if !answers.interrupted {
                break;
            }
            answers = self.exchange(kind, libc::NLM_F_DUMP as u16, body)?;
        }
        Ok(answers.messages)
    }

    fn exchange(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Answers> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(body);
        retry_on_intr(|| send(&self.fd, &request, SendFlags::empty()))?;
        let mut answers = Answers::default();
        while !answers.is_over {
            let (_, length) =
                retry_on_intr(|| recv(&self.fd, self.datagram.as_mut_slice(), RecvFlags::TRUNC))?;
            let datagram = self.datagram.get(..length).ok_or_else(unreadable)?;
            answers.take(datagram, self.sequence)?;
        }
        Ok(answers)
    }
}

#[derive(Debug, Default)]
struct Answers {
    /// Without their headers.
    messages: Vec<Vec<u8>>,
    interrupted: bool,
    is_over: bool,
}

impl Answers {
    fn take(&mut self, datagram: &[u8], sequence: u32) -> io::Result<()> {
        let mut rest = datagram;
        while !rest.is_empty() && !self.is_over {
            let (header, length) = (rest.get(..HEADER), u32_at(rest, 0));
            let (Some(header), Some(length)) = (header, length) else {
                return Err(unreadable());
            };
            let length = length as usize;
            let body = rest.get(HEADER..length).ok_or_else(unreadable)?;
            if u32_at(header, 8) == Some(sequence) {
                let flags = u16_at(header, 6).unwrap_or_default();
                self.interrupted |= flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                self.take_message(u16_at(header, 4).unwrap_or_default(), body)?;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn take_message(&mut self, kind: u16, body: &[u8]) -> io::Result<()> {
        match i32::from(kind) {
            libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                self.is_over = true;
                match u32_at(body, 0).map_or(0, u32::cast_signed) {
                    code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                    _ => Ok(()),
                }
            }
            _ => {
                self.messages.push(body.to_vec());
                Ok(())
            }
        }
    }
}

fn unreadable() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer is not one that this build can read",
    )
}

/// The attributes in `bytes`, numbers without their flags.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & !TYPE_FLAGS;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attribute with this number.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// The number at this offset, in the machine's order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The number at this offset, in the machine's order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The body of a message: a fixed part and attributes. It is kept in files as base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    /// A body with a fixed part.
    pub(crate) fn new(fixed: &[u8]) -> Self {
        Self(fixed.to_vec())
    }

    /// With an attribute added.
    #[must_use]
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// With an attribute added that holds attributes.
    #[must_use]
    pub(crate) fn with_nested(self, kind: u16, inner: &Self) -> Self {
        self.with(kind | NESTED, &inner.0)
    }

    /// The same message with a fixed part and attributes changed: `change` returns what an attribute is to be, `None` for
    /// nothing. `fixed` is the length of the fixed part in bytes.
    #[must_use]
    pub(crate) fn changed(&self, fixed: usize, change: impl Fn(u16, &[u8]) -> Option<Vec<u8>>) -> Self {
        let (head, rest) = self.0.split_at(fixed.min(self.0.len()));
        attributes(rest).fold(Self::new(head), |body, (kind, value)| match change(kind, value) {
            Some(value) => body.with(kind, &value),
            None => body,
        })
    }
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&base64(&self.0))
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = parse_base64(&text).ok_or_else(|| D::Error::custom("no base64"))?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written_and_can_be_changed() {
        let inner = Body::default().with(3, b"abc");
        let body = Body::new(&[7; 4])
            .with(1, &[1])
            .with_nested(2, &inner)
            .with(5, &[9; 6]);
        let read: Vec<_> = attributes(&body.0[4..]).collect();
        assert_eq!(read, [(1, &[1][..]), (2, &inner.0[..]), (5, &[9; 6][..])]);
        assert_eq!(
            attribute(attribute(&body.0[4..], 2).unwrap(), 3),
            Some(&b"abc"[..])
        );
        let changed = body.changed(4, |kind, value| match kind {
            1 => Some(vec![2]),
            2 => None,
            _ => Some(value.to_vec()),
        });
        let read: Vec<_> = attributes(&changed.0[4..]).collect();
        assert_eq!(read, [(1, &[2][..]), (5, &[9; 6][..])]);
        for cut in 0..body.0.len() {
            assert!(attributes(&body.0[..cut]).count() <= 4);
        }
    }

    #[test]
    fn a_body_survives_a_file() {
        let body = Body::new(&[1, 2, 3]);
        let text = serde_json::to_string(&body).unwrap();
        assert_eq!(serde_json::from_str::<Body>(&text).unwrap(), body);
        assert!(serde_json::from_str::<Body>("\"%\"").is_err());
    }

    #[test]
    fn a_refused_request_has_the_kernels_number_and_leaves_the_socket_of_use() {
        let mut socket = Socket::open(Protocol::Route).unwrap();
        let link = |index: u32| {
            let mut fixed = [0; 16];
            fixed[4..8].copy_from_slice(&index.to_ne_bytes());
            fixed
        };
        let refused = socket.ask(libc::RTM_GETLINK, 0, &link(0x7fff_0000)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(socket.ask(libc::RTM_GETLINK, 0, &link(1)).unwrap().len(), 1);
        assert!(!socket.list(libc::RTM_GETLINK, &[0; 16]).unwrap().is_empty());
    }
}
