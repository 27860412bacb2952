//! An end of a UDP conversation: a socket that hears from anybody, and no two messages alike.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use causeway_tests::{netns::Netns, talk::PATIENCE};

use crate::side::A_WHILE;

/// A socket and its address.
pub(crate) struct Peer {
    pub(crate) socket: UdpSocket,
    pub(crate) addr: SocketAddr,
}

impl Peer {
    pub(crate) fn on(ns: &Netns, addr: SocketAddr) -> Result<Self> {
        let socket = ns.bind(|| UdpSocket::bind(addr));
        Ok(Self {
            socket: socket.with_context(|| format!("UDP socket on {addr}"))?,
            addr,
        })
    }

    /// Sends a message to `other` and returns from which address it came there.
    pub(crate) fn reach(&self, other: &Self) -> Result<SocketAddr> {
        self.reach_by(other.addr, other)
    }

    /// Sends a message to `to`, which is to lead to `other`, and returns from which address it came there.
    pub(crate) fn reach_by(&self, to: SocketAddr, other: &Self) -> Result<SocketAddr> {
        let message = self.tell(to)?;
        let from = other.hear(&message, PATIENCE)?;
        from.with_context(|| format!("{}: nothing from {} by way of {to}", other.addr, self.addr))
    }

    /// Whether a message to `to` comes to `other`.
    pub(crate) fn does_reach(&self, to: SocketAddr, other: &Self) -> Result<bool> {
        let message = self.tell(to)?;
        Ok(other.hear(&message, A_WHILE)?.is_some())
    }

    fn tell(&self, to: SocketAddr) -> Result<Vec<u8>> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let message = format!("message {number} of {}", self.addr).into_bytes();
        self.socket.send_to(&message, to)?;
        Ok(message)
    }

    /// From where `message` comes; `None` when it does not.
    pub(crate) fn hear(&self, message: &[u8], patience: Duration) -> Result<Option<SocketAddr>> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv_from(&mut buffer) {
                Ok((len, from)) if buffer[..len] == *message => return Ok(Some(from)),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => bail!("{}: {error}", self.addr),
            }
        }
    }
}
