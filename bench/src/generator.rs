//! Live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`): packets made by a kernel program and sent out of an interface, for less
//! than a tenth of what a socket costs.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions};
use causeway_tests::netns::Netns;

use crate::{
    cpu,
    programs::{
        Programs,
        layout::{Course, HEADER_WORDS, HEADERS, LARGEST},
    },
};

/// Length of the smallest frame in bytes, without the checksum at its end.
pub(crate) const SMALLEST: u32 = 60;

/// Packets of many flows from one end to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// Source MAC.
    pub(crate) src_mac: [u8; 6],
    /// Destination MAC: the first hop.
    pub(crate) dst_mac: [u8; 6],
    /// Source address; the first of them where answers come from many.
    pub(crate) src: Ipv4Addr,
    /// Destination address; the first of them where questions go to many.
    pub(crate) dst: Ipv4Addr,
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
    frame_len: usize,
    course: Course,
}

impl Generator {
    /// A generator that sends out of an interface of `ns`. The interface's peer must have NAPI on, or the kernel drops
    /// every frame.
    pub(crate) fn new(ns: &Netns, interface: &str, stream: &Stream) -> Result<Self> {
        let course = stream.course(ns.ifindex(interface)?);
        let mut programs = Programs::load()?;
        programs.xdp("cwb_generate")?;
        let mut generator = Self {
            programs,
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
        let frame = vec![0; self.frame_len];
        let program = &*self.programs.xdp("cwb_generate")?;
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
            Ok(result.duration)
        };
        ns.run(|| cpu::alone_on(cpu, run))?.map(|each| each * packets)
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
        let mut header = self.header();
        let [src, dst] = [self.src.octets(), self.dst.octets()];
        let mut constant = header;
        let (port, addr) = if self.answers {
            constant[26..30].fill(0);
            constant[36..38].fill(0);
            (self.ports.1, self.src)
        } else {
            constant[30..34].fill(0);
            constant[34..36].fill(0);
            (self.ports.0, self.dst)
        };
        header[26..30].copy_from_slice(&src);
        header[30..34].copy_from_slice(&dst);
        let pseudo = sum(&constant[26..34]) + u32::from(17u16.to_be());
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
            addr: addr.to_bits(),
            answers: self.answers.into(),
            ip_sum: sum(&constant[14..34]),
            udp_sum: pseudo + sum(&constant[34..42]),
            frame_len: match self.frames {
                Frames::Of(len) => len,
                Frames::Mix => 0,
            },
        }
    }

    /// The headers of the first flow, without lengths and checksums.
    fn header(&self) -> [u8; HEADERS] {
        let mut header = [0; HEADERS];
        header[..6].copy_from_slice(&self.dst_mac);
        header[6..12].copy_from_slice(&self.src_mac);
        header[12..14].copy_from_slice(&[0x08, 0x00]);
        header[14] = 0x45;
        header[20] = 0x40;
        header[22] = 64;
        header[23] = 17;
        header[26..30].copy_from_slice(&self.src.octets());
        header[30..34].copy_from_slice(&self.dst.octets());
        header[34..36].copy_from_slice(&self.ports.0.to_be_bytes());
        header[36..38].copy_from_slice(&self.ports.1.to_be_bytes());
        header
    }
}

/// The sum of the 16-bit words as they are in memory, not folded (RFC 1071 section 2 (B): byte order does not matter).
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]])))
        .sum()
}
