//! The UDP or TCP packet that the counters and the model look at. No options, no extensions, no fragments.

use crate::layout::{Layout, V4, Words};

/// Offsets from the start of a frame of IPv4, for the model.
pub const IP_CHECK: usize = 24;
pub const SRC: usize = V4.src;
pub const DST: usize = V4.dst;
pub const TCP_CHECK: usize = 50;
pub const UDP_CHECK: usize = 40;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// The headers of a frame of one family that carries TCP or UDP.
#[derive(Clone, Copy)]
pub struct Headers {
    start: usize,
    layout: Layout,
}

impl Headers {
    #[inline(always)]
    pub fn parse(start: usize, end: usize, layout: Layout) -> Option<Self> {
        if start + layout.headers() > end {
            return None;
        }
        let headers = Self { start, layout };
        let is_plain = headers.half(12) == layout.ethertype.to_be() && headers.byte(14) == layout.version;
        let is_whole = match layout.parts {
            Some(parts) => headers.half(parts) & 0x3fffu16.to_be() == 0,
            None => true,
        };
        let has_ports = matches!(headers.protocol(), TCP | UDP);
        (is_plain && is_whole && has_ports).then_some(headers)
    }

    #[inline(always)]
    pub fn protocol(self) -> u8 {
        self.byte(self.layout.protocol)
    }

    /// Of IPv4, as on the wire.
    #[inline(always)]
    pub fn src(self) -> u32 {
        self.word(self.layout.src)
    }

    /// Of IPv4, as on the wire.
    #[inline(always)]
    pub fn dst(self) -> u32 {
        self.word(self.layout.dst)
    }

    /// Source port in the low half, destination port in the high half, as on the wire.
    #[inline(always)]
    pub fn ports(self) -> u32 {
        self.word(self.layout.udp)
    }

    /// Whether the address at `offset` is another one in no bit of the mask.
    #[inline(always)]
    pub fn is_at(self, offset: usize, addr: &Words, mask: &Words) -> bool {
        let mut differs = 0;
        let mut word = 0;
        while word < self.layout.addr() / 4 {
            differs |= (self.word(offset + 4 * word) ^ addr[word]) & mask[word];
            word += 1;
        }
        differs == 0
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
        let Layout { src, udp, .. } = self.layout;
        let pseudo = sum(src, udp) + u32::from(u16::from(UDP).to_be()) + u32::from(self.half(udp + 4));
        let ip_is_right = self.layout.check.is_none() || folds_to_ones(sum(14, udp));
        ip_is_right && folds_to_ones(pseudo + sum(udp, self.layout.headers()))
    }

    #[inline(always)]
    fn byte(self, offset: usize) -> u8 {
        // SAFETY: `parse` has checked the headers' bytes, and no caller's offset is beyond.
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
