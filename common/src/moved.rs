//! Which port a flow was given in place of its own.
//!
//! Candidates depend on what was free when the flow began, and are no way back to its port once that has changed: its own
//! port may be free again, or the map of a crowded remote's ports may have chosen. So a flow with another port than its
//! own leaves a hint, found by the hash of its tuple. It decides nothing: the entry of the answers says whose the port is,
//! and a hint that is lost or wrong costs a lookup.

/// Elements of `cwy_moved`: one for each value of the hash's lower half.
pub const MOVED_ENTRIES: usize = 1 << 16;
/// Hints in an element. A hint is lost when so many flows of the same element have been moved after its own. Of the first of
/// 65,536 flows that are moved (a pod's quota) that is 1 in 100,000, of the first of 262,144 (a full table) 1 in 20.
pub const HINTS: usize = 8;

/// Value of `cwy_moved`: hints to the ports of flows whose hashes have the same lower half.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The latest comes first. In the upper half the flow's tag, which is not zero, in the lower its port, host order; 0: no
    /// hint.
    pub hints: [u32; HINTS],
}

const _: () = assert!(size_of::<Moved>() == 4 * HINTS);

/// The element of a flow; `hash` is the seeded hash of its tuple.
#[inline(always)]
pub fn index(hash: u32) -> u32 {
    hash % MOVED_ENTRIES as u32
}

/// What tells the flows of an element apart: the upper half of the hash, except that none has zero.
#[inline(always)]
fn tag(hash: u32) -> u32 {
    match hash >> 16 {
        0 => 1,
        tag => tag,
    }
}

impl Moved {
    /// The port that the flow was given, if there is a hint.
    #[inline(always)]
    pub fn port_of(&self, hash: u32) -> Option<u16> {
        for hint in self.hints {
            if hint >> 16 == tag(hash) {
                return Some(hint as u16);
            }
        }
        None
    }

    /// Notes that the flow was given `port`. What two CPUs write at the same time may cost a hint.
    #[inline(always)]
    pub fn note(&mut self, hash: u32, port: u16) {
        let mut pushed = tag(hash) << 16 | u32::from(port);
        for hint in &mut self.hints {
            let before = *hint;
            *hint = pushed;
            if before == 0 || before >> 16 == tag(hash) {
                return;
            }
            pushed = before;
        }
    }

    /// The flow has its own port, or none.
    #[inline(always)]
    pub fn forget(&mut self, hash: u32) {
        // It changes places with those behind it: no gap is left.
        for at in 1..HINTS {
            if self.hints[at - 1] >> 16 == tag(hash) {
                self.hints.swap(at - 1, at);
            }
        }
        let last = &mut self.hints[HINTS - 1];
        if *last >> 16 == tag(hash) {
            *last = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Hash of flow `n` of an element.
    fn flow(n: u32) -> u32 {
        n << 16 | 7
    }

    #[test]
    fn an_element_keeps_the_latest_hints() {
        let mut moved = Moved::default();
        let flows = HINTS as u32 + 3;
        for n in 1..=flows {
            moved.note(flow(n), n as u16 + 1000);
        }
        for n in 1..=flows {
            let expected = (n > 3).then_some(n as u16 + 1000);
            assert_eq!(moved.port_of(flow(n)), expected, "flow {n}");
        }
    }

    #[test]
    fn a_flow_that_is_forgotten_makes_room_for_the_next() {
        let mut moved = Moved::default();
        for n in 1..=HINTS as u32 {
            moved.note(flow(n), 1000);
        }
        moved.forget(flow(3));
        moved.note(flow(100), 1001);
        assert_eq!(
            (moved.port_of(flow(3)), moved.port_of(flow(100))),
            (None, Some(1001))
        );
        assert!(
            (1..=HINTS as u32)
                .filter(|&n| n != 3)
                .all(|n| moved.port_of(flow(n)) == Some(1000))
        );
    }

    #[test]
    fn flows_of_one_hash_share_a_hint_and_others_do_not() {
        let mut moved = Moved::default();
        assert_eq!(
            moved.port_of(0),
            None,
            "an empty element has no hint for a hash without upper half"
        );
        moved.note(0, 0);
        assert_eq!(moved.port_of(0), Some(0));
        assert_eq!(moved.port_of(flow(2)), None);
    }

    #[test]
    fn every_hash_has_its_element() {
        assert!(
            [0, 1, u32::MAX]
                .iter()
                .all(|&hash| (index(hash) as usize) < MOVED_ENTRIES)
        );
        assert_ne!(index(1), index(2));
        assert_eq!(index(flow(1)), index(flow(2)));
    }

    proptest! {
        /// While no more flows are moved than there are hints, it is a plain map.
        #[test]
        fn a_few_flows_have_the_port_that_they_were_given_last(
            ops in proptest::collection::vec((1..=HINTS as u32, proptest::option::of(any::<u16>())), 1..200),
        ) {
            let (mut moved, mut model) = (Moved::default(), BTreeMap::new());
            for (n, port) in ops {
                if let Some(port) = port {
                    moved.note(flow(n), port);
                    model.insert(n, port);
                } else {
                    moved.forget(flow(n));
                    model.remove(&n);
                }
                for n in 1..=HINTS as u32 {
                    prop_assert_eq!(moved.port_of(flow(n)), model.get(&n).copied(), "flow {}", n);
                }
            }
        }
    }
}
