//! How long an idle flow is remembered.

use crate::{
    addr::Address,
    flow::{FlowEntry, Progress, State},
    tuple,
};

/// Idle times in seconds after which a flow may be forgotten. The kernel's `nf_conntrack` sysctls, not below the
/// floors of RFC 5382 (TCP), RFC 4787 (UDP) and RFC 5508 (ICMP); see [`Timeouts::DEFAULT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// An offer that the stack has not answered.
    pub offered: u32,
    /// TCP before the handshake is over.
    pub tcp_opening: u32,
    /// TCP after the handshake.
    pub tcp_established: u32,
    /// TCP after a FIN of both sides.
    pub tcp_closing: u32,
    /// TCP after a RST.
    pub tcp_reset: u32,
    /// UDP, one side has spoken.
    pub udp: u32,
    /// UDP, both sides have spoken.
    pub udp_stream: u32,
    /// ICMP echo.
    pub icmp: u32,
}

impl Timeouts {
    /// Linux's defaults where they are above the RFCs' floors, else the floors: RFC 5382 REQ-5 asks for 2 h 4 min
    /// established and 4 min transitory, RFC 4787 REQ-5 for 2 min, RFC 5508 REQ-2 for 60 s.
    pub const DEFAULT: Self = Self {
        offered: 10,
        tcp_opening: 240,
        tcp_established: 432_000,
        tcp_closing: 240,
        tcp_reset: 240,
        udp: 120,
        udp_stream: 300,
        icmp: 60,
    };

    /// The least values that the RFCs named at [`Self::DEFAULT`] allow.
    pub const FLOOR: Self = Self {
        offered: 10,
        tcp_opening: 240,
        tcp_established: 7_440,
        tcp_closing: 240,
        tcp_reset: 240,
        udp: 120,
        udp_stream: 120,
        icmp: 60,
    };

    /// Each with its name, as `causeway status --json` gives it.
    pub const fn named(&self) -> [(&'static str, u32); 8] {
        [
            ("offered", self.offered),
            ("tcpOpening", self.tcp_opening),
            ("tcpEstablished", self.tcp_established),
            ("tcpClosing", self.tcp_closing),
            ("tcpReset", self.tcp_reset),
            ("udp", self.udp),
            ("udpStream", self.udp_stream),
            ("icmp", self.icmp),
        ]
    }

    /// Idle time in seconds after which `entry` may be forgotten.
    #[inline(always)]
    pub fn of<A: Address>(&self, entry: &FlowEntry<A>, protocol: u8) -> u32 {
        if entry.state == State::OFFERED {
            return self.offered;
        }
        let both_spoke = entry.progress().both(Progress::SPOKE);
        match protocol {
            tuple::TCP if entry.progress().either(Progress::RST) => self.tcp_reset,
            tuple::TCP if entry.progress().both(Progress::FIN) => self.tcp_closing,
            tuple::TCP if both_spoke && entry.progress().either(Progress::PAST_SYN) => self.tcp_established,
            tuple::TCP => self.tcp_opening,
            _ if protocol == A::ICMP => self.icmp,
            tuple::UDP if !both_spoke => self.udp,
            // Without ports a mapping is the only one of its protocol towards the remote: it is not given up early.
            _ => self.udp_stream,
        }
    }

    /// Whether `entry`, last seen at `last_seen`, may be forgotten at `now` (seconds of the same clock). A clock
    /// that another CPU read later does not expire anything.
    #[inline(always)]
    pub fn expired<A: Address>(&self, entry: &FlowEntry<A>, protocol: u8, last_seen: u32, now: u32) -> bool {
        let idle = now.wrapping_sub(last_seen);
        idle < u32::MAX / 2 && idle > self.of(entry, protocol)
    }

    /// Whether a sweep may forget `entry` at `now` (`CLOCK_MONOTONIC` seconds). `peer` is what the table holds under
    /// [`FlowEntry::peer_key`].
    ///
    /// Both directions must have been idle, each for its own time: traffic of one keeps the other. So the answer is
    /// the same for both halves of a pair, and they go together. An offer goes by itself: no translation depends on
    /// it, and what the stack does with it is learnt again.
    #[inline(always)]
    pub fn forgets<A: Address>(
        &self,
        protocol: u8,
        entry: &FlowEntry<A>,
        peer: Option<&FlowEntry<A>>,
        now: u32,
    ) -> bool {
        let expired = |entry: &FlowEntry<A>| self.expired(entry, protocol, entry.last_seen, now);
        expired(entry) && (entry.state == State::OFFERED || peer.is_none_or(expired))
    }
}

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// Whole seconds of `nanoseconds`.
#[inline(always)]
pub const fn seconds(nanoseconds: u64) -> u32 {
    (nanoseconds / SECOND) as u32
}

/// Whether `nanoseconds` belong to `second`. A packet has no time for the division.
#[inline(always)]
pub const fn is_within(second: u32, nanoseconds: u64) -> bool {
    nanoseconds.wrapping_sub(second as u64 * SECOND) < SECOND
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(state: u8, progress: Progress) -> FlowEntry<[u8; 4]> {
        FlowEntry {
            state,
            progress: progress.bits(),
            ..FlowEntry::offer(7, [2; 6], 100)
        }
    }

    #[test]
    fn tcp_lives_by_what_both_sides_have_sent() {
        let t = Timeouts::DEFAULT;
        let carried = |progress| t.of(&entry(State::CARRIED, progress), tuple::TCP);
        let answered = Progress::SPOKE.and_peer(Progress::SPOKE);
        assert_eq!(carried(Progress::SPOKE), t.tcp_opening);
        assert_eq!(
            carried(answered),
            t.tcp_opening,
            "nobody has acknowledged the answer"
        );
        let spoke = answered.with(Progress::PAST_SYN);
        assert_eq!(carried(spoke), t.tcp_established);
        assert_eq!(carried(answered.and_peer(Progress::PAST_SYN)), t.tcp_established);
        assert_eq!(
            carried(spoke.with(Progress::FIN)),
            t.tcp_established,
            "half closed may stay long"
        );
        assert_eq!(
            carried(spoke.with(Progress::FIN).and_peer(Progress::FIN)),
            t.tcp_closing
        );
        assert_eq!(carried(spoke.and_peer(Progress::RST)), t.tcp_reset);
    }

    #[test]
    fn an_offer_lives_for_seconds_whatever_the_protocol() {
        for protocol in [tuple::TCP, tuple::UDP, tuple::ICMP] {
            assert_eq!(
                Timeouts::DEFAULT.of(&entry(State::OFFERED, Progress::SPOKE), protocol),
                10
            );
        }
    }

    #[test]
    fn nothing_expires_before_its_time_or_by_a_clock_that_runs_ahead() {
        let t = Timeouts::DEFAULT;
        let udp = entry(State::CARRIED, Progress::SPOKE);
        assert!(!t.expired(&udp, tuple::UDP, 100, 100 + t.udp));
        assert!(t.expired(&udp, tuple::UDP, 100, 101 + t.udp));
        assert!(!t.expired(&udp, tuple::UDP, 101, 100));
    }

    #[test]
    fn traffic_of_one_half_keeps_both() {
        let t = Timeouts::DEFAULT;
        let quiet = entry(State::CARRIED, Progress::SPOKE);
        let busy = FlowEntry {
            last_seen: 1_000,
            ..quiet
        };
        assert!(!t.forgets(tuple::UDP, &quiet, Some(&busy), 1_001));
        assert!(!t.forgets(tuple::UDP, &busy, Some(&quiet), 1_001));
        assert!(t.forgets(tuple::UDP, &quiet, Some(&quiet), 1_001));
        assert!(t.forgets(tuple::UDP, &quiet, None, 1_001), "alone");
    }

    #[test]
    fn an_offer_goes_by_itself() {
        let t = Timeouts::DEFAULT;
        let busy = FlowEntry {
            last_seen: 1_000,
            ..entry(State::CARRIED, Progress::SPOKE)
        };
        assert!(t.forgets(
            tuple::ICMP,
            &entry(State::OFFERED, Progress::NONE),
            Some(&busy),
            1_001
        ));
    }

    fn any_entry() -> impl Strategy<Value = FlowEntry<[u8; 4]>> {
        (1..=3u8, 0..=0xffu8, any::<u32>()).prop_map(|(state, progress, last_seen)| FlowEntry {
            last_seen,
            ..entry(state, Progress::from_bits(progress))
        })
    }

    /// A time near one at which the entry expires, on either side.
    fn around(entry: FlowEntry<[u8; 4]>, protocol: u8, offset: i32) -> u32 {
        let end = entry
            .last_seen
            .wrapping_add(Timeouts::DEFAULT.of(&entry, protocol));
        end.wrapping_add_signed(offset)
    }

    proptest! {
        #[test]
        fn a_time_belongs_to_its_second_alone(second in 1u32..u32::MAX, rest in 0..SECOND) {
            for rest in [0, rest, SECOND - 1] {
                let nanoseconds = u64::from(second) * SECOND + rest;
                prop_assert_eq!(seconds(nanoseconds), second);
                let belongs = [second - 1, second, second + 1].map(|second| is_within(second, nanoseconds));
                prop_assert_eq!(belongs, [false, true, false]);
            }
        }

        #[test]
        fn nothing_is_forgotten_before_its_time(
            entry in any_entry(),
            peer in proptest::option::of(any_entry()),
            protocol in prop_oneof![Just(tuple::TCP), Just(tuple::UDP), Just(tuple::ICMP), any::<u8>()],
            offset in -500_000..500_000i32,
        ) {
            let t = Timeouts::DEFAULT;
            let now = around(entry, protocol, offset);
            if t.forgets(protocol, &entry, peer.as_ref(), now) {
                prop_assert!(offset > 0, "forgotten {offset} s after its end");
            } else if offset > 0 {
                let peer_lives = peer.is_some_and(|peer| !t.expired(&peer, protocol, peer.last_seen, now));
                prop_assert!(peer_lives && entry.state != State::OFFERED, "kept for nobody");
            }
        }

        #[test]
        fn halves_of_a_pair_go_together(
            one in any_entry(),
            mut other in any_entry(),
            protocol in prop_oneof![Just(tuple::TCP), Just(tuple::UDP), Just(tuple::ICMP)],
            offset in -500_000..500_000i32,
            apart in -500_000..500_000i32,
        ) {
            prop_assume!(one.state != State::OFFERED && other.state != State::OFFERED);
            other.last_seen = one.last_seen.wrapping_add_signed(apart);
            let now = around(one, protocol, offset);
            let t = Timeouts::DEFAULT;
            prop_assert_eq!(
                t.forgets(protocol, &one, Some(&other), now),
                t.forgets(protocol, &other, Some(&one), now)
            );
        }

        #[test]
        fn a_clock_that_runs_ahead_forgets_nothing(
            entry in any_entry(),
            protocol: u8,
            ahead in 1..1_000_000_000u32,
        ) {
            let now = entry.last_seen.wrapping_sub(ahead);
            prop_assert!(!Timeouts::DEFAULT.forgets(protocol, &entry, None, now));
        }
    }

    #[test]
    fn no_default_is_below_its_floor() {
        let named = Timeouts::DEFAULT.named();
        assert_eq!(named.len(), size_of::<Timeouts>() / 4, "all are there");
        for ((name, default), (_, floor)) in named.into_iter().zip(Timeouts::FLOOR.named()) {
            assert!(default >= floor, "{name}");
        }
    }
}
