//! When a family's flows are swept next. Each family has a table and a schedule of its own, and each sweep says by what it
//! found how soon the next one is worth its while. Between bounds: neither does a busy table take all the time, nor does an
//! idle one put the sweep off for hours.

use core::marker::PhantomData;

use crate::addr::Address;

/// How long after the end of one sweep of the family's table the next one is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule<A> {
    seconds: u32,
    family: PhantomData<A>,
}

/// What a pass over a table found. Entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Looked at.
    pub scanned: usize,
    /// Forgotten.
    pub forgotten: usize,
    /// The pass forgot as many as it may: more may be over.
    pub is_cut: bool,
}

impl<A: Address> Schedule<A> {
    /// Before there was a sweep.
    pub const FIRST: Self = Self::every(60);
    /// An eighth of the shortest life of a UDP flow ([`Timeouts`](crate::lifetime::Timeouts)).
    pub const SHORTEST: Self = Self::every(15);
    /// What is over stays for as long as a TCP handshake may take, and no longer.
    pub const LONGEST: Self = Self::every(240);
    /// A pass has left something over.
    pub const AT_ONCE: Self = Self::every(0);

    const fn every(seconds: u32) -> Self {
        Self {
            seconds,
            family: PhantomData,
        }
    }

    /// A schedule as it was kept ([`Self::seconds`]); whatever was, within the bounds.
    #[must_use]
    pub fn kept(seconds: u32) -> Self {
        match seconds {
            0 => Self::AT_ONCE,
            _ => Self::every(seconds.clamp(Self::SHORTEST.seconds, Self::LONGEST.seconds)),
        }
    }

    /// Seconds from one sweep to the next.
    #[must_use]
    pub fn seconds(self) -> u32 {
        self.seconds
    }

    /// The schedule after a pass. A quarter of the table was over: twice as soon; not one entry in 64: half as soon. What is
    /// over for longest is then about as much as what a table of that size has to forget at a time.
    #[must_use]
    pub fn after(self, found: Found) -> Self {
        if found.is_cut {
            return Self::AT_ONCE;
        }
        let seconds = self.seconds.max(Self::SHORTEST.seconds);
        let share = |of: usize| found.forgotten.saturating_mul(of);
        if found.forgotten > 0 && share(4) >= found.scanned {
            Self::kept(seconds / 2)
        } else if share(64) < found.scanned || found.scanned == 0 {
            Self::kept(seconds * 2)
        } else {
            Self::kept(seconds)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type V4 = Schedule<[u8; 4]>;

    fn found(scanned: usize, forgotten: usize) -> Found {
        Found {
            scanned,
            forgotten,
            is_cut: false,
        }
    }

    /// The seconds after each of some sweeps that all found the same.
    fn seconds(mut schedule: V4, found: Found) -> [u32; 4] {
        [(); 4].map(|()| {
            schedule = schedule.after(found);
            schedule.seconds()
        })
    }

    #[test]
    fn many_idle_flows_bring_the_next_sweep_closer_to_a_bound() {
        assert_eq!(seconds(V4::LONGEST, found(1000, 250)), [120, 60, 30, 15]);
        assert_eq!(seconds(V4::SHORTEST, found(1000, 1000)), [15; 4]);
    }

    #[test]
    fn a_sweep_for_nothing_puts_the_next_one_off_to_a_bound() {
        assert_eq!(seconds(V4::FIRST, found(1000, 0)), [120, 240, 240, 240]);
        assert_eq!(
            seconds(V4::FIRST, found(0, 0)),
            [120, 240, 240, 240],
            "an empty table"
        );
        assert_eq!(seconds(V4::SHORTEST, found(1000, 15)), [30, 60, 120, 240]);
    }

    #[test]
    fn what_is_worth_a_sweep_is_worth_one_at_the_same_interval() {
        for forgotten in [16, 100, 249] {
            assert_eq!(seconds(V4::FIRST, found(1000, forgotten)), [60; 4]);
        }
    }

    #[test]
    fn a_pass_that_was_cut_is_followed_by_another_and_then_by_a_usual_interval() {
        let cut = Found {
            is_cut: true,
            ..found(1_000_000, 131_072)
        };
        let schedule = V4::FIRST.after(cut);
        assert_eq!(schedule, V4::AT_ONCE);
        assert_eq!(V4::kept(schedule.seconds()), V4::AT_ONCE, "it is kept");
        assert_eq!(seconds(schedule, found(1000, 100)), [15; 4]);
    }

    proptest! {
        #[test]
        fn no_interval_leaves_the_bounds(seconds: u32, scanned: u32, forgotten: u32) {
            let after = V4::kept(seconds).after(found(scanned as usize, forgotten as usize));
            prop_assert!((V4::SHORTEST.seconds()..=V4::LONGEST.seconds()).contains(&after.seconds()));
            prop_assert_eq!(V4::kept(after.seconds()), after);
        }

        #[test]
        fn who_finds_more_sweeps_no_later(seconds: u32, scanned: u16, one: u16, other: u16) {
            let after = |forgotten: u16| {
                V4::kept(seconds).after(found(scanned.into(), forgotten.min(scanned).into())).seconds()
            };
            prop_assert!(after(one.max(other)) <= after(one.min(other)));
        }
    }
}
