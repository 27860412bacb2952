//! Gives a new translated flow a port of the node's, and writes both entries.
//!
//! The reverse entry is the claim: it is inserted with `BPF_NOEXIST`, so the table itself decides who gets a port
//! and nothing is looked up first ([`walk`]). Then comes the forward entry; if that fails, the claim is taken back ([`halves`]).
//!
//! In steps beside each other, not below, which find in the [`scratch`] what they are about: 512 bytes of
//! stack are all that a program's functions have together.

mod expired;
mod halves;
mod leave;
mod mapping;
pub mod taken;
mod walk;

use aya_ebpf::{EbpfContext as _, programs::TcContext};
use causeway_common::{
    flow::{Flags, Nat, State},
    maps::Config,
    reason::Reason,
    tuple::has_ports,
};

use self::{
    expired::cwy_remove_expired, halves::cwy_write_forward, leave::cwy_leave, mapping::cwy_find_claimed,
    walk::cwy_reserve,
};
pub use self::{halves::fill_answer, mapping::mapping_of, taken::is_reserved};
use crate::{
    crowd,
    maps::{Addr, Entry, Key, scratch},
};

/// Who claims, and what may be done for it.
pub struct Claim {
    /// The flow is of a pod, whose address is the key's source; otherwise it is of the node itself.
    pub of_pod: bool,
    /// Both entries are carried; otherwise they are the kernel's.
    pub carried: bool,
    /// The packet may open a flow. Otherwise only a mapping that exists is found.
    pub opens: bool,
    /// The flow's entry counts towards the pod's quota already.
    pub is_counted: bool,
    /// The flow has an entry.
    pub is_known: bool,
}

impl Claim {
    #[inline(always)]
    fn bits(&self) -> u32 {
        u32::from(self.of_pod)
            | u32::from(self.carried) << 1
            | u32::from(self.opens) << 2
            | u32::from(self.is_counted) << 3
            | u32::from(self.is_known) << 4
    }

    #[inline(always)]
    fn of_bits(bits: u32) -> Self {
        let has = |bit: u32| bits & 1 << bit != 0;
        Self {
            of_pod: has(0),
            carried: has(1),
            opens: has(2),
            is_counted: has(3),
            is_known: has(4),
        }
    }

    #[inline(always)]
    fn state(&self) -> u8 {
        if self.carried {
            State::CARRIED
        } else {
            State::KERNEL
        }
    }

    #[inline(always)]
    fn flags(&self) -> u8 {
        if self.of_pod { Flags::WENT_UP } else { Flags::HOST }
    }
}

/// What is said of a packet whose flow wants a port: that is to be [settled](crate::nat::settle) before it leaves. No packet
/// has this reason.
pub const CLAIMS: Reason = Reason::FlowRestored;

/// Notes that the flow `key`, as it comes from the pod or from the node's own socket, wants a port.
#[inline(always)]
pub fn ask(key: &Key, claim: &Claim) -> Result<Reason, Reason> {
    let walk = &mut scratch().ok_or(Reason::SnatNotReady)?.walk;
    walk.key = *key;
    walk.claim = claim.bits();
    walk.skip_stale = 0;
    walk.may_have_hint = 1;
    Ok(CLAIMS)
}

/// Claims a port for the flow that [`ask`] was about, writes both entries, and translates the packet.
#[inline(always)]
pub fn settle(ctx: &TcContext) -> Reason {
    let skb = ctx.as_ptr().cast();
    let won = find(ctx);
    if !won.has(Won::IS) {
        return won.refusal();
    }
    if cwy_write_forward(skb, won.0) != 0 {
        return Reason::SnatTableFull;
    }
    cwy_leave(skb, u32::from(won.port()))
}

#[inline(always)]
fn find(ctx: &TcContext) -> Won {
    let skb = ctx.as_ptr().cast();
    let mut won = Won(cwy_reserve(skb));
    if won.0 == Won::ASKS {
        return Won(cwy_find_claimed());
    }
    if won.has(Won::IS_STALE) {
        // Whether it can be had or not, the next walk takes no other such port.
        cwy_remove_expired();
        won = Won(cwy_reserve(skb));
    }
    if won.0 == Reason::SnatNoPort as u32 && crowd::build_claimed() {
        won = Won(cwy_reserve(skb));
    }
    won
}

/// What a search has found: a port in the lower half, and bits beside it. Without [`Won::IS`] or [`Won::IS_STALE`], the
/// [`Reason`] that there is none as a number.
#[derive(Clone, Copy)]
pub struct Won(pub u32);

impl Won {
    /// There is a port.
    const IS: u32 = 1 << 16;
    /// The mapping has not been there before.
    const IS_NEW: u32 = 1 << 17;
    /// The port belongs to a mapping that seems to have expired.
    const IS_STALE: u32 = 1 << 18;
    /// Only a mapping that is there already is wanted.
    const ASKS: u32 = 1 << 19;
    /// Where the state of the mapping begins.
    const STATE: u32 = 24;

    #[inline(always)]
    fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    #[inline(always)]
    pub fn port(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    fn state(self) -> u8 {
        (self.0 >> Self::STATE) as u8
    }

    /// Whether there is a mapping, of a flow that is carried.
    #[inline(always)]
    pub fn is_carried(self) -> bool {
        self.has(Self::IS) && self.state() == State::CARRIED
    }

    /// Why there is no port.
    #[inline(always)]
    fn refusal(self) -> Reason {
        if self.0 == Reason::SnatTableFull as u32 {
            Reason::SnatTableFull
        } else if self.0 == Reason::SnatQuota as u32 {
            Reason::SnatQuota
        } else if self.0 != Reason::SnatNoPort as u32 {
            Reason::SnatNoMapping
        } else if scratch().is_some_and(|scratch| has_ports::<Addr>(scratch.walk.key.protocol)) {
            Reason::SnatNoPort
        } else {
            Reason::SnatProtocol
        }
    }
}

#[inline(always)]
fn is_ours(key: &Key, owner: &Entry) -> bool {
    owner.nat == Nat::DESTINATION && owner.nat_addr == key.src && owner.nat_port == key.src_port
}

/// The key under which the answer to a flow arrives that was translated to `port`.
#[inline(always)]
fn answer_key(config: &Config<Addr>, key: &Key, port: u16) -> Key {
    Key {
        dst: config.node_addr,
        dst_port: port.to_be_bytes(),
        ..key.reversed()
    }
}
