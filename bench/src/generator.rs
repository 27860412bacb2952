//! Live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`): packets made by a kernel program and sent out of an interface, for less
//! than a tenth of what a socket costs.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions};
use causeway_tests::netns::Netns;

use crate::{
    cpu,
    family::{Family, octets},
    programs::{
        Programs,
        layout::{Course, HEADER_WORDS, LARGEST, Layout},
    },
};

/// Length of the smallest frame in bytes, without the checksum at its end.
pub(crate) const SMALLEST: u32 = 60;
/// Length of a frame of IPv6 with the payload of the smallest of IPv4, without the checksum at its end.
pub(crate) const SMALLEST_OF_BOTH: u32 = 80;

/// Packets of many flows from one end to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// Source MAC.
    pub(crate) src_mac: [u8; 6],
    /// Destination MAC: the first hop.
    pub(crate) dst_mac: [u8; 6],
    /// Source address; the first of them where answers come from many.
    pub(crate) src: IpAddr,
    /// Destination address, of the same family; the first of them where questions go to many.
    pub(crate) dst: IpAddr,
    /// Source and destination port of the first flow.
    pub(crate) ports: (u16, u16),
    /// The destination's port and the source's address vary, not the source's port and the destination's address.
    pub(crate) answers: bool,
    /// How many low bits of a flow's number are its port; the rest are its address.
    pub(crate) port_bits: u32,
    /// Which flows.
    pub(crate) flows: Flows,
    /// Length of a frame in bytes, or the mix.
    pub(crate) frames: Frames,
}

/// Which flow a packet belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flows {
    /// Any of `count` (a power of two) from `first` on, at random.
    Random { first: u32, count: u32 },
    /// One after the other, from this one on.
    From(u32),
}

/// How long the frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frames {
    /// This many bytes, without the checksum at the end.
    Of(u32),
    /// The simple Internet mix, RFC 6985.
    Mix,
}

/// A loaded generator.
#[derive(Debug)]
pub(crate) struct Generator {
    programs: Programs,
    program: &'static str,
    frame_len: usize,
    course: Course,
}

impl Generator {
    /// A generator that sends out of an interface of `ns`. The interface's peer must have NAPI on, or the kernel drops
    /// every frame.
    pub(crate) fn new(ns: &Netns, interface: &str, stream: &Stream) -> Result<Self> {
        let course = stream.course(ns.ifindex(interface)?);
        let program = match Family::of(stream.src) {
            Family::V4 => "cwb_generate",
            Family::V6 => "cwb_generate6",
        };
        let mut programs = Programs::load()?;
        programs.xdp(program)?;
        let mut generator = Self {
            programs,
            program,
            frame_len: match stream.frames {
                Frames::Of(len) => len,
                Frames::Mix => LARGEST,
            } as usize,
            course,
        };
        generator.choose(stream.flows)?;
        Ok(generator)
    }

    /// Changes which flows are sent.
    pub(crate) fn choose(&mut self, flows: Flows) -> Result<()> {
        (self.course.first, self.course.mask) = flows.first_and_mask();
        self.programs.set("cwb_course", self.course)?;
        self.programs.set("cwb_next", 0u32)
    }

    /// Sends `packets` on a CPU by its number, and returns how long the sending took, without the kernel's set-up of a
    /// run. Everything the packets set off on this CPU is in that time.
    pub(crate) fn send(&mut self, ns: &Netns, cpu: usize, packets: u32) -> Result<Duration> {
        self.send_while(ns, cpu, packets, |runs| runs < 1)
            .map(|(_, took)| took)
    }

    /// As [`Self::send`], again and again on one thread, with hardly a pause, as long as `goes_on` says so of the number of runs.
    /// Returns that number too.
    pub(crate) fn send_while(
        &mut self,
        ns: &Netns,
        cpu: usize,
        packets: u32,
        goes_on: impl Fn(u32) -> bool + Sync,
    ) -> Result<(u32, Duration)> {
        let frame = vec![0; self.frame_len];
        let program = &*self.programs.xdp(self.program)?;
        let run = || {
            let options = TestRunOptions {
                data_in: Some(&frame),
                repeat: packets,
                attrs: TestRunAttrs::new().xdp_live_frames(64),
                ..TestRunOptions::new()
            };
            let result = program
                .test_run(options)
                .context("BPF_PROG_TEST_RUN with live frames")?;
            anyhow::Ok(result.duration * packets)
        };
        let all = || {
            let (mut runs, mut took) = (0, Duration::ZERO);
            while goes_on(runs) {
                took += run()?;
                runs += 1;
            }
            Ok((runs, took))
        };
        ns.run(|| cpu::alone_on(cpu, all))?
    }
}

impl Flows {
    fn first_and_mask(self) -> (u32, u32) {
        match self {
            Self::Random { first, count } => (first, count - 1),
            Self::From(first) => (first, u32::MAX),
        }
    }
}

impl Stream {
    /// As the programs want it.
    pub(crate) fn course(&self, ifindex: u32) -> Course {
        let layout = Family::of(self.src).layout();
        let header = self.header(layout);
        let (addr_end, port_at, port, addr) = if self.answers {
            (layout.dst, layout.udp + 2, self.ports.1, self.src)
        } else {
            (layout.dst + layout.addr(), layout.udp, self.ports.0, self.dst)
        };
        let mut constant = header.clone();
        constant[addr_end - 4..addr_end].fill(0);
        constant[port_at..port_at + 2].fill(0);
        let pseudo = sum(&constant[layout.src..layout.udp]) + u32::from(17u16.to_be());
        let mut words = [0; HEADER_WORDS];
        for (word, bytes) in words.iter_mut().zip(header.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let (first, mask) = self.flows.first_and_mask();
        Course {
            header: words,
            ifindex,
            first,
            mask,
            port_bits: self.port_bits,
            port: port.into(),
            addr: last_word(addr),
            answers: self.answers.into(),
            ip_sum: sum(&constant[14..layout.udp]),
            udp_sum: pseudo + sum(&constant[layout.udp..]),
            frame_len: match self.frames {
                Frames::Of(len) => len,
                Frames::Mix => 0,
            },
        }
    }

    /// The headers of the first flow, without lengths and checksums.
    fn header(&self, layout: &Layout) -> Vec<u8> {
        let mut header = vec![0; layout.headers()];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.dst_mac);
        put(6, &self.src_mac);
        put(12, &layout.ethertype.to_be_bytes());
        put(14, &[layout.version]);
        if let Some(parts) = layout.parts {
            put(parts, &[0x40]);
        }
        put(layout.hops, &[64]);
        put(layout.protocol, &[17]);
        put(layout.src, &octets(self.src));
        put(layout.dst, &octets(self.dst));
        put(layout.udp, &self.ports.0.to_be_bytes());
        put(layout.udp + 2, &self.ports.1.to_be_bytes());
        header
    }
}

/// The last four bytes of an address, host order.
fn last_word(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits(),
        IpAddr::V6(addr) => addr.to_bits() as u32,
    }
}

/// The sum of the 16-bit words as they are in memory, not folded (RFC 1071 section 2 (B): byte order does not matter).
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]])))
        .sum()
}
