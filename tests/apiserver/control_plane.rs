//! The control plane: a namespace in the delegated subnet, with TLS servers on its addresses.
//!
//! A server greets with its own address and that of its client, and then gives back what it gets. So a client knows who
//! serves it, and what of its address was left.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use causeway_tests::{delegated, fabric::Fabric, netns::Netns};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustix::net::sockopt;
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer},
};

/// The ports of an API server, the last one that of health probes.
pub(crate) const PORTS: [u16; 3] = [443, 4443, 9988];
/// The name that the certificate is for.
pub(crate) const NAME: &str = "kubernetes.default.svc";

/// The subnet with its servers.
pub(crate) struct ControlPlane {
    pub(crate) ns: Netns,
    pub(crate) certificate: CertificateDer<'static>,
    config: Arc<ServerConfig>,
}

impl ControlPlane {
    pub(crate) fn new(fabric: &Fabric) -> Result<Self> {
        let ns = delegated::subnet(fabric)?;
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()])?;
        let certificate = cert.der().clone();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)?;
        Ok(Self {
            ns,
            certificate,
            config: Arc::new(config),
        })
    }

    /// Its certificate and the key to it.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Serves an address on every port.
    pub(crate) fn serve(&self, address: Ipv4Addr) -> Result<Server> {
        let over = Arc::new(AtomicBool::new(false));
        let open = Open::default();
        let mut threads = Vec::new();
        for port in PORTS {
            let address = SocketAddrV4::new(address, port);
            let listener = self.ns.bind(|| TcpListener::bind(address))?;
            listener.set_nonblocking(true)?;
            let (over, open) = (Arc::clone(&over), Arc::clone(&open));
            let config = (port != PORTS[2]).then(|| self.config());
            threads.push(thread::spawn(move || {
                accept((port, &listener), &over, &open, config.as_ref());
            }));
        }
        Ok(Server { over, open, threads })
    }
}

/// The connections that are open, by their ports and clients.
type Open = Arc<Mutex<BTreeMap<(u16, SocketAddr), TcpStream>>>;

/// An API server. Dropped, it is gone: its connections with it.
pub(crate) struct Server {
    over: Arc<AtomicBool>,
    open: Open,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Takes no more connections: one to it is refused. Those that are there go on.
    pub(crate) fn stop_listening(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_listening();
        if let Ok(open) = self.open.lock() {
            for stream in open.values() {
                stream.shutdown(Shutdown::Both).ok();
            }
        }
    }
}

fn accept(
    (port, listener): (u16, &TcpListener),
    over: &AtomicBool,
    open: &Open,
    config: Option<&Arc<ServerConfig>>,
) {
    while !over.load(Ordering::SeqCst) {
        let Ok((stream, client)) = listener.accept() else {
            thread::sleep(Duration::from_millis(2));
            continue;
        };
        // The health port is asked for a connection alone.
        let Some(config) = config else { continue };
        stream.set_nonblocking(false).ok();
        watch_over(&stream).ok();
        if let (Ok(copy), Ok(mut open)) = (stream.try_clone(), open.lock()) {
            open.insert((port, client), copy);
        }
        let (config, open) = (Arc::clone(config), Arc::clone(open));
        thread::spawn(move || {
            talk(stream, config).ok();
            if let Ok(mut open) = open.lock() {
                open.remove(&(port, client));
            }
        });
    }
}

/// Nobody tells the server that its client was reset: it finds out by asking, as those of real API servers do.
fn watch_over(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(3))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(stream, 3)
}

fn talk(stream: TcpStream, config: Arc<ServerConfig>) -> Result<()> {
    let greeting = format!("{} {}\n", stream.local_addr()?, stream.peer_addr()?);
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
    stream.write_all(greeting.as_bytes())?;
    let mut buffer = [0; 512];
    loop {
        match stream.read(&mut buffer).context("read")? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}
