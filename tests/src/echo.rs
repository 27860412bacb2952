//! A server that sends back what it gets, over TCP and UDP on one port, and remembers whom it saw.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::net::{Shutdown, shutdown};

use crate::netns::Netns;

/// A running server. Dropped, it stops listening; open connections live until their clients close them.
#[derive(Debug)]
pub struct Echo {
    listener: TcpListener,
    seen: Seen,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

type Seen = Arc<Mutex<Vec<SocketAddr>>>;

impl Echo {
    /// Serves `port` on every address of IPv4 of the namespace.
    pub fn start(ns: &Netns, port: u16) -> Result<Self> {
        Self::on(ns, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))
    }

    /// Serves one address. Datagrams are answered from the address they were sent to only if it is the namespace's
    /// preferred one, so a server on a secondary address names it here.
    pub fn on(ns: &Netns, address: impl Into<SocketAddr>) -> Result<Self> {
        let address = address.into();
        let bound = ns.bind(|| Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?)));
        let (listener, datagrams) = bound.with_context(|| format!("cannot listen on {address}"))?;
        datagrams.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (seen, stop) = (Seen::default(), Arc::new(AtomicBool::new(false)));
        let tcp = std::thread::spawn({
            let (listener, seen) = (listener.try_clone()?, Arc::clone(&seen));
            move || accept(&listener, &seen)
        });
        let udp = std::thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || answer(&datagrams, &seen, &stop)
        });
        Ok(Self {
            listener,
            seen,
            stop,
            threads: vec![tcp, udp],
        })
    }

    /// The peers of every connection and datagram since the last call, oldest first.
    pub fn peers(&self) -> Vec<SocketAddr> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// As [`Self::peers`], of a server of IPv4.
    pub fn seen(&self) -> Vec<SocketAddrV4> {
        let of_ipv4 = |peer| match peer {
            SocketAddr::V4(peer) => Some(peer),
            SocketAddr::V6(_) => None,
        };
        self.peers().into_iter().filter_map(of_ipv4).collect()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes accept(); it fails only when the socket is gone, and then accept() has ended too.
        shutdown(self.listener.as_fd(), Shutdown::Both).ok();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn accept(listener: &TcpListener, seen: &Seen) {
    while let Ok((connection, peer)) = listener.accept() {
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
        std::thread::spawn(move || repeat(connection));
    }
}

/// Ends with the connection, whether the client closes it or the network does.
fn repeat(mut connection: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(len @ 1..) = connection.read(&mut buffer) {
        if connection.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
}

fn answer(socket: &UdpSocket, seen: &Seen, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        // Otherwise nothing has come, or an ICMP error for an earlier answer.
        if let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
            // An unreachable peer is the client's failure to report, not the server's.
            drop(socket.send_to(&buffer[..len], peer));
        }
    }
}
