//! What the programs and the bench tell each other. Compiled into both.

/// Where things stand in a frame: Ethernet, the IP header without options or extensions, UDP. Offsets in bytes, all even but
/// for single bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// What Ethernet says of it.
    pub(crate) ethertype: u16,
    /// The IP header's first byte.
    pub(crate) version: u8,
    /// Where the IP header tells a length.
    pub(crate) len: usize,
    /// Where that length begins to count.
    pub(crate) counted_from: usize,
    /// Where IPv4 tells parts of packets.
    pub(crate) parts: Option<usize>,
    /// The time to live, or hop limit.
    #[allow(
        dead_code,
        reason = "written by the bench, into the header that the generator copies"
    )]
    pub(crate) hops: usize,
    /// The protocol.
    pub(crate) protocol: usize,
    /// Where IPv4 has a checksum of its header.
    pub(crate) check: Option<usize>,
    /// The source address.
    pub(crate) src: usize,
    /// The destination address.
    pub(crate) dst: usize,
    /// The UDP header.
    pub(crate) udp: usize,
}

/// IPv4.
pub(crate) const V4: Layout = Layout {
    ethertype: 0x0800,
    version: 0x45,
    len: 16,
    counted_from: 14,
    parts: Some(20),
    hops: 22,
    protocol: 23,
    check: Some(24),
    src: 26,
    dst: 30,
    udp: 34,
};

/// IPv6.
pub(crate) const V6: Layout = Layout {
    ethertype: 0x86dd,
    version: 0x60,
    len: 18,
    counted_from: 54,
    parts: None,
    hops: 21,
    protocol: 20,
    check: None,
    src: 22,
    dst: 38,
    udp: 54,
};

impl Layout {
    /// Bytes of the headers that the generator writes. Two more than whole words: the last two are the UDP checksum, which is
    /// written apart.
    pub(crate) const fn headers(&self) -> usize {
        self.udp + 8
    }

    /// Bytes of an address.
    pub(crate) const fn addr(&self) -> usize {
        self.dst - self.src
    }
}

const _: () = assert!(V4.headers() % 4 == 2 && V6.headers() % 4 == 2);

/// Words of four bytes in the longest headers, without the UDP checksum.
pub(crate) const HEADER_WORDS: usize = V6.headers() / 4;

/// A stream of packets, in one direction, of one or many flows.
///
/// Flow number `i` has the port `port + (i mod 2^port_bits)` and an address whose last four bytes are `addr + (i >> port_bits)`.
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
    /// The last four bytes of the address of flow 0, host order.
    pub(crate) addr: u32,
    /// 0: the source port and the destination address vary, as in questions. 1: the destination port and the source
    /// address, as in answers.
    pub(crate) answers: u32,
    /// Sum of the constant 16-bit words of the IPv4 header, network order, not folded; the length is not among them. IPv6 has
    /// no such checksum.
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

/// An address or a mask, as on the wire; IPv4 has the first word alone.
pub(crate) type Words = [u32; 4];

/// Which packets a counter counts, and then drops; every other goes on. UDP.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect {
    /// Source address.
    pub(crate) src: Words,
    /// Bits of the source address that matter.
    pub(crate) src_mask: Words,
    /// Destination address.
    pub(crate) dst: Words,
    /// Bits of the destination address that matter.
    pub(crate) dst_mask: Words,
    /// 0: IPv4; 1: IPv6.
    pub(crate) is_ipv6: u32,
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
