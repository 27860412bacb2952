//! `cwy_xdp_uplink`: XDP on the uplink, where it is asked for. What `cwy_from_uplink` would do to a frame of a carried flow,
//! if all that it had to do is to rewrite and redirect it ([`at_driver`]); everything else goes on to it untouched.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::bpf_redirect,
    programs::{TcContext, XdpContext},
};
use causeway_common::{
    checksum,
    flow::{Exit, Frame, Nat, Progress, at_driver},
    lifetime::is_within,
    reason::Reason,
    tuple::{TCP, UDP},
};

use crate::{
    count::{Hook, bump},
    maps::{Entry, Key, config, flow, nanoseconds, pod},
    packet::{self, ETH_LEN, IP_END, Ip},
    rewrite::{Macs, Translation, forward_addr},
    translate::translation,
};

/// Returns an XDP action. What is passed on has not been changed.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> u32 {
    carry(ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn carry(ctx: &XdpContext) -> Option<u32> {
    let ip = packet::ip(ctx)
        .ok()
        .filter(|ip| ip.is_sound() && ip.l4() == IP_END)?;
    let transport = packet::transport(ctx, &ip).ok()?;
    let key = packet::key(&ip, &transport);
    let entry = flow(&key)?;
    let frame = Frame {
        role: transport.role(&ip),
        protocol: ip.protocol,
        ifindex: ctx.ingress_ifindex() as u32,
        dst_mac: packet::dst_mac(ctx),
        ttl: ip.ttl,
        len: ip.total_len,
        seen: Progress::of_packet(ip.protocol, transport.flags),
        is_fresh: is_within(entry.last_seen, nanoseconds()),
    };
    if !at_driver(entry, &frame) {
        return None;
    }
    let (to, out_ifindex, macs) = (translation(entry), entry.out_ifindex, Macs::of(entry));
    translate_transport(ctx, &ip, &key, &to)?;
    if forward_addr(ctx, &ip, &to, macs).is_err() {
        bump(Hook::FromUplink, Reason::RewriteFailed);
        return Some(xdp_action::XDP_DROP);
    }
    bump(Hook::FromUplink, Reason::CarriedByXdp);
    // SAFETY: the helper takes integers only.
    Some(unsafe { bpf_redirect(out_ifindex, 0) } as u32)
}

/// Frames of a flow from the wire to a pod may be redirected by XDP for this second, if the pod takes them.
#[inline(always)]
pub fn show_to_xdp(ctx: &TcContext, key: &Key, entry: &mut Entry) {
    let from_wire = config().is_some_and(|config| config.uplink_ifindex == entry.in_ifindex);
    if !from_wire || entry.exit != Exit::POD || entry.nat == Nat::FROM_BACKEND {
        return;
    }
    let addr = if entry.nat == Nat::DESTINATION {
        entry.nat_addr
    } else {
        key.dst
    };
    if let Some(pod) = pod(&addr) {
        entry.in_mac = pod.frames_at(packet::dst_mac(ctx));
    }
}

/// Replaces the port, and corrects the transport checksum for it and for the address. `None`, with nothing changed, for a
/// checksum that may be the pseudo header's alone: only a packet has somebody who completes it.
#[inline(always)]
fn translate_transport(ctx: &XdpContext, ip: &Ip, key: &Key, to: &Translation) -> Option<()> {
    match ip.protocol {
        TCP => {
            let fields = Fields::at(ctx, 16, 2)?;
            fields.refuse_partial(ip)?;
            fields.translate(key, to, true);
        }
        UDP => {
            let fields = Fields::at(ctx, 6, 2)?;
            if fields.check() == 0 {
                // "None", and stays so (RFC 768).
                fields.translate(key, to, false);
                fields.set_check(0);
                return Some(());
            }
            fields.refuse_partial(ip)?;
            fields.translate(key, to, true);
            if fields.check() == 0 {
                fields.set_check(!0);
            }
        }
        // ICMPv4 has no pseudo header (RFC 792); the identifier stands at offset 4.
        _ => Fields::at(ctx, 2, 4)?.translate(key, to, false),
    }
    Some(())
}

/// The checksum and the port, or the identifier, of a transport header. Both are inside the frame.
struct Fields {
    check: *mut u16,
    port: *mut u16,
}

impl Fields {
    /// Those at even offsets in the header.
    #[inline(always)]
    fn at(ctx: &XdpContext, check: usize, port: usize) -> Option<Self> {
        let (start, end) = (ctx.data() + IP_END, ctx.data_end());
        if start + check + 2 > end || start + port + 2 > end {
            return None;
        }
        Some(Self {
            check: (start + check) as *mut u16,
            port: (start + port) as *mut u16,
        })
    }

    #[inline(always)]
    fn check(&self) -> u16 {
        // SAFETY: inside the frame, at an even offset.
        unsafe { *self.check }
    }

    #[inline(always)]
    fn set_check(&self, check: u16) {
        // SAFETY: as above; the frame is ours alone while the program runs.
        unsafe { *self.check = check }
    }

    #[inline(always)]
    fn refuse_partial(&self, ip: &Ip) -> Option<()> {
        let len = ip.total_len - (IP_END - ETH_LEN) as u16;
        (!checksum::may_be_partial(self.check(), ip.src, ip.dst, ip.protocol, len)).then_some(())
    }

    #[inline(always)]
    fn translate(&self, key: &Key, to: &Translation, covers_addresses: bool) {
        if to.nat != Nat::DESTINATION {
            return;
        }
        let mut check = self.check();
        if covers_addresses {
            check = checksum::replace_u32(check, key.dst, to.addr);
        }
        let port = u16::from_ne_bytes(to.port);
        self.set_check(checksum::replace_u16(
            check,
            u16::from_ne_bytes(key.dst_port),
            port,
        ));
        // SAFETY: as above.
        unsafe { *self.port = port }
    }
}
