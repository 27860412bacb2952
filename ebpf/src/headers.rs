//! What headers are read from: a packet, or in front of the stack a frame that is none yet.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::bpf_csum_update,
    programs::{TcContext, XdpContext},
};

use crate::packet::skb;

/// Bytes from the Ethernet header on.
pub trait Headers {
    /// Address of the first byte.
    fn start(&self) -> usize;
    /// Address behind the last byte that can be read.
    fn end(&self) -> usize;
    /// Length in bytes, with what cannot be read.
    fn length(&self) -> u32;
    /// Whether it is a GSO packet, which is cut into segments behind us.
    fn is_gso(&self) -> bool;
    /// A header's words have changed by `difference`, which no checksum covers: a sum of the whole packet, which a device may
    /// have made (`CHECKSUM_COMPLETE`), changes with them.
    #[allow(dead_code, reason = "the header of IPv4 has a checksum of its own")]
    fn has_changed(&self, difference: u32);
}

impl Headers for TcContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        skb(self).gso_size != 0
    }

    #[inline(always)]
    fn has_changed(&self, difference: u32) {
        // SAFETY: the helper takes integers only. It fails where there is no such sum.
        unsafe { bpf_csum_update(self.as_ptr().cast(), difference) };
    }
}

impl Headers for XdpContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        (self.data_end() - self.data()) as u32
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        false
    }

    #[inline(always)]
    fn has_changed(&self, _: u32) {}
}
