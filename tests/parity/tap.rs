//! The writer's and the reader's end of an interface: a packet socket that sends and receives many frames in one call.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use causeway_tests::{netns::Netns, packet_socket};

/// Frames a system call.
const AT_ONCE: usize = 64;
/// Longest frame.
const ROOM: usize = 2048;
/// `PACKET_IGNORE_OUTGOING` (linux/if_packet.h): what leaves by the interface is not shown.
const IGNORE_OUTGOING: libc::c_int = 23;

/// A packet socket of one interface. It shows what the interface receives and not what it sends.
#[derive(Debug)]
pub(crate) struct Tap {
    socket: OwnedFd,
    room: Vec<u8>,
}

impl Tap {
    pub(crate) fn open(ns: &Netns, interface: &str) -> Result<Self> {
        let on: libc::c_int = 1;
        let socket = packet_socket::open(ns, interface, 32 << 20, |socket| {
            packet_socket::set(socket, libc::SOL_PACKET, IGNORE_OUTGOING, &on)
        })?;
        Ok(Self {
            socket,
            room: vec![0; AT_ONCE * ROOM],
        })
    }

    /// Sends frames in their order.
    pub(crate) fn send<'a>(&self, frames: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        let mut parts: Vec<libc::iovec> = frames
            .map(|frame| libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts.iter_mut().map(message).collect();
        let mut sent = 0;
        while sent < messages.len() {
            let rest = &mut messages[sent..];
            // SAFETY: messages, parts and frames are live and their lengths are given.
            let done =
                unsafe { libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
            sent += usize::try_from(done)
                .map_err(|_| io::Error::last_os_error())
                .with_context(|| format!("sending frame {sent}, {} bytes long", parts[sent].iov_len))?;
        }
        Ok(())
    }

    /// Hands over every frame that is waiting.
    pub(crate) fn receive(&mut self, mut each: impl FnMut(&[u8])) -> Result<()> {
        loop {
            let mut parts: Vec<libc::iovec> = self
                .room
                .chunks_exact_mut(ROOM)
                .map(|slot| libc::iovec {
                    iov_base: slot.as_mut_ptr().cast(),
                    iov_len: slot.len(),
                })
                .collect();
            let mut messages: Vec<libc::mmsghdr> = parts.iter_mut().map(message).collect();
            // SAFETY: messages, parts and room are live and their lengths are given.
            let done = unsafe {
                libc::recvmmsg(
                    self.socket.as_raw_fd(),
                    messages.as_mut_ptr(),
                    AT_ONCE as u32,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                )
            };
            let Ok(received) = usize::try_from(done) else {
                let error = io::Error::last_os_error();
                return if error.kind() == io::ErrorKind::WouldBlock {
                    Ok(())
                } else {
                    Err(error).context("receiving")
                };
            };
            for (message, slot) in messages[..received].iter().zip(self.room.chunks_exact(ROOM)) {
                each(&slot[..message.msg_len as usize]);
            }
            if received < AT_ONCE {
                return Ok(());
            }
        }
    }

    /// Waits until a frame is there or the time is over.
    pub(crate) fn wait(&self, time: Duration) {
        let mut poll = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live pollfd. Its result is not needed: the caller looks anyway.
        unsafe { libc::poll(&raw mut poll, 1, time.as_millis() as i32) };
    }
}

fn message(part: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: integers and pointers: all zero is a value.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = part;
    message.msg_hdr.msg_iovlen = 1;
    message
}
