//! The netlink socket: a request goes out, its answers come back, all of them before the next one. A call makes a few
//! dozen requests one after the other, so nothing waits for two things at once.

use std::{
    fmt, io,
    os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::{
    buffer::spare_capacity,
    io::retry_on_intr,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
};

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

    /// Asks the kernel for one thing, or to do one. Returns what it answers before it says that it is done.
    pub(super) fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let answers = self.exchange(message, flags | NLM_F_ACK)?;
        match answers.unreadable {
            0 => Ok(answers.messages),
            _ => Err(unreadable()),
        }
    }

    /// Asks for a list. One that changes meanwhile is asked for again; if it never stops changing, what lasted is in it. An
    /// object that this build cannot read is somebody else's, and left out.
    pub(super) fn list(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = self.exchange(message.clone(), NLM_F_DUMP)?;
        for _ in 1..DUMPS {
            if !answers.interrupted {
                break;
            }
            answers = self.exchange(message.clone(), NLM_F_DUMP)?;
        }
        if answers.unreadable > 0 {
            tracing::warn!(
                objects = answers.unreadable,
                "the kernel lists what this build cannot read"
            );
        }
        Ok(answers.messages)
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Answers> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags | NLM_F_REQUEST;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        retry_on_intr(|| send(&self.fd, &bytes, SendFlags::empty()))?;
        let mut answers = Answers::default();
        while !answers.is_over {
            self.receive()?;
            answers.take(&self.datagram, self.sequence)?;
        }
        Ok(answers)
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

/// What has come for a request so far.
#[derive(Debug, Default)]
struct Answers {
    messages: Vec<RouteNetlinkMessage>,
    /// Objects that could not be read.
    unreadable: usize,
    /// The list changed while it was told.
    interrupted: bool,
    is_over: bool,
}

impl Answers {
    /// Takes the messages of a datagram. Fails with the kernel's refusal. What answers an earlier request is left alone.
    fn take(&mut self, datagram: &[u8], sequence: u32) -> io::Result<()> {
        let mut rest = datagram;
        while !rest.is_empty() && !self.is_over {
            let frame = NetlinkBuffer::new_checked(rest).map_err(|_| unreadable())?;
            let length = frame.length() as usize;
            if frame.sequence_number() == sequence {
                self.interrupted |= frame.flags() & NLM_F_DUMP_INTR != 0;
                self.take_message(&rest[..length])?;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn take_message(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
            self.unreadable += 1;
            return Ok(());
        };
        match message.payload {
            NetlinkPayload::InnerMessage(message) => self.messages.push(message),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(-done.code));
            }
            NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => self.is_over = true,
            _ => {}
        }
        Ok(())
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
    use netlink_packet_core::{DoneMessage, ErrorMessage, NetlinkHeader};
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    type Payload = NetlinkPayload<RouteNetlinkMessage>;

    fn message(payload: Payload, sequence: u32, flags: u16) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        (header.sequence_number, header.flags) = (sequence, flags);
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link() -> Payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(LinkMessage::default()))
    }

    fn end(code: i32) -> Payload {
        let mut done = DoneMessage::default();
        done.code = code;
        NetlinkPayload::Done(done)
    }

    fn acknowledgement(code: i32) -> Payload {
        let mut error = ErrorMessage::default();
        error.code = std::num::NonZero::new(code);
        error.header = vec![0; 16];
        NetlinkPayload::Error(error)
    }

    #[test]
    fn answers_end_with_an_acknowledgement_or_with_the_end_of_a_list() {
        for last in [acknowledgement(0), end(0)] {
            let mut answers = Answers::default();
            let stale = message(acknowledgement(-libc::EPERM), 6, 0);
            let first = [stale, message(link(), 7, 0)].concat();
            answers.take(&first, 7).unwrap();
            assert!(!answers.is_over);
            answers
                .take(&[message(link(), 7, 0), message(last, 7, 0)].concat(), 7)
                .unwrap();
            assert!(answers.is_over && !answers.interrupted);
            assert_eq!(answers.messages.len(), 2);
        }
    }

    #[test]
    fn refusals_have_the_kernels_number() {
        for refusal in [acknowledgement(-libc::EEXIST), end(-libc::EEXIST)] {
            let error = Answers::default().take(&message(refusal, 1, 0), 1).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        }
    }

    #[test]
    fn a_list_that_changed_is_known_and_what_cannot_be_read_is_counted() {
        let mut answers = Answers::default();
        let mut odd = message(link(), 1, 0);
        odd[0] = 20;
        answers
            .take(
                &[&odd[..20], &message(link(), 1, NLM_F_DUMP_INTR)[..]].concat(),
                1,
            )
            .unwrap();
        assert!(answers.interrupted);
        assert_eq!((answers.messages.len(), answers.unreadable), (1, 1));
        for bytes in [&odd[..7], &[0; 16][..]] {
            Answers::default().take(bytes, 0).unwrap_err();
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
        let error = socket.ask(get(0x7fff_0000), 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(socket.ask(get(1), 0).unwrap().len(), 1);
        assert!(!socket.list(&get(0)).unwrap().is_empty());
        assert_eq!(socket.ask(get(1), 0).unwrap().len(), 1);
    }
}
