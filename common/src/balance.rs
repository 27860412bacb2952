//! The slot of a connection in `cwy_backends`.
//!
//! Userspace fills the slots by Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4), so that a backend that comes or
//! goes moves few others. A connection that is known stays where it is: the table is asked once for each.

/// Slots of `cwy_backends`. A prime, as the method needs, and more than a hundred times the backends that there may be.
pub const BACKEND_SLOTS: usize = 4093;
/// Backends that there may be.
pub const BACKENDS: usize = 32;
/// Slots that are tried for a connection whose tuple is another's towards its backend.
pub const BACKEND_TRIES: u32 = 4;

const _: () = assert!(BACKEND_SLOTS > 100 * BACKENDS);

/// The slot of a connection with this [hash](crate::tuple::FlowKey::hash), at try number `attempt` below
/// [`BACKEND_TRIES`].
#[inline(always)]
pub fn slot(hash: u32, attempt: u32) -> u32 {
    // Far from each other, so that two tries of a connection seldom meet one backend.
    hash.wrapping_add(attempt.wrapping_mul(0x9e37_79b1)) % BACKEND_SLOTS as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_somebodys_and_tries_differ() {
        let mut seen = vec![0u32; BACKEND_SLOTS];
        for hash in (0..u32::MAX).step_by(65_537) {
            for attempt in 0..BACKEND_TRIES {
                seen[slot(hash, attempt) as usize] += 1;
            }
            assert_ne!(slot(hash, 0), slot(hash, 1));
        }
        assert!(seen.iter().all(|&count| count > 0));
    }
}
