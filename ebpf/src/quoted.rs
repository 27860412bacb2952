//! Translates ICMP errors: their own header, and the packet that they quote (RFC 5508 section 4).

use core::ptr::from_ref;

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::generated::{bpf_l4_csum_replace, bpf_skb_store_bytes},
    programs::TcContext,
};
use causeway_common::{
    addr::Address as _,
    checksum,
    flow::Nat,
    tuple::{TCP, UDP},
};

use crate::{
    family::{IP_DST, IP_SRC, QUOTED_CHECK, sums},
    given::given,
    icmp::{Quoted, load},
    maps::Addr,
    packet::{ETH_LEN, Ip},
    rewrite::{Failed, Translation, done},
    translate::translate_addr,
};

/// Translates an error as its flow is, inside and outside.
#[inline(always)]
pub fn translate_error(ctx: &TcContext, ip: &Ip, quoted: &Quoted, to: &Translation) -> Result<(), Failed> {
    let outer = translate_quoted(ctx, ip, quoted, to)?;
    if outer.nat == Nat::NONE {
        return Ok(());
    }
    translate_addr(ctx, ip, &outer)
}

/// Changes the end of the quoted packet that is the same host as the error's changed end: the destination it was
/// sent to if the error's source is translated, and the other way round. Returns what is to be done to the error's own header.
#[inline(always)]
pub fn translate_quoted(
    ctx: &TcContext,
    ip: &Ip,
    quoted: &Quoted,
    to: &Translation,
) -> Result<Translation, Failed> {
    let skb = ctx.as_ptr().cast();
    if cwy_translate_quoted(skb, ip.l4() as u32, from_ref(quoted), from_ref(to)) != 0 {
        return Err(Failed);
    }
    let nat = if to.nat != Nat::NONE && changes_outside(ip, quoted, to) {
        let old = if Nat::end(to.nat) == Nat::SOURCE {
            &ip.src
        } else {
            &ip.dst
        };
        sums::replace_in_error(ctx, ip.l4(), old, &to.addr)?;
        to.nat
    } else {
        Nat::NONE
    };
    Ok(Translation::new(nat, to.addr, to.port))
}

/// Whether the error's own address is that of the changed end. An error that the node sends about a pod's packet has the
/// node's address already; of what a router says about a packet to a backend, the virtual address is not the source.
#[inline(always)]
fn changes_outside(ip: &Ip, quoted: &Quoted, to: &Translation) -> bool {
    match to.nat {
        Nat::SOURCE => ip.src != to.addr,
        Nat::FROM_BACKEND => ip.src == quoted.key.dst,
        _ => true,
    }
}

/// Returns 0 if the quoted packet has been translated; `l4` is the offset of the error. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_translate_quoted(
    skb: *mut __sk_buff,
    l4: u32,
    quoted: *const Quoted,
    to: *const Translation,
) -> u32 {
    // SAFETY: the caller's references.
    let (Some(quoted), Some(to)) = (unsafe { given(quoted) }, unsafe { given(to) }) else {
        return 1;
    };
    let edit = Edit {
        ctx: &TcContext::new(skb),
        error_check: l4 as usize + 2,
    };
    u32::from(edit.translate(quoted, to).is_err())
}

/// Writes into the quoted packet and keeps the error's own checksum right with each write.
struct Edit<'a> {
    ctx: &'a TcContext,
    /// Offset of the error's checksum.
    error_check: usize,
}

impl Edit<'_> {
    #[inline(always)]
    fn translate(&self, quoted: &Quoted, to: &Translation) -> Result<(), Failed> {
        let key = &quoted.key;
        let (old_addr, old_port, addr_at, port_at) = match Nat::end(to.nat) {
            Nat::SOURCE => (
                &key.dst,
                key.dst_port,
                usize::from(quoted.l3) + IP_DST - ETH_LEN,
                usize::from(quoted.l4) + 2,
            ),
            Nat::DESTINATION => (
                &key.src,
                key.src_port,
                usize::from(quoted.l3) + IP_SRC - ETH_LEN,
                usize::from(quoted.l4),
            ),
            _ => return Ok(()),
        };
        self.store_addr(addr_at, old_addr, &to.addr)?;
        if let Some(at) = QUOTED_CHECK {
            let check = Addr::replace_in(quoted.check, old_addr, &to.addr);
            self.store(
                usize::from(quoted.l3) + at,
                quoted.check.to_ne_bytes(),
                check.to_ne_bytes(),
            )?;
        }
        let port_at = if key.protocol == Addr::ICMP {
            usize::from(quoted.l4) + 4
        } else {
            port_at
        };
        if old_port != to.port {
            self.store(port_at, old_port, to.port)?;
        }
        self.fix_transport(quoted, old_addr, &to.addr, old_port, to.port)
    }

    /// The quoted transport checksum, where enough of the packet is quoted to hold it. Like nf_nat, a TCP checksum
    /// is updated only with a whole header (`tcp_manip_pkt`, Linux 6.18).
    #[inline(always)]
    fn fix_transport(
        &self,
        quoted: &Quoted,
        old: &Addr,
        new: &Addr,
        old_port: [u8; 2],
        port: [u8; 2],
    ) -> Result<(), Failed> {
        let (at, has_pseudo_header) = match quoted.key.protocol {
            TCP if self.ctx.len() as usize >= usize::from(quoted.l4) + 20 => {
                (usize::from(quoted.l4) + 16, true)
            }
            UDP => (usize::from(quoted.l4) + 6, true),
            Addr::ICMP => (usize::from(quoted.l4) + 2, Addr::ICMP_COVERS_ADDRESSES),
            _ => return Ok(()),
        };
        let before: [u8; 2] = load(self.ctx, at).ok_or(Failed)?;
        let mut check = u16::from_ne_bytes(before);
        if quoted.key.protocol == UDP && check == 0 {
            return Ok(());
        }
        if has_pseudo_header {
            check = Addr::replace_in(check, old, new);
        }
        check = checksum::replace_u16(check, u16::from_ne_bytes(old_port), u16::from_ne_bytes(port));
        if quoted.key.protocol == UDP && check == 0 {
            check = 0xffff;
        }
        self.store(at, before, check.to_ne_bytes())
    }

    #[inline(always)]
    fn store(&self, at: usize, old: [u8; 2], new: [u8; 2]) -> Result<(), Failed> {
        let (from, to) = (u16::from_ne_bytes(old).into(), u16::from_ne_bytes(new).into());
        // SAFETY: two bytes of our stack; the helper checks the offset against the packet.
        done(unsafe { bpf_skb_store_bytes(self.ctx.as_ptr().cast(), at as u32, new.as_ptr().cast(), 2, 0) })?;
        self.fix_error_check(from, to, 2)
    }

    #[inline(always)]
    fn store_addr(&self, at: usize, old: &Addr, new: &Addr) -> Result<(), Failed> {
        let (buffer, len) = (self.ctx.as_ptr().cast(), size_of::<Addr>() as u32);
        // SAFETY: as in `store`, with an address.
        done(unsafe { bpf_skb_store_bytes(buffer, at as u32, new.as_ptr().cast(), len, 0) })?;
        sums::replace_in_payload(self.ctx, self.error_check, old, new)
    }

    /// What is quoted is payload, not the pseudo header.
    #[inline(always)]
    fn fix_error_check(&self, from: u64, to: u64, size: u64) -> Result<(), Failed> {
        let at = self.error_check as u32;
        // SAFETY: integers only; the helper checks the offset against the packet.
        done(unsafe { bpf_l4_csum_replace(self.ctx.as_ptr().cast(), at, from, to, size) })
    }
}
