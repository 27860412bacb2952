//! What the programs and the bench tell each other. Compiled into both.

/// Bytes of the headers that the generator writes: Ethernet, IPv4 without options, UDP.
pub(crate) const HEADERS: usize = 42;
/// [`HEADERS`] in whole words of four bytes; the last two bytes are the UDP checksum, which is written apart.
pub(crate) const HEADER_WORDS: usize = HEADERS / 4;

/// A stream of packets, in one direction, of one or many flows.
///
/// Flow number `i` has the port `port + (i mod 2^port_bits)` and the address `addr + (i >> port_bits)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    /// The frame up to the UDP checksum, as it is on the wire, with zeros where something varies and in the checksums.
    pub(crate) header: [u32; HEADER_WORDS],
    /// Interface to send by.
    pub(crate) ifindex: u32,
    /// Number of the first flow.
    pub(crate) first: u32,
    /// A random flow among `mask + 1` (a power of two) for each packet; with `u32::MAX` each packet is the next flow.
    pub(crate) mask: u32,
    /// How many low bits of the flow's number choose the port.
    pub(crate) port_bits: u32,
    /// Port of flow 0, host order.
    pub(crate) port: u32,
    /// Address of flow 0, host order.
    pub(crate) addr: u32,
    /// 0: the source port and the destination address vary, as in questions. 1: the destination port and the source
    /// address, as in answers.
    pub(crate) answers: u32,
    /// Sum of the constant 16-bit words of the IPv4 header, network order, not folded; the length is not among them.
    pub(crate) ip_sum: u32,
    /// The same for the UDP header with its pseudo header, without the lengths. The payload is zeros.
    pub(crate) udp_sum: u32,
    /// Length of a frame in bytes, without the checksum at its end; 0 for the mix of [`imix`].
    pub(crate) frame_len: u32,
}

/// Frame lengths of the simple Internet mix, 7 : 4 : 1, by a number below [`IMIX_PERIOD`]. RFC 6985 appendix A, less the
/// four bytes of the checksum at a frame's end.
pub(crate) const fn imix(number: u32) -> u32 {
    match number {
        0..7 => 60,
        7..11 => 590,
        _ => LARGEST,
    }
}

/// Length of the largest frame of the mix.
pub(crate) const LARGEST: u32 = 1514;

/// Packets in one round of the mix.
pub(crate) const IMIX_PERIOD: u32 = 12;

/// Which packets a counter counts, and then drops; every other goes on. IPv4 UDP.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect {
    /// Source address, as on the wire.
    pub(crate) src: u32,
    /// Bits of the source address that matter.
    pub(crate) src_mask: u32,
    /// Destination address, as on the wire.
    pub(crate) dst: u32,
    /// Bits of the destination address that matter.
    pub(crate) dst_mask: u32,
    /// 1: the checksums of every 64th packet are checked; its payload must be zeros.
    pub(crate) verify: u32,
}

/// What a counter found, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    /// Expected packets.
    pub(crate) packets: u64,
    /// Their bytes, Ethernet header included.
    pub(crate) bytes: u64,
    /// How many checked packets had a wrong checksum.
    pub(crate) bad: u64,
}

/// What stands before a program that is measured by itself: the packet it finds, flow after flow.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feed {
    /// The packets, made as the generator's.
    pub(crate) course: Course,
    /// 0: the measured program; 1: a program that does nothing.
    pub(crate) target: u32,
}
