//! Gives a new translated flow a port of the node's, and writes both entries.
//!
//! The reverse entry is the claim: it is inserted with `BPF_NOEXIST`, so the table itself decides who gets a port
//! and nothing is looked up first ([`walk`]). Then comes the forward entry; if that fails, the claim is taken back ([`halves`]).

mod expired;
mod halves;
mod mapping;
mod taken;
mod walk;

use core::ptr::from_ref;

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use causeway_common::{
    flow::{Flags, Nat, State},
    maps::Config,
    reason::Reason,
};

use self::{expired::cwy_remove_expired, halves::cwy_write_forward, walk::cwy_reserve};
pub use self::{
    halves::fill_answer,
    mapping::mapping_of,
    taken::{host_holds, is_reserved},
};
use crate::maps::{Addr, Entry, Key};

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
    const OF_POD: u32 = 1;
    const CARRIED: u32 = 2;
    const OPENS: u32 = 4;
    const IS_COUNTED: u32 = 8;
    const IS_KNOWN: u32 = 16;
    /// Beside the others: ports of mappings that have expired are passed over.
    const SKIPS_STALE: u32 = 32;

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
        Self {
            of_pod: bits & Self::OF_POD != 0,
            carried: bits & Self::CARRIED != 0,
            opens: bits & Self::OPENS != 0,
            is_counted: bits & Self::IS_COUNTED != 0,
            is_known: bits & Self::IS_KNOWN != 0,
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

/// Claims a port for the flow `key`, as it comes from the pod or from the node's own socket, and writes both entries.
/// Returns the port, network order.
///
/// In two steps beside each other, not below: 512 bytes of stack are all that a program's functions have together.
#[inline(always)]
pub fn claim(ctx: &TcContext, key: &Key, claim: &Claim) -> Result<[u8; 2], Reason> {
    let skb = ctx.as_ptr().cast();
    let won = if claim.opens {
        reserve(skb, key, claim)
    } else {
        mapping_of(key)
    };
    if won.has(Won::IS) {
        return if cwy_write_forward(skb, from_ref(key), claim.bits(), won.0) == 0 {
            Ok(won.port().to_be_bytes())
        } else {
            Err(Reason::SnatTableFull)
        };
    }
    Err(if won.0 == Reason::SnatTableFull as u32 {
        Reason::SnatTableFull
    } else if won.0 == Reason::SnatQuota as u32 {
        Reason::SnatQuota
    } else if won.0 == Reason::SnatNoPort as u32 {
        Reason::SnatNoPort
    } else {
        Reason::SnatNoMapping
    })
}

#[inline(always)]
fn reserve(skb: *mut __sk_buff, key: &Key, claim: &Claim) -> Won {
    let won = Won(cwy_reserve(skb, from_ref(key), claim.bits()));
    if !won.has(Won::IS_STALE) {
        return won;
    }
    // Whether it can be had or not, the second walk takes no other such port.
    cwy_remove_expired(from_ref(key), won.0);
    Won(cwy_reserve(skb, from_ref(key), claim.bits() | Claim::SKIPS_STALE))
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
