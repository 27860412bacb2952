//! At the ingress hooks: everything that is not carried goes up the stack, and what may be carried later is noted.

use aya_ebpf::{bindings::BPF_ANY, programs::TcContext};
use causeway_common::{
    decide::{WIRESERVER, may_be_offered},
    flow::{AtIngress, Flags, Nat, at_ingress},
    reason::Reason,
};

use crate::{
    carry::note_progress,
    count::{Hook, bump},
    maps::{Entry, FLOWS, Key, config, flow, now},
    packet::{self, IP_END, Ip, Mac, Transport, skb},
};

/// Gives a packet to the stack. `mac` is the pod's, or zeros for a packet from the wire.
#[inline(always)]
pub fn give_up(ctx: &TcContext, hook: Hook, ip: &Ip, transport: &Transport, key: &Key, mac: Mac) -> Reason {
    let Some(config) = config() else {
        return Reason::NeverOffered;
    };
    let entry = flow(key);
    let ifindex = skb(ctx).ifindex;
    match at_ingress(entry.as_deref(), transport.role(ip), key.protocol, ifindex) {
        AtIngress::Offer => {
            let plain = ip.l4() == IP_END && ip.ttl > 1 && skb(ctx).vlan_present == 0;
            if !plain || !may_be_offered(key, WIRESERVER) {
                return Reason::NeverOffered;
            }
            write_offer(hook, key, entry.as_deref(), ifindex, mac);
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

/// Writes the offer, in place of what an earlier connection left under the tuple.
#[inline(never)]
fn write_offer(hook: Hook, key: &Key, earlier: Option<&Entry>, ifindex: u32, mac: Mac) {
    let now = now();
    if earlier.is_some_and(|earlier| earlier.nat == Nat::NONE) {
        // Both directions start again together: an answer still carried would pass the kernel unseen.
        if FLOWS
            .insert(key.reversed(), Entry::awaited(0, now), u64::from(BPF_ANY))
            .is_err()
        {
            bump(hook, Reason::OfferRefused);
        }
    }
    if FLOWS
        .insert(key, Entry::offer(ifindex, mac, now), u64::from(BPF_ANY))
        .is_err()
    {
        bump(hook, Reason::OfferRefused);
    }
}
