//! The maps of the ports of crowded remotes, seen from outside.

use aya::maps::{Array, MapData};
use causeway_common::crowd::{CROWD_SLOTS, Crowd};

use crate::bench::{Bench, Key, NODE};

type Slot = Crowd<[u8; 4]>;

impl Bench {
    /// Whether there is a map of the ports towards the remote of a flow `key`.
    pub(crate) fn is_crowded(&mut self, key: &Key) -> bool {
        let remote = Key {
            dst: NODE.octets(),
            dst_port: [0; 2],
            ..key.reversed()
        };
        self.crowds().iter().any(|slot| slot.unwrap().is_of(&remote))
    }

    /// Shows a port to be free towards the remote of an answer's key, as the programs do when they forget a flow.
    pub(crate) fn free_in_crowd(&mut self, answer: &Key) {
        let remote = Key {
            dst_port: [0; 2],
            ..*answer
        };
        let mut slots = self.crowds();
        for index in 0..CROWD_SLOTS as u32 {
            let mut slot = slots.get(&index, 0).unwrap();
            if slot.is_of(&remote) {
                slot.mark_free(u16::from_be_bytes(answer.dst_port));
                slots.set(index, slot, 0).unwrap();
            }
        }
    }

    /// Forgets all maps of ports, as userspace does after it has deleted flows.
    pub(crate) fn clear_crowds(&mut self) {
        let mut slots = self.crowds();
        for index in 0..CROWD_SLOTS as u32 {
            let slot = slots.get(&index, 0).unwrap();
            if slot.built != 0 {
                slots.set(index, Slot { built: 0, ..slot }, 0).unwrap();
            }
        }
    }

    fn crowds(&mut self) -> Array<&mut MapData, Slot> {
        Array::try_from(self.map("cwy_crowds")).unwrap()
    }
}
