//! Ordinary sockets between a pod and the far end, both on one CPU: what applications see, mostly their own system calls.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::netns::Netns;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::{
    cpu,
    family::Family,
    rounds::{Lane, Plan},
    stand::{FAR, Stand},
};

/// What is done over the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// One byte there, one byte back, over UDP.
    UdpRequests,
    /// The same over one TCP connection.
    TcpRequests,
    /// A TCP connection for each byte there and back.
    Connections,
    /// One TCP stream from the pod.
    Stream,
}

/// The longest that anybody waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a write to a stream.
const CHUNK: usize = 128 << 10;
/// The server's port (RFC 862, echo).
const PORT: u16 = 7;

/// One job of one peer.
pub(crate) struct SocketLane<'a> {
    label: String,
    stand: &'a Stand,
    job: Job,
    server: SocketAddr,
    /// The client's address as the server sees it.
    seen: IpAddr,
    plan: Plan,
}

impl<'a> SocketLane<'a> {
    /// Between the peer's first pod and its far end, with the node's address where the peer translates.
    pub(crate) fn new(stand: &'a Stand, job: Job, plan: &Plan) -> Self {
        Self {
            label: stand.peer.name().to_owned(),
            stand,
            job,
            server: SocketAddr::new(FAR.into(), PORT),
            seen: stand.seen(&stand.pods[0]).into(),
            plan: *plan,
        }
    }

    /// The same without translation, in one family, under another name.
    pub(crate) fn of_family(
        label: String,
        stand: &'a Stand,
        job: Job,
        family: Family,
        plan: &Plan,
    ) -> Result<Self> {
        Ok(Self {
            label,
            server: SocketAddr::new(family.far(), PORT),
            seen: stand.addr(&stand.pods[0], family)?,
            ..Self::new(stand, job, plan)
        })
    }

    fn client(&self) -> &'a Netns {
        &self.stand.pods[0].ns
    }

    /// Runs client and server, each on a thread of its own in its namespace, and returns what the client counted.
    fn both<S: Send>(
        &self,
        server: S,
        serve: impl FnOnce(S) -> Result<SocketAddr> + Send,
        ask: impl FnOnce() -> Result<f64> + Send,
    ) -> Result<f64> {
        let cpu = self.plan.cpu;
        let (seen, rate) = thread::scope(|scope| {
            let serving = scope.spawn(move || cpu::alone_on(cpu, || serve(server)));
            let rate = self.client().run(|| cpu::alone_on(cpu, ask));
            let seen = serving
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (seen, rate)
        });
        let rate = rate??;
        let (seen, expected) = (seen?.ip(), self.seen);
        ensure!(seen == expected, "the server saw {seen}, not {expected}");
        Ok(rate)
    }

    fn tcp(
        &self,
        serve: impl FnOnce(TcpStream) -> Result<()> + Send,
        ask: impl FnOnce(TcpStream) -> Result<f64> + Send,
    ) -> Result<f64> {
        let listener = self.listen()?;
        let accept = |listener: TcpListener| {
            let (stream, client) = listener.accept()?;
            serve(patient(stream)?)?;
            Ok(client)
        };
        self.both(listener, accept, || ask(self.connect()?))
    }

    fn listen(&self) -> Result<TcpListener> {
        let listener = self
            .stand
            .far()
            .bind(|| TcpListener::bind(self.server))
            .context("cannot listen at the far end")?;
        // Bounds accept(), should no client come.
        set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE))?;
        Ok(listener)
    }

    fn requests(&self) -> Result<f64> {
        let block = self.plan.block;
        let serve = |mut stream: TcpStream| {
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
            }
            Ok(())
        };
        self.tcp(serve, |mut stream| {
            let mut byte = [1];
            repeat(block, || {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)
            })
        })
    }

    fn datagrams(&self) -> Result<f64> {
        let block = self.plan.block;
        let bind = || UdpSocket::bind(self.server);
        let server = self
            .stand
            .far()
            .bind(bind)
            .context("cannot listen at the far end")?;
        server.set_read_timeout(Some(PATIENCE))?;
        // An empty datagram ends it.
        let serve = |server: UdpSocket| {
            let mut byte = [0; 8];
            loop {
                let (len, client) = server.recv_from(&mut byte)?;
                if len == 0 {
                    return Ok(client);
                }
                server.send_to(&byte[..len], client)?;
            }
        };
        self.both(server, serve, || {
            let any: IpAddr = match Family::of(self.seen) {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(self.server)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let mut byte = [1; 8];
            let rate = repeat(block, || {
                socket.send(&byte[..1])?;
                socket.recv(&mut byte).map(drop)
            });
            socket.send(&[])?;
            rate
        })
    }

    fn connections(&self) -> Result<f64> {
        let block = self.plan.block;
        let listener = self.listen()?;
        // The last connection says nothing.
        let serve = |listener: TcpListener| {
            let mut byte = [0];
            loop {
                let (stream, client) = listener.accept()?;
                let mut stream = patient(stream)?;
                if stream.read(&mut byte)? == 0 {
                    return Ok(client);
                }
                stream.write_all(&byte)?;
            }
        };
        self.both(listener, serve, || {
            let rate = repeat(block, || {
                let mut stream = self.connect()?;
                let mut byte = [1];
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)
            });
            drop(self.connect()?);
            rate
        })
    }

    fn connect(&self) -> io::Result<TcpStream> {
        patient(TcpStream::connect_timeout(&self.server, PATIENCE)?)
    }

    /// Bits a second, as the receiver counts them.
    fn stream(&self) -> Result<f64> {
        let block = self.plan.block;
        let received = std::sync::Mutex::new(0.0);
        let serve = |mut stream: TcpStream| {
            let mut buffer = vec![0; CHUNK];
            let (mut bytes, start) = (0usize, Instant::now());
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    len => bytes += len,
                }
            }
            if let Ok(mut received) = received.lock() {
                *received = bits(bytes) / start.elapsed().as_secs_f64();
            }
            Ok(())
        };
        self.tcp(serve, |mut stream| {
            let buffer = vec![0; CHUNK];
            repeat(block, || stream.write_all(&buffer))
        })?;
        received
            .into_inner()
            .map_err(|_| anyhow::anyhow!("the receiver panicked"))
    }
}

impl Lane for SocketLane<'_> {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn warm_up(&mut self) -> Result<()> {
        self.block().map(drop)
    }

    fn block(&mut self) -> Result<f64> {
        match self.job {
            Job::UdpRequests => self.datagrams(),
            Job::TcpRequests => self.requests(),
            Job::Connections => self.connections(),
            Job::Stream => self.stream(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a block's bytes")]
fn bits(bytes: usize) -> f64 {
    bytes as f64 * 8.0
}

/// Does something again and again; how often a second.
fn repeat(length: Duration, mut once: impl FnMut() -> io::Result<()>) -> Result<f64> {
    let (mut times, start) = (0u32, Instant::now());
    while start.elapsed() < length {
        once()?;
        times += 1;
    }
    Ok(f64::from(times) / start.elapsed().as_secs_f64())
}

fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
