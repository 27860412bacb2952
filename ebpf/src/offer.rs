//! At the ingress hooks: everything that is not carried goes up the stack, and what may be carried later is noted.

use aya_ebpf::{bindings::BPF_ANY, programs::TcContext};
use causeway_common::{
    decide::{WIRESERVER, may_be_offered},
    flow::{AtIngress, Flags, Nat, Progress, State, at_ingress},
    reason::Reason,
};

use crate::{
    carry::note_progress,
    count::{Hook, bump},
    maps::{Entry, FLOWS, Key, config, flow, is_idle, now},
    packet::{self, IP_END, Ip, Mac, Transport, skb},
};

/// Gives a packet to the stack. In a frame of its own: what follows the established path shares its 512 bytes of stack.
#[inline(never)]
pub fn give_up(ctx: &TcContext, hook: Hook, ip: &Ip, transport: &Transport, key: &Key) -> Reason {
    // The guard has accepted the sender's; on the wire any MAC may forward.
    let mac = if hook == Hook::FromPod {
        packet::src_mac(ctx)
    } else {
        [0; 6]
    };
    let Some(config) = config() else {
        return Reason::NeverOffered;
    };
    let entry = flow(key);
    let ifindex = skb(ctx).ifindex;
    let idle = entry
        .as_deref()
        .is_some_and(|entry| is_idle(config, key, entry, now()));
    match at_ingress(entry.as_deref(), transport.role(ip), key.protocol, ifindex, idle) {
        AtIngress::Offer => {
            if !may_be_offered(key, WIRESERVER) {
                return Reason::NeverOffered;
            }
            let has_options = ip.l4() != IP_END;
            if ip.ttl <= 1 || has_options && hook != Hook::FromPod {
                return Reason::NeverOffered;
            }
            // With options it is not carried. What a pod opens is recorded all the same, or its answer could later make
            // it pass for one.
            let state = if has_options {
                State::KERNEL
            } else {
                State::OFFERED
            };
            let again = entry.is_some_and(|earlier| earlier.nat == Nat::NONE);
            if !write_offer(key, state, ifindex, &mac, again) {
                bump(hook, Reason::OfferRefused);
                return Reason::Offered;
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

/// Writes the offer. Whether there was room. `again`: in place of what an earlier flow left under the tuple; both
/// directions start again together, or an answer still carried would pass the kernel unseen.
#[inline(never)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value the entry would be copied to the stack"
)]
fn write_offer(key: &Key, state: u8, ifindex: u32, mac: &Mac, again: bool) -> bool {
    let mut entry = Entry::awaited(0, now());
    if again && FLOWS.insert(key.reversed(), &entry, u64::from(BPF_ANY)).is_err() {
        return false;
    }
    entry.state = state;
    entry.flags = Flags::WENT_UP;
    entry.progress = Progress::SPOKE.bits();
    entry.in_ifindex = ifindex;
    entry.in_mac = *mac;
    FLOWS.insert(key, &entry, u64::from(BPF_ANY)).is_ok()
}
