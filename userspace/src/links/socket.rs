//! The netlink socket: a request goes out, its answers come back, all of them before the next one. A call makes a few
//! dozen requests one after the other, so nothing waits for two things at once.

use std::{
    fmt, io,
    os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::{
    buffer::spare_capacity,
    io::retry_on_intr,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
};

use super::answer::Answer;

/// The kernel makes no larger datagram: a dump comes in pieces of at most 32 KiB (`netlink_dump`, Linux 6.18), and of single
/// objects only an interface with hundreds of virtual functions comes near. Bytes.
const DATAGRAM: usize = 64 << 10;
/// How often a list is asked for that changes while the kernel tells it.
const DUMPS: usize = 8;

/// A socket of rtnetlink. It belongs to the network namespace in which it was opened.
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    datagram: Vec<u8>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.fd).finish()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Socket {
    /// Opens a socket in the thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        // No protocol is number 0: NETLINK_ROUTE.
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self {
            fd,
            sequence: 0,
            datagram: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Tells the kernel to do something. Returns when it is done.
    pub(super) fn tell(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, flags | NLM_F_ACK, |_, _| {}).map(drop)
    }

    /// Asks the kernel for one object that it answers with, or refuses: of interfaces and routes it has no third way
    /// (`rtnl_getlink`, `inet_rtm_getroute`, Linux 6.18), so that nobody need wait for it to say that it is done.
    pub(super) fn get<T: Answer>(&mut self, message: RouteNetlinkMessage) -> io::Result<T> {
        let mut found = Found::default();
        self.exchange(message, 0, |kind, body| found.take(kind, body))?;
        found.objects.pop().ok_or_else(unreadable)
    }

    /// Asks the kernel for what there may be. Returns what it answers before it says that it is done.
    pub(super) fn ask<T: Answer>(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<T>> {
        let mut found = Found::default();
        self.exchange(message, flags | NLM_F_ACK, |kind, body| found.take(kind, body))?;
        match found.unreadable {
            0 => Ok(found.objects),
            _ => Err(unreadable()),
        }
    }

    /// Asks for a list. One that changes meanwhile is asked for again; if it never stops changing, what lasted is in it. An
    /// object that this build cannot read is somebody else's, and left out.
    pub(super) fn list<T: Answer>(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<T>> {
        let mut found = Found::default();
        for _ in 0..DUMPS {
            found = Found::default();
            let answers = self.exchange(message.clone(), NLM_F_DUMP, |kind, body| found.take(kind, body))?;
            if !answers.interrupted {
                break;
            }
        }
        if found.unreadable > 0 {
            tracing::warn!(
                objects = found.unreadable,
                "the kernel lists what this build cannot read"
            );
        }
        Ok(found.objects)
    }

    /// Sends a request and gives `take` type and body of each message that the kernel answers with, but for the last.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(u16, &[u8]),
    ) -> io::Result<Answers> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags | NLM_F_REQUEST;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        retry_on_intr(|| send(&self.fd, &bytes, SendFlags::empty()))?;
        let mut answers = Answers {
            is_one: flags & (NLM_F_ACK | NLM_F_DUMP) == 0,
            ..Answers::default()
        };
        while !answers.is_over {
            self.receive()?;
            answers.take(&self.datagram, self.sequence, &mut take)?;
        }
        Ok(answers)
    }

    /// Requests that were made.
    #[cfg(test)]
    pub(super) fn requests(&self) -> u32 {
        self.sequence
    }

    fn receive(&mut self) -> io::Result<()> {
        self.datagram.clear();
        let (_, length) = retry_on_intr(|| {
            recv(
                self.fd.as_fd(),
                spare_capacity(&mut self.datagram),
                RecvFlags::TRUNC,
            )
        })?;
        if length > self.datagram.len() {
            let text = format!("the kernel's answer of {length} bytes does not fit {DATAGRAM}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(())
    }
}

/// How far the answers to a request have come.
#[derive(Debug, Default)]
struct Answers {
    /// The first is the last.
    is_one: bool,
    /// The list changed while it was told.
    interrupted: bool,
    is_over: bool,
}

impl Answers {
    /// Gives `each` the messages of a datagram. Fails with the kernel's refusal. What answers an earlier request is left
    /// alone.
    fn take(&mut self, datagram: &[u8], sequence: u32, each: &mut impl FnMut(u16, &[u8])) -> io::Result<()> {
        /// Length of `struct nlmsghdr`. Bytes.
        const HEADER: usize = 16;
        let mut rest = datagram;
        while !rest.is_empty() && !self.is_over {
            let frame = NetlinkBuffer::new_checked(rest).map_err(|_| unreadable())?;
            let length = frame.length() as usize;
            if frame.sequence_number() == sequence {
                self.interrupted |= frame.flags() & NLM_F_DUMP_INTR != 0;
                let body = rest.get(HEADER..length).ok_or_else(unreadable)?;
                match frame.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => self.end(body)?,
                    kind => {
                        each(kind, body);
                        self.is_over = self.is_one;
                    }
                }
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    /// An acknowledgement and the end of a list both begin with an error number, negative, or zero where all is well.
    fn end(&mut self, body: &[u8]) -> io::Result<()> {
        let code = body.first_chunk().ok_or_else(unreadable)?;
        match i32::from_ne_bytes(*code) {
            code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
            _ => {
                self.is_over = true;
                Ok(())
            }
        }
    }
}

/// The objects of one sort that were found among the answers.
struct Found<T> {
    objects: Vec<T>,
    unreadable: usize,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self {
            objects: Vec::new(),
            unreadable: 0,
        }
    }
}

impl<T: Answer> Found<T> {
    fn take(&mut self, kind: u16, body: &[u8]) {
        if kind != T::KIND {
            return;
        }
        match T::read(body) {
            Some(object) => self.objects.push(object),
            None => self.unreadable += 1,
        }
    }
}

fn unreadable() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer is not one that this build can read",
    )
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;
    use crate::links::Link;

    const SEQUENCE: u32 = 7;

    fn message(kind: u16, sequence: u32, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        message.extend([sequence.to_ne_bytes(), [0; 4]].concat());
        message.extend(body);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn link(flags: u16) -> Vec<u8> {
        message(libc::RTM_NEWLINK, SEQUENCE, flags, &[0; 16])
    }

    fn end(kind: u16, sequence: u32, code: i32) -> Vec<u8> {
        message(kind, sequence, 0, &[code.to_ne_bytes(), [0; 4]].concat())
    }

    fn take(answers: &mut Answers, found: &mut Found<Link>, datagram: &[u8]) -> io::Result<()> {
        answers.take(datagram, SEQUENCE, &mut |kind, body| found.take(kind, body))
    }

    #[test]
    fn answers_end_with_an_acknowledgement_or_with_the_end_of_a_list() {
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let (mut answers, mut found) = (Answers::default(), Found::default());
            let stale = end(NLMSG_ERROR, SEQUENCE - 1, -libc::EPERM);
            take(&mut answers, &mut found, &[stale, link(0)].concat()).unwrap();
            assert!(!answers.is_over);
            let other = message(libc::RTM_NEWADDR, SEQUENCE, 0, &[0; 8]);
            let rest = [link(0), other, end(kind, SEQUENCE, 0), link(0)];
            take(&mut answers, &mut found, &rest.concat()).unwrap();
            assert!(answers.is_over && !answers.interrupted);
            assert_eq!((found.objects.len(), found.unreadable), (2, 0));
        }
    }

    #[test]
    fn refusals_have_the_kernels_number() {
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let refusal = end(kind, SEQUENCE, -libc::EEXIST);
            let error = take(&mut Answers::default(), &mut Found::default(), &refusal).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        }
    }

    #[test]
    fn a_list_that_changed_is_known_and_what_cannot_be_read_is_counted() {
        let (mut answers, mut found) = (Answers::default(), Found::default());
        let odd = message(libc::RTM_NEWLINK, SEQUENCE, 0, &[0; 4]);
        let datagram = [odd.clone(), link(NLM_F_DUMP_INTR)].concat();
        take(&mut answers, &mut found, &datagram).unwrap();
        assert!(answers.interrupted);
        assert_eq!((found.objects.len(), found.unreadable), (1, 1));
        for bytes in [&odd[..7], &[0; 16][..]] {
            take(&mut Answers::default(), &mut Found::default(), bytes).unwrap_err();
        }
    }

    #[test]
    fn a_refused_request_leaves_the_socket_of_use() {
        let mut socket = Socket::open().unwrap();
        let get = |index| {
            let mut message = LinkMessage::default();
            message.header.index = index;
            RouteNetlinkMessage::GetLink(message)
        };
        let error = socket.ask::<Link>(get(0x7fff_0000), 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        let error = socket.get::<Link>(get(0x7fff_0000)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(socket.get::<Link>(get(1)).unwrap().index, 1);
        assert_eq!(socket.ask::<Link>(get(1), 0).unwrap().len(), 1);
        assert!(!socket.list::<Link>(&get(0)).unwrap().is_empty());
        assert_eq!(socket.ask::<Link>(get(1), 0).unwrap().len(), 1);
    }
}
