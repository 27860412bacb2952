//! The API server's backends in the maps: which of them stands in which slot.

use std::net::Ipv4Addr;

use causeway_common::{
    addr::Address as _,
    balance::BACKEND_SLOTS,
    maps::{Backend, Balancer},
};
use sha1::{Digest as _, Sha1};

use super::{Datapath, DatapathError, tables::Tables};
use crate::settings::ApiServer;

const NOBODY: Backend<[u8; 4]> = Backend {
    addr: <[u8; 4]>::UNSPECIFIED,
};

impl Datapath {
    /// How the API server's virtual address is spread.
    pub fn balancer(&self) -> Result<Balancer, DatapathError> {
        self.tables.balancer()
    }

    /// The backend in a slot, network order; unspecified if nobody stands there.
    pub fn backend_at(&self, slot: u32) -> Result<[u8; 4], DatapathError> {
        self.tables.slot(slot).map(|backend| backend.addr)
    }
}

impl Tables {
    /// Makes the programs spread connections over the backends, if that is to be done. Returns whether anything had to be
    /// changed. What is not to be done any more the ranges say; the slots are left.
    pub(crate) fn set_balancer(&self, server: Option<&ApiServer>) -> Result<bool, DatapathError> {
        let Some((server, backends)) = server.and_then(|server| Some((server, server.backends.as_ref()?)))
        else {
            return Ok(false);
        };
        let mut changed = self.set_slots(&slots(backends))?;
        let mut ports = Balancer::default();
        for (place, port) in ports.ports.iter_mut().zip(&server.ports) {
            *place = port.to_be_bytes();
        }
        if self.balancer()? != ports {
            self.set_balancer_ports(&ports)?;
            changed = true;
        }
        Ok(changed)
    }
}

/// Who stands in which slot, by Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): each backend has an order of its
/// own in which it asks for slots, and they take turns. Without backends there is nobody.
fn slots(backends: &[Ipv4Addr]) -> Vec<Backend<[u8; 4]>> {
    let mut table = vec![NOBODY; BACKEND_SLOTS];
    let mut backends = backends.to_vec();
    backends.sort_unstable();
    backends.dedup();
    if backends.is_empty() {
        return table;
    }
    let mut orders: Vec<Order> = backends.iter().map(|address| Order::of(*address)).collect();
    let mut free = table.len();
    while free > 0 {
        for (address, order) in backends.iter().zip(&mut orders) {
            if free == 0 {
                break;
            }
            // The order visits every slot once, so there is a free one ahead.
            let slot = loop {
                let slot = order.next();
                if table[slot] == NOBODY {
                    break slot;
                }
            };
            table[slot] = Backend {
                addr: address.octets(),
            };
            free -= 1;
        }
    }
    table
}

/// The order in which a backend asks for slots. It depends on the backend alone, so every node has the same.
struct Order {
    at: usize,
    step: usize,
}

impl Order {
    fn of(address: Ipv4Addr) -> Self {
        let hash = Sha1::digest(address.octets());
        let word =
            |at: usize| u32::from_be_bytes([hash[at], hash[at + 1], hash[at + 2], hash[at + 3]]) as usize;
        Self {
            at: word(0) % BACKEND_SLOTS,
            // The number of slots is a prime: any step from 1 on visits all.
            step: word(4) % (BACKEND_SLOTS - 1) + 1,
        }
    }

    fn next(&mut self) -> usize {
        let slot = self.at;
        self.at = (self.at + self.step) % BACKEND_SLOTS;
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: u8) -> Vec<Ipv4Addr> {
        (0..count)
            .map(|host| Ipv4Addr::new(10, 226, 0, 5 + host))
            .collect()
    }

    fn share(table: &[Backend<[u8; 4]>], backend: Ipv4Addr) -> usize {
        table.iter().filter(|slot| slot.addr == backend.octets()).count()
    }

    /// The paper's section 5.3: the table's size over the number of backends bounds the difference of the shares.
    #[test]
    fn every_backend_has_an_equal_share() {
        for count in [1, 2, 3, 5, 9, 32] {
            let backends = backends(count);
            let table = slots(&backends);
            let even = BACKEND_SLOTS / usize::from(count);
            for backend in &backends {
                let share = share(&table, *backend);
                assert!((even..=even + 1).contains(&share), "{backend}: {share} of {even}");
            }
        }
    }

    #[test]
    fn a_backend_that_goes_moves_few_connections_of_the_others_and_gets_its_own_back() {
        for count in [2, 3, 5, 9] {
            let all = backends(count);
            let before = slots(&all);
            for gone in &all {
                let rest: Vec<_> = all.iter().copied().filter(|backend| backend != gone).collect();
                let after = slots(&rest);
                let pairs = before.iter().zip(&after);
                let moved = pairs.filter(|(before, after)| before != after && before.addr != gone.octets());
                let moved = moved.count();
                assert!(
                    moved * 20 < BACKEND_SLOTS,
                    "{moved} of {BACKEND_SLOTS} with {count} backends"
                );
                assert_eq!(share(&after, *gone), 0);
            }
            assert_eq!(slots(&all), before, "the same backends, the same table");
        }
    }

    #[test]
    fn the_order_in_which_backends_are_named_does_not_matter() {
        let mut reversed = backends(5);
        reversed.reverse();
        reversed.push(reversed[0]);
        assert_eq!(slots(&backends(5)), slots(&reversed));
        assert!(slots(&[]).iter().all(|slot| *slot == NOBODY));
    }
}
