//! The IPv4 UDP or TCP packet that the counters and the model look at. No options, no fragments.

/// Offsets from the start of a frame.
pub const IP_CHECK: usize = 24;
pub const SRC: usize = 26;
pub const DST: usize = 30;
pub const SRC_PORT: usize = 34;
pub const TCP_CHECK: usize = 50;
pub const UDP_CHECK: usize = 40;
/// End of what is looked at.
pub const END: usize = 42;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// The first [`END`] bytes of a frame that is IPv4 without options and carries TCP or UDP.
#[derive(Clone, Copy)]
pub struct Headers {
    start: usize,
}

impl Headers {
    #[inline(always)]
    pub fn parse(start: usize, end: usize) -> Option<Self> {
        if start + END > end {
            return None;
        }
        let headers = Self { start };
        let is_plain = headers.half(12) == 0x0800u16.to_be() && headers.byte(14) == 0x45;
        let is_whole = headers.half(20) & 0x3fffu16.to_be() == 0;
        let has_ports = matches!(headers.protocol(), TCP | UDP);
        (is_plain && is_whole && has_ports).then_some(headers)
    }

    #[inline(always)]
    pub fn protocol(self) -> u8 {
        self.byte(23)
    }

    /// As on the wire.
    #[inline(always)]
    pub fn src(self) -> u32 {
        self.word(SRC)
    }

    /// As on the wire.
    #[inline(always)]
    pub fn dst(self) -> u32 {
        self.word(DST)
    }

    /// Source port in the low half, destination port in the high half, as on the wire.
    #[inline(always)]
    pub fn ports(self) -> u32 {
        self.word(SRC_PORT)
    }

    /// Whether the checksums of the IPv4 header and of a UDP packet whose payload is zeros are right.
    #[inline(always)]
    pub fn sums_are_right(self) -> bool {
        let sum = |from: usize, to: usize| {
            let mut sum = 0;
            let mut at = from;
            while at < to {
                sum += u32::from(self.half(at));
                at += 2;
            }
            sum
        };
        let pseudo = sum(SRC, SRC_PORT) + u32::from(u16::from(UDP).to_be()) + u32::from(self.half(38));
        folds_to_ones(sum(14, 34)) && folds_to_ones(pseudo + sum(SRC_PORT, END))
    }

    #[inline(always)]
    fn byte(self, offset: usize) -> u8 {
        // SAFETY: `parse` has checked `END` bytes, and no caller's offset is beyond.
        unsafe { *((self.start + offset) as *const u8) }
    }

    #[inline(always)]
    fn half(self, offset: usize) -> u16 {
        // SAFETY: as above; offsets are even and so is a frame's start.
        unsafe { *((self.start + offset) as *const u16) }
    }

    #[inline(always)]
    fn word(self, offset: usize) -> u32 {
        u32::from(self.half(offset)) | u32::from(self.half(offset + 2)) << 16
    }
}

#[inline(always)]
fn folds_to_ones(sum: u32) -> bool {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16) == 0xffff
}
