//! What headers are read from: a packet, or in front of the stack a frame that is none yet.

use aya_ebpf::programs::{TcContext, XdpContext};

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
}
