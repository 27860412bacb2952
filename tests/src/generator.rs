//! A packet generator inside the kernel: XDP live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`) sent out of a pod's interface.
//!
//! A socket costs the sender more than the datapath costs the packet, so a comparison made with sockets compares the
//! sockets. Here a program of some thirty instructions writes the *whole* header of every frame (the pages come back with the
//! changes of the last pass in them) with a random source port, and the frame enters the host's end of the veth pair.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;

use crate::{bpf, netns::Netns};

/// Source ports of the generated packets: this many, from [`FIRST_PORT`] on.
pub const FLOWS: u16 = 1024;
/// The lowest source port.
pub const FIRST_PORT: u16 = 20_000;

/// Commands of `bpf(2)`.
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;

/// Length of the shortest frame in bytes without the checksum at its end: Ethernet's minimum.
const LEAST: usize = 60;

/// What the packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UDP to the course's port, from one of [`FLOWS`] ports.
    Datagrams,
    /// TCP segments that open a connection, from any port to any port: hardly two of them are of one flow.
    Syns,
}

/// Where the packets go.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// Destination MAC: the pod's gateway.
    pub gateway_mac: [u8; 6],
    /// Source MAC: the pod's.
    pub pod_mac: [u8; 6],
    /// Source address: the pod's, of either family.
    pub pod: IpAddr,
    /// Destination address, of the same family.
    pub to: IpAddr,
    /// Destination port of datagrams.
    pub port: u16,
    /// What is sent.
    pub kind: Kind,
}

impl Course {
    /// Where the transport header begins, and in it the source port.
    fn l4(&self) -> u8 {
        if self.pod.is_ipv4() { 14 + 20 } else { 14 + 40 }
    }

    /// All headers of a frame.
    fn headers(&self) -> u8 {
        match self.kind {
            Kind::Datagrams => self.l4() + 8,
            Kind::Syns => self.l4() + 20,
        }
    }
}

/// A loaded generator for one interface.
#[derive(Debug)]
pub struct Generator {
    program: OwnedFd,
    frame: Vec<u8>,
}

impl Generator {
    /// Loads the program that sends out of `interface`. The peer of the interface must have NAPI on
    /// ([`offload::GRO`](crate::offload::GRO)), or the kernel drops every frame.
    pub fn new(ns: &Netns, interface: &str, course: &Course) -> Result<Self> {
        let frame = frame(course)?;
        let program = load(&program(&frame, course, ns.ifindex(interface)?))
            .context("cannot load the packet generator")?;
        Ok(Self { program, frame })
    }

    /// Sends `packets` on the calling thread's CPU and returns how long the sending took, without the kernel's set-up of a
    /// run, which takes many milliseconds. The thread must be in the interface's namespace.
    pub fn send(&self, packets: u32) -> Result<Duration> {
        const LIVE_FRAMES: u64 = 1 << 1;
        const BATCH: u64 = 64;
        let mut attr = [0u64; 16];
        attr[0] = u64::from(self.program.as_raw_fd().cast_unsigned());
        attr[1] = self.frame.len() as u64;
        attr[2] = self.frame.as_ptr() as u64;
        attr[4] = u64::from(packets);
        attr[8] = LIVE_FRAMES;
        attr[9] = BATCH;
        bpf(PROG_TEST_RUN, &mut attr).context("BPF_PROG_TEST_RUN with live frames")?;
        let nanoseconds_a_packet = attr[4] >> 32;
        Ok(Duration::from_nanos(nanoseconds_a_packet * u64::from(packets)))
    }
}

fn frame(course: &Course) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(course.pod_mac, course.gateway_mac);
    let builder = match (course.pod, course.to) {
        (IpAddr::V4(pod), IpAddr::V4(to)) => builder.ipv4(pod.octets(), to.octets(), 64),
        (IpAddr::V6(pod), IpAddr::V6(to)) => builder.ipv6(pod.octets(), to.octets(), 64),
        ends => bail!("of two families: {ends:?}"),
    };
    let (mut bytes, headers) = (Vec::new(), usize::from(course.headers()));
    let data = vec![0; LEAST.saturating_sub(headers)];
    match course.kind {
        Kind::Datagrams => {
            builder.udp(FIRST_PORT, course.port).write(&mut bytes, &data)?;
            // The source port changes from packet to packet; RFC 768: zero means that no checksum was computed.
            bytes[headers - 2..headers].fill(0);
        }
        Kind::Syns => {
            // The sequence number is the complement of the two ports, so that the checksum is right whatever they are.
            let ports = u32::from(FIRST_PORT) << 16 | u32::from(course.port);
            let builder = builder.tcp(FIRST_PORT, course.port, !ports, 64_240).syn();
            builder.write(&mut bytes, &data)?;
        }
    }
    Ok(bytes)
}

/// `struct bpf_insn` (linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Insn {
    code: u8,
    /// Destination register in the low half, source register in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn insn(code: u32, dst: u8, src: u8, offset: i16, immediate: i32) -> Insn {
    Insn {
        code: code as u8,
        registers: src << 4 | dst,
        offset,
        immediate,
    }
}

fn program(frame: &[u8], course: &Course, ifindex: u32) -> Vec<Insn> {
    use libc::{
        BPF_ADD, BPF_ALU, BPF_AND, BPF_H, BPF_JMP, BPF_K, BPF_LDX, BPF_MEM, BPF_ST, BPF_STX, BPF_W, BPF_X,
    };
    const ALU64: u32 = 0x07;
    const MOV: u32 = 0xb0;
    const TO_BIG_ENDIAN: u32 = 0xdc;
    const JUMP_IF_NOT_GREATER: u32 = 0xb0;
    const CALL: u32 = 0x80;
    const EXIT: u32 = 0x90;
    const PRANDOM: i32 = 7;
    const REDIRECT: i32 = 23;
    const XOR: u32 = 0xa0;
    const ABORTED: i32 = 0;
    let (headers, ports) = (course.headers(), i16::from(course.l4()));
    let words = headers / 4 * 4;
    // r7: the frame. Read and compared first, as the verifier asks.
    let mut program = vec![
        insn(BPF_LDX | BPF_MEM | BPF_W, 7, 1, 0, 0),
        insn(BPF_LDX | BPF_MEM | BPF_W, 3, 1, 4, 0),
        insn(ALU64 | MOV | BPF_X, 4, 7, 0, 0),
        insn(ALU64 | BPF_ADD | BPF_K, 4, 0, 0, i32::from(headers)),
        insn(BPF_JMP | JUMP_IF_NOT_GREATER | BPF_X, 4, 3, 2, 0),
        insn(ALU64 | MOV | BPF_K, 0, 0, 0, ABORTED),
        insn(BPF_JMP | EXIT, 0, 0, 0, 0),
    ];
    program.extend(
        frame[..usize::from(words)]
            .chunks_exact(4)
            .zip((0i16..).step_by(4))
            .map(|(word, at)| {
                let word = i32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
                insn(BPF_ST | BPF_MEM | BPF_W, 7, 0, at, word)
            }),
    );
    let rest = i32::from(u16::from_ne_bytes([
        frame[words as usize],
        frame[words as usize + 1],
    ]));
    program.extend([
        insn(BPF_ST | BPF_MEM | BPF_H, 7, 0, words.into(), rest),
        insn(BPF_JMP | CALL, 0, 0, 0, PRANDOM),
    ]);
    match course.kind {
        Kind::Datagrams => program.extend([
            insn(BPF_ALU | BPF_AND | BPF_K, 0, 0, 0, i32::from(FLOWS - 1)),
            insn(BPF_ALU | BPF_ADD | BPF_K, 0, 0, 0, i32::from(FIRST_PORT)),
            insn(TO_BIG_ENDIAN, 0, 0, 0, 16),
            insn(BPF_STX | BPF_MEM | BPF_H, 7, 0, ports, 0),
        ]),
        Kind::Syns => program.extend([
            insn(BPF_STX | BPF_MEM | BPF_W, 7, 0, ports, 0),
            insn(BPF_ALU | XOR | BPF_K, 0, 0, 0, -1),
            insn(BPF_STX | BPF_MEM | BPF_W, 7, 0, ports + 4, 0),
        ]),
    }
    program.extend([
        insn(ALU64 | MOV | BPF_K, 1, 0, 0, ifindex.cast_signed()),
        insn(ALU64 | MOV | BPF_K, 2, 0, 0, 0),
        insn(BPF_JMP | CALL, 0, 0, 0, REDIRECT),
        insn(BPF_JMP | EXIT, 0, 0, 0, 0),
    ]);
    program
}

fn load(program: &[Insn]) -> io::Result<OwnedFd> {
    const XDP: u64 = 6;
    let mut attr = [0u64; 16];
    attr[0] = XDP | (program.len() as u64) << 32;
    attr[1] = program.as_ptr() as u64;
    attr[2] = c"MIT".as_ptr() as u64;
    let fd = bpf(PROG_LOAD, &mut attr)?;
    // SAFETY: just opened by the kernel, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `union bpf_attr` as words of eight bytes, two fields of four in one word, the first in the low half.
fn bpf(command: libc::c_long, attr: &mut [u64; 16]) -> io::Result<i32> {
    // SAFETY: the pointers in `attr` are to live memory of the lengths in it.
    unsafe { bpf::bpf(command, attr) }
}
