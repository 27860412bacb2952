//! At the ingress hooks: everything that is not carried goes up the stack, and what may be carried later is noted.

use core::ptr::from_ref;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_ANY},
    programs::TcContext,
};
use causeway_common::{
    decide::may_be_offered,
    flow::{AtIngress, Flags, Nat, State, at_ingress},
    reason::Reason,
};

use crate::{
    carry::note_progress,
    count::Hook,
    forget::kept_flags,
    given::given,
    maps::{Entry, FLOWS, Key, config, flow, is_idle, now, scratch},
    nat,
    packet::{self, IP_END, Ip, Mac, Transport, skb},
    reclaim::remember,
    usage,
};

/// Gives a packet to the stack.
#[inline(always)]
pub fn give_up(ctx: &TcContext, hook: Hook, ip: &Ip, transport: &Transport) -> Reason {
    let from_pod = u32::from(hook == Hook::FromPod);
    cwy_give_up(ctx.as_ptr().cast(), from_ref(ip), from_ref(transport), from_pod)
}

/// Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_give_up(
    buffer: *mut __sk_buff,
    ip: *const Ip,
    transport: *const Transport,
    from_pod: u32,
) -> Reason {
    let ctx = &TcContext::new(buffer);
    // SAFETY: the caller's references.
    let (Some(ip), Some(transport)) = (unsafe { given(ip) }, unsafe { given(transport) }) else {
        return Reason::NeverOffered;
    };
    let (key, from_pod) = (&packet::key(ip, transport), from_pod != 0);
    // The guard has accepted the sender's; on the wire any MAC may forward.
    let mac = if from_pod { packet::src_mac(ctx) } else { [0; 6] };
    let Some(config) = config() else {
        return Reason::NeverOffered;
    };
    let entry = flow(key);
    let ifindex = skb(ctx).ifindex;
    let idle = entry.as_deref().is_some_and(|entry| is_idle(key, entry, now()));
    match at_ingress(entry.as_deref(), transport.role(ip), key.protocol, ifindex, idle) {
        AtIngress::Offer => {
            if !may_be_offered(key) {
                return Reason::NeverOffered;
            }
            let has_options = ip.l4() != IP_END;
            if ip.ttl <= 1 || has_options && !from_pod {
                return Reason::NeverOffered;
            }
            // With options it is not carried. What a pod opens is recorded all the same, or its answer could later make
            // it pass for one.
            let state = if has_options {
                State::KERNEL
            } else {
                State::OFFERED
            };
            let before = entry.as_deref();
            let offer = Offer {
                ifindex,
                mac,
                state,
                kept: kept_flags(before),
                is_known: before.is_some(),
                again: before.is_some_and(|earlier| earlier.nat == Nat::NONE),
                was_moved: before
                    .is_some_and(|earlier| earlier.nat == Nat::SOURCE && earlier.nat_port != key.src_port),
                _pad: 0,
            };
            if let Err(refused) = write_offer(key, &offer) {
                return refused;
            }
            if has_options {
                return Reason::NeverOffered;
            }
        }
        AtIngress::Continue => {
            if let Some(entry) = entry {
                entry.in_ifindex = ifindex;
                entry.in_mac = mac;
                entry.last_seen = now();
                entry.flags |= Flags::WENT_UP;
                note_progress(key, entry, transport);
            }
        }
        AtIngress::Carry => {
            // Carried, but under another MAC: the guard has just accepted this one.
            if let Some(entry) = entry {
                entry.in_mac = mac;
            }
            packet::set_tag(ctx, key.tag(config.seed));
            return Reason::CarriedTakesStack;
        }
        AtIngress::Reset => {
            // A reset of its own shows that the opener has no connection any more.
            if let Some(entry) = entry {
                note_progress(key, entry, transport);
            }
            return Reason::Drained;
        }
        AtIngress::Stack(reason) => {
            if let Some(entry) = entry {
                entry.last_seen = now();
                note_progress(key, entry, transport);
            }
            return reason;
        }
    }
    packet::set_tag(ctx, key.tag(config.seed));
    Reason::Offered
}

/// What is written about a first packet.
#[repr(C)]
struct Offer {
    ifindex: u32,
    mac: Mac,
    state: u8,
    /// [`kept_flags`] of the entry that is there already.
    kept: u8,
    /// There is one.
    is_known: bool,
    /// It is of an earlier flow without translation: both directions start again together, or an answer still carried
    /// would pass the kernel unseen.
    again: bool,
    /// It is of an earlier flow that had another port than its own, which this one need not have.
    was_moved: bool,
    _pad: u8,
}

/// Writes the offer, or says why the flow is not offered. In steps beside each other, not below: 512 bytes of stack are all
/// that a program's functions have together.
#[inline(always)]
fn write_offer(key: &Key, offer: &Offer) -> Result<(), Reason> {
    let is_counted = offer.kept & Flags::COUNTED != 0;
    if !is_counted && !usage::has_room(&key.src) {
        return Err(Reason::OfferQuota);
    }
    if offer.again && cwy_await_again(from_ref(key)) != 0
        || cwy_write_offer(from_ref(key), from_ref(offer)) != 0
    {
        return Err(Reason::OfferRefused);
    }
    if offer.was_moved {
        nat::forget_moved(key);
    }
    if !is_counted {
        usage::opened(&key.src);
    }
    if !offer.is_known {
        remember(key);
    }
    Ok(())
}

/// Lets the answers' direction start again. Returns 0 if there was room. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_await_again(key: *const Key) -> u32 {
    // SAFETY: the caller's reference.
    let (Some(key), Some(scratch)) = (unsafe { given(key) }, scratch()) else {
        return 1;
    };
    let half = &mut scratch.awaited;
    half.key = key.reversed();
    half.entry = Entry::awaited(kept_flags(flow(&half.key).as_deref()), now());
    u32::from(FLOWS.insert(&half.key, &half.entry, u64::from(BPF_ANY)).is_err())
}

/// Returns 0 if there was room. Verified by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cwy_write_offer(key: *const Key, offer: *const Offer) -> u32 {
    // SAFETY: the caller's references.
    let (Some(key), Some(offer), Some(scratch)) = (unsafe { given(key) }, unsafe { given(offer) }, scratch())
    else {
        return 1;
    };
    let half = &mut scratch.offered;
    half.key = *key;
    half.entry = Entry::offer(offer.ifindex, offer.mac, now());
    half.entry.state = offer.state;
    half.entry.flags = Flags::WENT_UP | Flags::COUNTED;
    u32::from(FLOWS.insert(&half.key, &half.entry, u64::from(BPF_ANY)).is_err())
}
