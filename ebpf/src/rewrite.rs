//! Changes packets: hop count and MACs here, addresses and ports in [`nat`].

use core::{mem::offset_of, ptr::from_ref};

use aya_ebpf::programs::TcContext;

use crate::{
    family,
    headers::Headers,
    maps::{Addr, Entry, Key},
    nat,
    packet::{ETH_LEN, IP_END, Ip},
};

/// A rewrite that the kernel refused; the packet may be half changed and must be dropped.
pub struct Failed;

/// What a helper that returns 0 says of its success.
#[inline(always)]
pub fn done(result: i64) -> Result<(), Failed> {
    if result == 0 { Ok(()) } else { Err(Failed) }
}

/// The end of the tuple that is replaced, and by what.
/// Aligned to words and without padding, as [`Key`].
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub struct Translation {
    pub addr: Addr,
    pub port: [u8; 2],
    /// One of [`Nat`](causeway_common::flow::Nat); its `NONE` changes nothing.
    pub nat: u8,
    _pad: u8,
}

impl Translation {
    /// `nat`: one of [`Nat`](causeway_common::flow::Nat).
    #[inline(always)]
    pub fn new(nat: u8, addr: Addr, port: [u8; 2]) -> Self {
        Self {
            addr,
            port,
            nat,
            _pad: 0,
        }
    }
}

/// Destination and source MAC as they follow each other in a frame, in words as they are aligned there: an IP header is
/// on a word boundary wherever the machine needs it, 14 bytes behind them.
#[derive(Clone, Copy)]
pub struct Macs {
    pub(crate) first: u16,
    pub(crate) middle: [u32; 2],
    pub(crate) last: u16,
}

impl Macs {
    /// Those of the next hop of a flow.
    #[inline(always)]
    pub fn of(entry: &Entry) -> Self {
        const AT: usize = offset_of!(Entry, out_dst_mac);
        const { assert!(AT % 4 == 2 && offset_of!(Entry, out_src_mac) == AT + 6) };
        let at = from_ref(entry).cast::<u8>();
        // SAFETY: the twelve bytes are the entry's, and aligned as asserted.
        unsafe {
            Self {
                first: *at.add(AT).cast(),
                middle: [*at.add(AT + 2).cast(), *at.add(AT + 6).cast()],
                last: *at.add(AT + 10).cast(),
            }
        }
    }

    /// # Safety
    ///
    /// `frame` points to the first twelve bytes of the packet.
    #[inline(always)]
    pub unsafe fn store(self, frame: *mut u8) {
        let [second, third] = self.middle;
        // SAFETY: the caller's.
        unsafe {
            *frame.cast() = self.first;
            *frame.add(2).cast() = second;
            *frame.add(6).cast() = third;
            *frame.add(10).cast() = self.last;
        }
    }
}

/// Translates, decrements the hop count and addresses the frame to the next hop.
#[inline(always)]
pub fn forward(ctx: &TcContext, ip: &Ip, key: &Key, to: &Translation, macs: Macs) -> Result<(), Failed> {
    nat::translate_transport(ctx, ip, key, to)?;
    forward_addr(ctx, ip, to, macs)
}

/// Replaces the address alone, decrements the hop count and addresses the frame to the next hop.
#[inline(always)]
pub fn forward_addr(ctx: &impl Headers, ip: &Ip, to: &Translation, macs: Macs) -> Result<(), Failed> {
    let header = header(ctx)?;
    // SAFETY: `header` points to the first `IP_END` bytes of the packet.
    unsafe {
        nat::replace_addr(header, ip, to);
        family::count_hop(ctx, header, ip);
        macs.store(header);
    }
    Ok(())
}

/// Decrements the hop count and addresses the frame to the next hop.
#[inline(always)]
pub fn step(ctx: &TcContext, ip: &Ip, macs: Macs) -> Result<(), Failed> {
    let header = header(ctx)?;
    // SAFETY: `header` points to the first `IP_END` bytes of the packet.
    unsafe {
        family::count_hop(ctx, header, ip);
        macs.store(header);
    }
    Ok(())
}

/// The frame's first [`IP_END`] bytes. Pointers from before a helper call are dead: the helper may move the buffer.
#[inline(always)]
pub fn header(ctx: &impl Headers) -> Result<*mut u8, Failed> {
    const { assert!(IP_END > ETH_LEN) };
    let start = ctx.start();
    if start + IP_END > ctx.end() {
        return Err(Failed);
    }
    Ok(start as *mut u8)
}
