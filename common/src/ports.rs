//! Which port a translated flow gets: the pod's own when it is free, else a seeded probe of the port's class, else, where
//! nearly all are taken, what the remote's map of ports shows to be free ([`crate::crowd`]).
//!
//! The sequence is a pure function of the flow and the node's seed, so a mapping whose forward half was lost is
//! found again by walking the same candidates, or by the hint that is left by a flow with another port than its own
//! ([`crate::moved`]). `BPF_NOEXIST` on the reverse entry decides who owns a port; nothing
//! here looks at the table.

use core::ops::RangeInclusive;

use crate::tuple;

/// How many candidates one packet may try by probing. Nine tenths of the ports being taken, this many fail once in 800
/// times.
pub const PROBES: u32 = 64;
/// How many it tries towards a remote that has a map of its ports: the pod's own, which is kept when it is free. Expired
/// mappings are looked for once the map shows no free port.
pub const CROWDED_PROBES: u32 = 1;
/// How many ports of the map one packet may try. Each can turn out to be taken by a socket of the node, or by another
/// CPU just now.
pub const CROWD_TRIES: u32 = 16;
/// How many ports, from where the flow's search began, are looked at for a mapping that has lost its forward half.
pub const CROWD_SEARCH: u32 = 4096;

/// Words of `cwy_ports` for one protocol: a bit for each port.
pub const RESERVED_WORDS: u32 = 65_536 / 64;

/// Entries of `cwy_ports`: TCP, then UDP.
pub const RESERVED_ENTRIES: usize = 2 * RESERVED_WORDS as usize;

/// The ports of the same class as `port`, of which a replacement is taken, as nf_nat does
/// (`nf_nat_l4proto_unique_tuple`, Linux 6.18): services below 512 stay there, 512 to 1023 stay privileged.
///
/// From 1024 on the upper half comes first: it holds the pods' own ephemeral ports, and a node's services live
/// in the lower half.
#[inline(always)]
pub fn class_of(port: u16) -> RangeInclusive<u16> {
    match port {
        0..=511 => 1..=511,
        512..=1023 => 600..=1023,
        1024.. => 1024..=65_535,
    }
}

/// The words of a map of ports, 64 a word, among which the class of `own` lies. Echo identifiers are one class.
#[inline(always)]
pub fn words_of(protocol: u8, own: u16) -> (u32, u32) {
    if tuple::is_icmp(protocol) {
        return (0, 1023);
    }
    let class = class_of(own);
    (u32::from(*class.start()) / 64, u32::from(*class.end()) / 64)
}

/// Port number `step` of a search through the class of `own` that begins at word `hash` modulo 1024 of a map of ports.
#[inline(always)]
pub fn candidate_from(protocol: u8, own: u16, hash: u32, step: u32) -> u16 {
    let port = ((hash % 1024 * 64).wrapping_add(step) & 0xffff) as u16;
    let class = class_of(own);
    if tuple::is_icmp(protocol) || class.contains(&port) {
        return port;
    }
    // Ahead of the class the search goes on at its first word.
    let size = u32::from(*class.end() - *class.start()) + 1;
    (u32::from(*class.start()) + step % size) as u16
}

/// Candidate number `attempt` for a flow that comes with `own` as its port; `hash` is the seeded hash of its tuple.
///
/// Attempt 0 is the pod's own port. The rest walks the class by an odd stride; each class has a size whose only
/// common divisors with that stride are removed by taking the next candidate from a power-of-two ring and folding
/// it into the class, so no port of the class is out of reach.
#[inline(always)]
pub fn candidate(own: u16, hash: u32, attempt: u32) -> u16 {
    if attempt == 0 && own != 0 {
        return own;
    }
    let class = class_of(own);
    let (first, size) = (
        u32::from(*class.start()),
        u32::from(*class.end() - *class.start()) + 1,
    );
    let ring = hash.wrapping_add(attempt.wrapping_mul(stride(hash))) & 0xffff;
    (first + ((ring * size) >> 16)) as u16
}

/// Candidate number `attempt` for an ICMP echo identifier: all 65,536 are one class.
#[inline(always)]
pub fn candidate_id(own: u16, hash: u32, attempt: u32) -> u16 {
    if attempt == 0 {
        return own;
    }
    hash.wrapping_add(attempt.wrapping_mul(stride(hash))) as u16
}

/// Odd, so that it visits the whole ring; and wide, so that no two neighbours in the walk fall into one range of
/// reserved ports: a walk of small steps can spend all its probes among the NodePorts.
#[inline(always)]
fn stride(hash: u32) -> u32 {
    (((hash >> 16) & 0x7fff) + 0x2000) | 1
}

/// Whether a flow of the protocol can have the port at all.
#[inline(always)]
pub fn is_of_a_class(protocol: u8, port: u16) -> bool {
    tuple::is_icmp(protocol) || class_of(port).contains(&port)
}

/// Where the bit of `port` stands: the index into `cwy_ports` and the mask. `udp` selects the second bitmap.
#[inline(always)]
pub fn reserved_bit(udp: bool, port: u16) -> (u32, u64) {
    let base = if udp { RESERVED_WORDS } else { 0 };
    (base + u32::from(port) / 64, 1 << (port % 64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn candidates_stay_in_the_class_and_begin_with_the_own_port(own in 1u16.., hash: u32) {
            prop_assert_eq!(candidate(own, hash, 0), own);
            for attempt in 1..PROBES {
                prop_assert!(class_of(own).contains(&candidate(own, hash, attempt)));
            }
        }

        #[test]
        fn no_candidate_comes_twice_within_one_packet_of_the_large_class(own in 1024u16.., hash: u32) {
            let mut seen: Vec<u16> = (1..PROBES).map(|attempt| candidate(own, hash, attempt)).collect();
            seen.sort_unstable();
            let before = seen.len();
            seen.dedup();
            // Folding 65,536 ring positions into 64,512 ports lets a few neighbours meet.
            prop_assert!(before - seen.len() <= 4);
        }
    }

    /// Whatever the hash, a walk leaves the 2,768 NodePorts at once.
    #[test]
    fn a_walk_does_not_stay_among_the_node_ports() {
        for high in 0..=u32::from(u16::MAX) {
            for low in [0, 0x7500, 0x7a00, 0xffff] {
                let hash = high << 16 | low;
                let inside = (1..PROBES)
                    .filter(|&attempt| (30_000..=32_767).contains(&candidate(40_000, hash, attempt)));
                assert!(inside.count() < 32, "hash {hash:#x}");
            }
        }
    }

    #[test]
    fn every_port_of_a_class_is_some_flows_candidate() {
        for own in [80u16, 600, 40_000] {
            let class = class_of(own);
            let mut reached = vec![false; 65_536];
            for hash in 0..=0xffffu32 {
                reached[usize::from(candidate(own, hash, 1))] = true;
            }
            let missed = class.clone().filter(|&port| !reached[usize::from(port)]).count();
            assert_eq!(missed, 0, "class {class:?}");
        }
    }

    #[test]
    fn port_zero_is_never_a_candidate() {
        assert!((0..PROBES).all(|attempt| candidate(0, 0xdead_beef, attempt) != 0));
    }

    #[test]
    fn bits_of_the_two_protocols_do_not_overlap() {
        assert_eq!(reserved_bit(false, 0), (0, 1));
        assert_eq!(reserved_bit(false, 65_535), (1023, 1 << 63));
        assert_eq!(reserved_bit(true, 0), (1024, 1));
        assert!(reserved_bit(true, 65_535).0 < RESERVED_ENTRIES as u32);
    }
}
