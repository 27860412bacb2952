//! The directional 5-tuple, and the 16-bit tag by which a packet proves that the stack left its tuple alone.

use crate::addr::Address;

/// `IPPROTO_ICMP`.
pub const ICMP: u8 = 1;
/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;
/// `IPPROTO_DCCP` (RFC 4340).
pub const DCCP: u8 = 33;
/// `IPPROTO_UDPLITE` (RFC 3828).
pub const UDP_LITE: u8 = 136;

/// Whether flows of a protocol are told apart by ports or identifiers. The others are told apart by address alone: one
/// flow for each pair of hosts and protocol, as nf_conntrack's generic tracker does.
#[inline(always)]
pub const fn has_ports<A: Address>(protocol: u8) -> bool {
    protocol == A::ICMP || matches!(protocol, TCP | UDP)
}

/// Whether a protocol is the ICMP of either family.
#[inline(always)]
pub const fn is_icmp(protocol: u8) -> bool {
    protocol == <[u8; 4]>::ICMP || protocol == <[u8; 16]>::ICMP
}

/// Key of `cwy_flows`: one direction of a flow, as the packet stands on the wire at the hook that looks it up.
///
/// For an ICMP query the identifier takes the place of the asking end's port: it is `src_port` of a question and
/// `dst_port` of its answer (RFC 5508 section 3.1). The other port is [`IcmpQuery::kind`](crate::icmp::IcmpQuery),
/// zero for a ping. Protocols without ports have zeros.
///
/// Aligned to words, or the compiler would read and write it byte by byte.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Eq)]
pub struct FlowKey<A> {
    /// Source address, network order.
    pub src: A,
    /// Destination address, network order.
    pub dst: A,
    /// Source port, network order.
    pub src_port: [u8; 2],
    /// Destination port, network order.
    pub dst_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub _pad: [u8; 3],
}

const _: () = assert!(size_of::<FlowKey<[u8; 4]>>() == 4 + 4 + 2 + 2 + 1 + 3);
const _: () = assert!(size_of::<FlowKey<[u8; 16]>>() == 16 + 16 + 2 + 2 + 1 + 3);

impl FlowKey<[u8; 4]> {
    /// The key from its four words as they lie in memory: the addresses, the ports, the protocol. The compiler would
    /// put it together from bytes.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // SAFETY: both are 16 bytes without padding, any bytes are a key, and the words are aligned as it is.
        unsafe { core::mem::transmute::<[u32; 4], Self>(words) }
    }
}

/// Compared as words: byte by byte, the kernel programs would need more stack for it than they have.
impl<A> PartialEq for FlowKey<A> {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let word = |key: *const Self, index: usize| {
            // SAFETY: within the key, which is aligned to words and is a whole number of them, without padding.
            unsafe { *key.cast::<u32>().add(index) }
        };
        let differs = |bits, index| bits | (word(self, index) ^ word(other, index));
        (0..size_of::<Self>() / 4).fold(0, differs) == 0
    }
}

impl<A: core::hash::Hash> core::hash::Hash for FlowKey<A> {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        (&self.src, &self.dst, self.src_port, self.dst_port, self.protocol).hash(state);
    }
}

impl<A: Address> FlowKey<A> {
    /// The key under which the answer to this direction is seen.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
            _pad: [0; 3],
        }
    }

    /// Whether the flow is told apart from others by ports ([`has_ports`]).
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        has_ports::<A>(self.protocol)
    }

    /// A hash of the whole tuple. `seed` makes it unpredictable from outside (RFC 6056 section 3.3.3).
    #[inline(always)]
    pub fn hash(&self, seed: u32) -> u32 {
        let ports = u32::from_ne_bytes([
            self.src_port[0],
            self.src_port[1],
            self.dst_port[0],
            self.dst_port[1],
        ]);
        let mut h = seed ^ self.src.fold();
        h = mix(h).wrapping_add(self.dst.fold());
        h = mix(h).wrapping_add(ports);
        mix(mix(h) ^ u32::from(self.protocol))
    }

    /// The tag written into `skb->tc_index` when a packet with this tuple goes up the stack.
    ///
    /// The stack carries the field along unread (also through fragmentation and segmentation) and never rewrites
    /// it, so a packet that comes out with a tag that fits its tuple is a packet whose tuple was not translated.
    /// Never [`TAG_NONE`] or [`TAG_CARRIED`].
    #[inline(always)]
    pub fn tag(&self, seed: u32) -> u16 {
        let h = self.hash(seed);
        let tag = (h ^ (h >> 16)) as u16;
        if tag == TAG_NONE || tag == TAG_CARRIED {
            1
        } else {
            tag
        }
    }
}

/// The packet did not pass one of our ingress hooks, or its flow may not be carried.
pub const TAG_NONE: u16 = 0;
/// The packet has been carried: the uplink's egress hook lets it pass.
pub const TAG_CARRIED: u16 = 0xffff;

/// The finalizer of MurmurHash3 (public domain, Austin Appleby): a bijection in which each input bit flips each
/// output bit with a probability near one half.
#[inline(always)]
fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = FlowKey<[u8; 4]>> {
        any::<([u8; 4], [u8; 4], [u8; 2], [u8; 2], u8)>().prop_map(
            |(src, dst, src_port, dst_port, protocol)| FlowKey {
                src,
                dst,
                src_port,
                dst_port,
                protocol,
                _pad: [0; 3],
            },
        )
    }

    proptest! {
        #[test]
        fn reversed_twice_is_the_key_itself(key in key()) {
            prop_assert_eq!(key.reversed().reversed(), key);
        }

        #[test]
        fn a_tag_is_never_one_of_the_two_reserved_values(key in key(), seed: u32) {
            let tag = key.tag(seed);
            prop_assert!(tag != TAG_NONE && tag != TAG_CARRIED);
        }
    }

    /// A translation changes the address, the port, or both. If such neighbours shared their tags more often than
    /// chance has it, translated flows would be carried.
    #[test]
    fn neighbouring_tuples_share_a_tag_no_more_often_than_chance() {
        let base = FlowKey {
            src: [10, 240, 0, 5],
            dst: [10, 0, 0, 1],
            src_port: [0xc0, 1],
            dst_port: [0, 53],
            protocol: UDP,
            _pad: [0; 3],
        };
        let mut same = 0;
        for seed in 0..64u32 {
            let tag = base.tag(seed.wrapping_mul(0x9e37_79b9));
            for host in 0..=255u8 {
                for low in 0..16u8 {
                    let other = FlowKey {
                        dst: [10, 240, 0, host],
                        dst_port: [0, low],
                        ..base
                    };
                    same += u32::from(other.tag(seed.wrapping_mul(0x9e37_79b9)) == tag);
                }
            }
        }
        // 262,144 pairs at 1/65,536 each: 4 expected, and more than 16 has a probability below 1e-5.
        assert!(same <= 16, "{same} of 262144 neighbours share the tag");
    }
}
