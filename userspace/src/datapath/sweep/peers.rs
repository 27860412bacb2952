//! Which peers of expired entries are there, and whether they have expired as well: a compact hash table.
//!
//! Entries are known by 62 bits of a keyed hash. Two that share them cost a needless look or a late deletion, never a
//! wrong one: what is deleted was looked up by its key.

use std::hash::{BuildHasher as _, RandomState};

use crate::datapath::tables::Key;

/// Hash of a key, never zero, with the lowest two bits free for what is known of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Print(u64);

impl Print {
    /// Also says what is known of the entry.
    pub(super) fn noting(self, found: Found) -> Noted {
        Noted(self.0 | found as u64)
    }
}

/// A [`Print`] of an entry that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted(u64);

/// What was read under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Found {
    Nothing = 0,
    Alive = 1,
    /// A half that has expired.
    Expired = 2,
    /// An offer that has expired, which is half of nothing. Two entries of one print also look like this.
    ExpiredOffer = 3,
}

/// The bits of [`Found`].
const STATE: u64 = 3;

/// Hashes keys with a seed of its own: whoever opens flows cannot choose which of them meet.
pub(super) struct Printer([u64; 2]);

impl Printer {
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        Self([random.hash_one(1u8), random.hash_one(2u8)])
    }

    pub(super) fn of(&self, key: &Key) -> Print {
        let addrs = joined(u32::from_ne_bytes(key.src), u32::from_ne_bytes(key.dst));
        let ports = joined(
            u16::from_ne_bytes(key.src_port).into(),
            u16::from_ne_bytes(key.dst_port).into(),
        );
        let rest = ports | u64::from(key.protocol) << 16;
        let once = fold(addrs ^ self.0[0], rest ^ self.0[1]);
        // The second multiplication spreads what the first has left in few bits.
        let twice = fold(once ^ self.0[1], addrs.rotate_left(32) ^ rest ^ self.0[0]);
        Print((twice | 1 << 63) & !STATE)
    }
}

fn joined(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Both halves of the product: every bit of the factors reaches every bit of the result.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The peers that are asked for, and what becomes known of them. Open addressing, at most half full.
pub(super) struct Peers {
    slots: Vec<u64>,
    mask: usize,
}

impl Peers {
    /// Asks for `count` peers.
    pub(super) fn wanted(count: usize, peers: impl Iterator<Item = Print>) -> Self {
        let room = (2 * count.max(1)).next_power_of_two();
        let mut this = Self {
            slots: vec![0; room],
            mask: room - 1,
        };
        for peer in peers {
            let at = this.position(peer.0);
            this.slots[at] = peer.0;
        }
        this
    }

    /// Notes an entry that was read, if it is asked for.
    pub(super) fn note(&mut self, entry: Noted) {
        let at = self.position(entry.0);
        if self.slots[at] != 0 {
            self.slots[at] |= entry.0;
        }
    }

    /// What is known of a peer that was asked for.
    pub(super) fn found(&self, peer: Print) -> Found {
        match self.slots[self.position(peer.0)] & STATE {
            0 => Found::Nothing,
            1 => Found::Alive,
            2 => Found::Expired,
            _ => Found::ExpiredOffer,
        }
    }

    /// The slot of a print, or the free one where it would be.
    fn position(&self, print: u64) -> usize {
        let mut at = (print >> 2) as usize & self.mask;
        while self.slots[at] != 0 && (self.slots[at] ^ print) & !STATE != 0 {
            at = (at + 1) & self.mask;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use causeway_common::tuple::TCP;

    use super::*;

    fn key(n: u32) -> Key {
        let [host, port] = [n >> 16, n & 0xffff].map(|half| (half as u16).to_be_bytes());
        Key {
            src: [10, 240, host[0], host[1]],
            dst: [203, 0, 113, 9],
            src_port: port,
            dst_port: [1, 187],
            protocol: TCP,
            _pad: [0; 3],
        }
    }

    #[test]
    fn neighbouring_keys_have_prints_of_their_own_that_fill_the_table_evenly() {
        let printer = Printer::new();
        let prints: Vec<Print> = (0..100_000).map(|n| printer.of(&key(n))).collect();
        let distinct: HashSet<u64> = prints.iter().map(|print| print.0).collect();
        assert_eq!(distinct.len(), prints.len());
        let slots: HashSet<u64> = prints.iter().map(|print| print.0 >> 2 & 0xffff).collect();
        // Of 65,536 slots, 1/e^1.53 stay empty: 14,200, give or take 100.
        assert!((50_300..=52_300).contains(&slots.len()), "{}", slots.len());
    }

    #[test]
    fn a_direction_and_its_answer_differ() {
        let printer = Printer::new();
        assert_ne!(printer.of(&key(7)), printer.of(&key(7).reversed()));
        let udp = Key {
            protocol: 17,
            ..key(7)
        };
        assert_ne!(printer.of(&key(7)), printer.of(&udp));
    }

    #[test]
    fn only_what_is_asked_for_is_noted() {
        let printer = Printer::new();
        let print = |n| printer.of(&key(n));
        let mut peers = Peers::wanted(3000, (0..3000).map(print));
        for n in 0..10_000 {
            // Of those asked for, a third is missing, a third alive.
            match n % 3 {
                1 => peers.note(print(n).noting(Found::Alive)),
                2 => peers.note(print(n).noting(Found::Expired)),
                _ => {}
            }
        }
        for n in 0..3000 {
            let expected = [Found::Nothing, Found::Alive, Found::Expired][n as usize % 3];
            assert_eq!(peers.found(print(n)), expected, "{n}");
        }
    }

    #[test]
    fn nothing_is_asked_for() {
        let print = Printer::new().of(&key(1));
        let mut peers = Peers::wanted(0, std::iter::empty());
        peers.note(print.noting(Found::Expired));
        assert_eq!(peers.found(print), Found::Nothing);
    }
}
