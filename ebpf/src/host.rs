//! The node's own connections share the node's address with translated flows. A port that a socket holds is never
//! claimed (`snat`); here is the other direction: a socket that connects from a port that a pod's flow holds.

use aya_ebpf::{bindings::BPF_NOEXIST, programs::TcContext};
use causeway_common::{
    decide::Role,
    flow::{Flags, Nat},
    maps::Config,
    reason::Reason,
    tuple::ICMP,
};

use crate::{
    carry::{note_progress, translation},
    maps::{Addr, Entry, FLOWS, Key, flow, now},
    packet::{self, Ip, Transport},
    rewrite::{Translation, translate},
    snat::{self, Claim},
};

/// A packet with the node's address. It is translated only if its port is a pod's towards this remote.
#[inline(always)]
pub fn to_uplink(
    ctx: &TcContext,
    config: &Config<Addr>,
    ip: &Ip,
    transport: &Transport,
) -> Result<Reason, Reason> {
    let key = packet::key(ip, transport);
    if let Some(entry) = flow(&key)
        && entry.nat == Nat::SOURCE
        && entry.has(Flags::HOST)
    {
        let to = translation(entry);
        entry.last_seen = now();
        note_progress(&key, entry, transport);
        return translated(ctx, ip, &key, &to);
    }
    if transport.role(ip) != Role::Opens {
        return Ok(Reason::NotFromPod);
    }
    let answer = key.reversed();
    match flow(&answer) {
        Some(owner) if owner.nat == Nat::DESTINATION && !owner.has(Flags::HOST) => {
            let port = snat::claim(
                ctx,
                config,
                &Claim {
                    key: &key,
                    pod: None,
                    carried: false,
                    opens: true,
                },
            )?;
            translated(
                ctx,
                ip,
                &key,
                &Translation {
                    nat: Nat::SOURCE,
                    addr: config.node_addr,
                    port,
                },
            )
        }
        Some(_) => Ok(Reason::NotFromPod),
        None => {
            // An echo identifier has no socket that could be looked up when a pod wants it: it is noted here.
            if ip.protocol == ICMP {
                FLOWS
                    .insert(answer, Entry::kernel(Flags::HOST, now()), u64::from(BPF_NOEXIST))
                    .ok();
            }
            Ok(Reason::NotFromPod)
        }
    }
}

#[inline(always)]
fn translated(ctx: &TcContext, ip: &Ip, key: &Key, to: &Translation) -> Result<Reason, Reason> {
    translate(ctx, ip, key, to).map_err(|_failed| Reason::RewriteFailed)?;
    Ok(Reason::HostFlowTranslated)
}
