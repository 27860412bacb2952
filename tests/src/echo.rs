//! A server that sends back what it gets, over TCP and UDP on one port, and remembers whom it saw.

use std::{
    io::{ErrorKind, Read, Write},
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

type Seen = Arc<Mutex<Vec<SocketAddrV4>>>;

impl Echo {
    /// Serves `port` on every address of the namespace.
    pub fn start(ns: &Netns, port: u16) -> Result<Self> {
        Self::on(ns, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))
    }

    /// Serves one address. Datagrams are answered from the address they were sent to only if it is the namespace's
    /// preferred one, so a server on a secondary address names it here.
    pub fn on(ns: &Netns, address: SocketAddrV4) -> Result<Self> {
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
    pub fn seen(&self) -> Vec<SocketAddrV4> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
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
    while let Ok((connection, SocketAddr::V4(peer))) = listener.accept() {
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
        match socket.recv_from(&mut buffer) {
            Ok((len, SocketAddr::V4(peer))) => {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
                // An unreachable peer is the client's failure to report, not the server's.
                drop(socket.send_to(&buffer[..len], peer));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // An ICMP error that came back for an earlier answer.
            _ => {}
        }
    }
}
