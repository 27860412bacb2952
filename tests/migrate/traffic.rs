//! Conversations of every kind that go on while the node changes.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    echo::Echo,
    fabric::{INTERNET, NODE, VNET},
    netns::Netns,
    ping::Pinger,
    talk::{Tcp, Udp},
};

use crate::incumbent::{HOST_PORT, NODE_PORT, PORT, SERVICE_INSIDE, SERVICE_OUTSIDE, Site};

/// Servers everywhere, and who talks to them.
pub(crate) struct Traffic {
    internet: Echo,
    _others: [Echo; 2],
    tcp: Vec<(&'static str, Tcp)>,
    udp: Vec<(&'static str, Udp)>,
    pingers: Vec<(Pinger, Ipv4Addr)>,
    bulk: TcpStream,
}

/// What was lost of what was asked.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    pub(crate) asked: u32,
    pub(crate) lost: u32,
}

impl Traffic {
    /// Opens every conversation, and sees to it that each works.
    pub(crate) fn open(site: &Site) -> Result<Self> {
        let [first, second] = [&site.pods[0].ns, &site.pods[1].ns];
        let server = site.server().addr;
        let internet = Echo::start(&site.fabric.internet, PORT)?;
        let others = [
            Echo::start(&site.fabric.vnet, PORT)?,
            Echo::start(&site.server().ns, PORT)?,
        ];
        let at = |address: Ipv4Addr, port: u16| SocketAddrV4::new(address, port);
        // The same ports of two pods: one flow has to leave with another port than its own.
        let twin = |pod: usize| at(site.pods[pod].addr, 40_000);
        let tcp = vec![
            (
                "pod to the internet",
                Tcp::connect_from(first, twin(0), at(INTERNET, PORT))?,
            ),
            (
                "another pod from the same port",
                Tcp::connect_from(second, twin(1), at(INTERNET, PORT))?,
            ),
            ("pod to the VNet", Tcp::connect(first, at(VNET, PORT))?),
            ("pod to pod", Tcp::connect(first, at(server, PORT))?),
            (
                "service with a pod behind it",
                Tcp::connect(first, SERVICE_INSIDE)?,
            ),
            (
                "service with a host outside behind it",
                Tcp::connect(second, SERVICE_OUTSIDE)?,
            ),
            (
                "hostPort from the VNet",
                Tcp::connect(&site.fabric.vnet, at(NODE, HOST_PORT))?,
            ),
            (
                "NodePort from the VNet",
                Tcp::connect(&site.fabric.vnet, at(NODE, NODE_PORT))?,
            ),
            (
                "partner to a pod",
                Tcp::connect(&site.fabric.partner, at(server, PORT))?,
            ),
            (
                "node to the internet",
                Tcp::connect(&site.node.ns, at(INTERNET, PORT))?,
            ),
            ("node to a pod", Tcp::connect(&site.node.ns, at(server, PORT))?),
        ];
        let udp = vec![
            (
                "pod to the internet",
                Udp::connect_from(first, twin(0), at(INTERNET, PORT))?,
            ),
            (
                "another pod from the same port",
                Udp::connect_from(second, twin(1), at(INTERNET, PORT))?,
            ),
            ("pod to the VNet", Udp::connect(first, at(VNET, PORT))?),
            (
                "service with a host outside behind it",
                Udp::connect(second, SERVICE_OUTSIDE)?,
            ),
            (
                "partner to a pod",
                Udp::connect(&site.fabric.partner, at(server, PORT))?,
            ),
        ];
        let pinger = |ns: &Netns, to| Ok::<_, anyhow::Error>((Pinger::new(ns, 77)?, to));
        let bulk = Tcp::connect(second, at(INTERNET, PORT))?;
        bulk.set_patience(PAUSE)?;
        let mut traffic = Self {
            internet,
            _others: others,
            tcp,
            udp,
            pingers: vec![
                pinger(first, INTERNET)?,
                pinger(second, INTERNET)?,
                pinger(first, server)?,
            ],
            bulk: bulk.0,
        };
        for (name, tcp) in &mut traffic.tcp {
            tcp.chat(3).with_context(|| format!("TCP, {name}"))?;
            tcp.set_patience(PAUSE)?;
        }
        for (name, udp) in &traffic.udp {
            udp.chat(3).with_context(|| format!("UDP, {name}"))?;
            udp.0.set_read_timeout(Some(ANSWERS_WITHIN))?;
        }
        for (pinger, to) in &traffic.pingers {
            pinger.chat(*to, 2)?;
        }
        Ok(traffic)
    }

    /// Keeps everything talking while `what` is done, and a little longer. No connection may break, no byte be changed, and
    /// nobody may be seen under another address or port than before. Returns what was lost of UDP.
    pub(crate) fn during<T>(&mut self, site: &Site, what: impl FnOnce() -> Result<T>) -> Result<(T, Lost)> {
        let before = self.talkers()?;
        let stop = AtomicBool::new(false);
        let (asked, lost) = (AtomicU32::new(0), AtomicU32::new(0));
        let (tcp, udp, bulk, new_ones) = (&mut self.tcp, &self.udp, &self.bulk, &site.pods[0].ns);
        let result = thread::scope(|scope| {
            let goes_on = || !stop.load(Ordering::Relaxed);
            let mut jobs = Vec::new();
            for (name, tcp) in tcp.iter_mut() {
                jobs.push(scope.spawn(move || {
                    while goes_on() {
                        tcp.chat(5).with_context(|| format!("TCP, {name}"))?;
                        thread::sleep(Duration::from_millis(2));
                    }
                    Ok(())
                }));
            }
            for (_, udp) in udp {
                let (asked, lost) = (&asked, &lost);
                jobs.push(scope.spawn(move || {
                    while goes_on() {
                        asked.fetch_add(1, Ordering::Relaxed);
                        if let Err(error) = udp.ask(100) {
                            ensure!(is_silence(&error), "UDP: {error:#}");
                            lost.fetch_add(1, Ordering::Relaxed);
                        }
                        thread::sleep(Duration::from_millis(2));
                    }
                    Ok(())
                }));
            }
            jobs.push(scope.spawn(move || stream(bulk, goes_on)));
            // What begins meanwhile is translated by the one or the other, and not twice or never.
            jobs.push(scope.spawn(move || {
                while goes_on() {
                    let to = SocketAddrV4::new(INTERNET, PORT);
                    let mut tcp = Tcp::connect_within(new_ones, to, PAUSE).context("a new connection")?;
                    tcp.set_patience(PAUSE)?;
                    tcp.chat(1).context("a new connection")?;
                    if let Err(error) = Udp::connect(new_ones, to)?.ask(50) {
                        ensure!(is_silence(&error), "a new datagram flow: {error:#}");
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }));
            let done = what();
            thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
            for job in jobs {
                job.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            done
        })?;
        ensure!(
            self.talkers()? == before,
            "somebody is seen under another address: {:?}, not {before:?}",
            self.talkers()?
        );
        let lost = Lost {
            asked: asked.into_inner(),
            lost: lost.into_inner(),
        };
        Ok((result, lost))
    }

    /// Everything works, without a loss.
    pub(crate) fn assert_works(&mut self) -> Result<()> {
        for (name, tcp) in &mut self.tcp {
            tcp.chat(10).with_context(|| format!("TCP, {name}"))?;
        }
        for (name, udp) in &self.udp {
            udp.chat(10).with_context(|| format!("UDP, {name}"))?;
        }
        self.pingers
            .iter()
            .try_for_each(|(pinger, to)| pinger.chat(*to, 3))
    }

    /// Whom the internet's host has seen from which ports, since it was asked last: of TCP only new connections.
    fn talkers(&self) -> Result<Vec<SocketAddrV4>> {
        self.internet.seen();
        for (name, udp) in &self.udp {
            udp.ask(10).with_context(|| format!("UDP, {name}"))?;
        }
        let mut seen = self.internet.seen();
        seen.sort_unstable();
        Ok(seen)
    }
}

/// How long a connection may be silent: TCP waits twice as long for each packet that is lost again, and a busy machine makes
/// each step long.
const PAUSE: Duration = Duration::from_secs(10);

/// How long a datagram's answer is waited for: it comes in a fraction of this, or not at all.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

fn is_silence(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(
        kind,
        Some(std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    )
}

/// Sends without a pause, and checks what the server sends back.
fn stream(socket: &TcpStream, goes_on: impl Fn() -> bool + Send + Sync) -> Result<()> {
    const BLOCK: usize = 16_411;
    let block: Vec<u8> = (0..BLOCK).map(|at| (at * 31 % 251) as u8).collect();
    let sent = AtomicU32::new(0);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            let result = (|| {
                while goes_on() {
                    (&mut &*socket).write_all(&block).context("the stream breaks")?;
                    sent.fetch_add(1, Ordering::Release);
                }
                Ok(())
            })();
            is_over.store(true, Ordering::Release);
            result
        });
        let (mut answer, mut received, mut idle_since) = (vec![0; BLOCK], 0, Instant::now());
        loop {
            let over = is_over.load(Ordering::Acquire);
            if received < sent.load(Ordering::Acquire) {
                (&mut &*socket)
                    .read_exact(&mut answer)
                    .context("the stream's answers break")?;
                ensure!(answer == block, "block {received} came back changed");
                received += 1;
                idle_since = Instant::now();
            } else if over {
                break;
            } else {
                ensure!(idle_since.elapsed() < PAUSE, "the stream stands still");
                thread::sleep(Duration::from_micros(200));
            }
        }
        sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
