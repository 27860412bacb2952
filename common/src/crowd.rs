//! Which ports of a crowded remote are free.
//!
//! A probe finds a port quickly while most are free. For a remote towards which nearly all are taken there is a map
//! of them, one bit a port, so that the last free one is found with as little work as the first. The map is a hint:
//! what decides is the insertion of the answer's entry. A bit that says "taken" of a free port costs that port until
//! the map is made anew ([`REBUILD_AFTER`]); a bit that says "free" of a taken one costs one more try.

use core::hint::black_box;

use crate::{ports::words_of, tuple::FlowKey};

/// Slots of `cwy_crowds`. With 262,144 flows no more than four remotes can have so many.
pub const CROWD_SLOTS: usize = 16;
/// Words of the map of ports.
const WORDS: usize = 1024;
/// Words of the summary, which has a bit for each word of the map.
const SUMMARY_WORDS: usize = WORDS / 64;
/// Looks that a search takes: one more than there are words of the summary, because that of the start is looked at from
/// the start on, and again at the end.
pub const TURNS: usize = SUMMARY_WORDS + 1;
/// Seconds after which a map without a free port may be made anew, and a slot that nobody has used be taken over.
pub const REBUILD_AFTER: u32 = 10;

/// Value of `cwy_crowds`: the ports that are taken towards one remote.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowd<A> {
    /// The key of an answer from the remote, with port zero in the place of ours.
    pub remote: FlowKey<A>,
    /// `CLOCK_MONOTONIC` seconds of the last look at every port; 0: the slot is not in use.
    pub built: u32,
    /// `CLOCK_MONOTONIC` seconds of the last claim.
    pub last_used: u32,
    /// Bit `word % 64` of word `word / 64` is set when a word of [`Self::taken`] has no zero.
    pub full: [u64; SUMMARY_WORDS],
    /// Bit `port % 64` of word `port / 64` is set for a port that is taken, reserved or of no class.
    pub taken: [u64; WORDS],
}

const _: () = assert!(size_of::<Crowd<[u8; 4]>>() == 16 + 4 + 4 + 128 + 8192);
const _: () = assert!(size_of::<Crowd<[u8; 16]>>() == 40 + 4 + 4 + 128 + 8192);

impl<A: PartialEq + Copy> Crowd<A> {
    /// Whether the slot is in use for `remote` (an answer's key with port zero).
    #[inline(always)]
    pub fn is_of(&self, remote: &FlowKey<A>) -> bool {
        self.built != 0 && self.remote == *remote
    }

    /// Whether the slot may be given to another remote at `now`.
    #[inline(always)]
    pub fn is_vacant(&self, now: u32) -> bool {
        self.built == 0 || now.wrapping_sub(self.last_used) > REBUILD_AFTER
    }

    /// Whether every port may be looked at again at `now`.
    #[inline(always)]
    pub fn is_old(&self, now: u32) -> bool {
        now.wrapping_sub(self.built) > REBUILD_AFTER
    }

    /// Begins anew for `remote`: only what is no port of any class is taken.
    #[inline(always)]
    pub fn restart(&mut self, remote: &FlowKey<A>, now: u32) {
        self.remote = *remote;
        self.built = if now == 0 { 1 } else { now };
        self.last_used = now;
        for word in &mut self.full {
            *word = 0;
        }
    }

    /// One of the [`TURNS`] looks of a search for a free port of the class of `own`, which finds the first at or after word
    /// `hash` modulo 1024 of the map.
    #[inline(always)]
    pub fn look(&mut self, (protocol, own): (u8, u16), hash: u32, turn: usize) -> Option<u16> {
        let (first, last) = words_of(protocol, own);
        let start = hash as usize % WORDS;
        let group = (start / 64 + turn) % SUMMARY_WORDS;
        let mut open = !self.full[group] & in_span(group, first, last);
        if turn == 0 {
            open &= u64::MAX << (start % 64);
        }
        if open == 0 {
            return None;
        }
        let index = group * 64 + lowest(open) as usize;
        let free = !self.taken[index % WORDS];
        if free != 0 {
            return Some((index % WORDS * 64 + lowest(free) as usize) as u16);
        }
        self.full[group] |= 1 << (index % 64);
        None
    }

    /// Notes that a port is taken.
    #[inline(always)]
    pub fn mark_taken(&mut self, port: u16) {
        let index = word_of(port);
        self.taken[index] |= 1 << (port % 64);
        if self.taken[index] == u64::MAX {
            self.full[index / 64 % SUMMARY_WORDS] |= 1 << (index % 64);
        }
    }

    /// Notes that a port is free.
    #[inline(always)]
    pub fn mark_free(&mut self, port: u16) {
        let index = word_of(port);
        self.taken[index] &= !(1 << (port % 64));
        self.full[index / 64 % SUMMARY_WORDS] &= !(1 << (index % 64));
    }

    /// Sets a whole word of the map. `bits` has a one for each port that is taken or may not be.
    #[inline(always)]
    pub fn set_word(&mut self, index: u32, bits: u64) {
        let index = index as usize;
        self.taken[index % WORDS] = bits;
        if bits == u64::MAX {
            self.full[index / 64 % SUMMARY_WORDS] |= 1 << (index % 64);
        }
    }
}

/// The words of summary word `group` that lie between `first` and `last`, as bits.
#[inline(always)]
fn in_span(group: usize, first: u32, last: u32) -> u64 {
    let base = group as u32 * 64;
    let from = first.saturating_sub(base);
    let to = last.wrapping_sub(base);
    if from > 63 || last < base {
        return 0;
    }
    let below = u64::MAX << from;
    if to >= 63 {
        below
    } else {
        below & ((1 << (to + 1)) - 1)
    }
}

/// The word of the map that has a port's bit.
#[inline(always)]
fn word_of(port: u16) -> usize {
    // Behind the barrier, or the compiler would leave the bound out, knowing the port's type: the verifier of Linux 6.1 knows
    // no bound of what has been brought out of network order.
    black_box(usize::from(port) / 64) % WORDS
}

/// The lowest bit that is set; `bits` is not zero.
#[inline(always)]
fn lowest(bits: u64) -> u32 {
    // Without the barrier the compiler makes a table of it, which a kernel program would have to carry as a map.
    black_box(bits & bits.wrapping_neg()).wrapping_sub(1).count_ones()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        ports::{class_of, is_of_a_class},
        tuple::{ICMP, TCP, UDP},
    };

    fn remote() -> FlowKey<[u8; 4]> {
        FlowKey {
            src: [203, 0, 113, 10],
            dst: [10, 240, 0, 4],
            src_port: [1, 187],
            dst_port: [0; 2],
            protocol: TCP,
            _pad: [0; 3],
        }
    }

    /// As the programs make it: every port has been looked at.
    fn crowd(protocol: u8, taken: impl Fn(u16) -> bool) -> Box<Crowd<[u8; 4]>> {
        let mut crowd = Box::new(Crowd {
            remote: remote(),
            built: 0,
            last_used: 0,
            full: [u64::MAX; SUMMARY_WORDS],
            taken: [0; WORDS],
        });
        crowd.restart(&remote(), 5);
        for index in 0..WORDS as u32 {
            let bits = (0..64).fold(0, |word, bit| {
                let port = (index * 64 + bit) as u16;
                let is_taken = !is_of_a_class(protocol, port) || taken(port);
                word | u64::from(is_taken) << bit
            });
            crowd.set_word(index, bits);
        }
        crowd
    }

    /// As the programs search.
    fn find_free(crowd: &mut Crowd<[u8; 4]>, class: (u8, u16), hash: u32) -> Option<u16> {
        (0..TURNS).find_map(|turn| crowd.look(class, hash, turn))
    }

    #[test]
    fn every_port_of_the_large_class_is_handed_out_once_and_then_none() {
        let mut crowd = crowd(TCP, |_| false);
        let mut handed_out = vec![false; 65_536];
        for n in 0..64_512u32 {
            let port = find_free(&mut crowd, (TCP, 40_000), n.wrapping_mul(0x9e37_79b9)).unwrap();
            assert!(port >= 1024 && !handed_out[usize::from(port)], "{port}");
            handed_out[usize::from(port)] = true;
            crowd.mark_taken(port);
        }
        assert_eq!(find_free(&mut crowd, (TCP, 40_000), 7), None);
        crowd.mark_free(31_337);
        assert_eq!(find_free(&mut crowd, (TCP, 40_000), 7), Some(31_337));
    }

    #[test]
    fn each_class_keeps_to_itself() {
        for (protocol, own, size) in [(UDP, 80, 511), (UDP, 700, 424), (ICMP, 0, 65_536)] {
            let mut crowd = crowd(protocol, |_| false);
            let mut count = 0;
            while let Some(port) = find_free(&mut crowd, (protocol, own), count) {
                assert!(
                    protocol == ICMP || class_of(own).contains(&port),
                    "{port} for {own}"
                );
                crowd.mark_taken(port);
                count += 1;
            }
            assert_eq!(count, size, "class of {own}");
        }
    }

    proptest! {
        #[test]
        fn the_last_free_port_is_found_from_wherever_the_search_begins(last in 1024u16.., hash: u32) {
            let mut crowd = crowd(UDP, |port| port != last);
            prop_assert_eq!(find_free(&mut crowd, (UDP, 50_000), hash), Some(last));
        }

        #[test]
        fn a_summary_that_is_behind_hides_no_port(last in 1024u16.., hash: u32) {
            let mut crowd = crowd(UDP, |port| port != last);
            for (index, word) in crowd.full.iter_mut().enumerate() {
                // As if other CPUs had filled these words and lost the race for the summary.
                *word &= !(1 << (index * 3 % 64));
            }
            let mut found = None;
            for _ in 0..=SUMMARY_WORDS {
                found = found.or(find_free(&mut crowd, (UDP, 50_000), hash));
            }
            prop_assert_eq!(found, Some(last));
        }

        #[test]
        fn it_hands_out_what_a_plain_list_of_free_ports_holds(
            ops in proptest::collection::vec((any::<bool>(), 0u16..200), 1..400),
        ) {
            // All but two hundred ports are taken, so that they meet.
            let slot = |n: u16| 1024 + n * 300;
            let mut free: std::collections::BTreeSet<u16> = (0..200).map(slot).collect();
            let mut crowd = crowd(TCP, |port| !free.contains(&port));
            for (release, n) in ops {
                if release {
                    crowd.mark_free(slot(n));
                    free.insert(slot(n));
                } else if let Some(port) = find_free(&mut crowd, (TCP, 40_000), u32::from(n) * 977) {
                    prop_assert!(free.remove(&port), "{} was not free", port);
                    crowd.mark_taken(port);
                } else {
                    prop_assert!(free.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_slot_is_kept_while_it_is_used() {
        let mut crowd = crowd(TCP, |_| false);
        crowd.last_used = 100;
        assert!(crowd.is_of(&remote()) && !crowd.is_vacant(110) && crowd.is_vacant(111));
        crowd.built = 0;
        assert!(!crowd.is_of(&remote()) && crowd.is_vacant(100));
    }
}
