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
    /// TCP before both sides have spoken.
    pub tcp_opening: u32,
    /// TCP, both sides have spoken.
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
            tuple::TCP if both_spoke => self.tcp_established,
            tuple::TCP => self.tcp_opening,
            tuple::UDP if both_spoke => self.udp_stream,
            tuple::UDP => self.udp,
            _ => self.icmp,
        }
    }

    /// Whether `entry`, last seen at `last_seen`, may be forgotten at `now` (seconds of the same clock). A clock
    /// that another CPU read later does not expire anything.
    #[inline(always)]
    pub fn expired<A: Address>(&self, entry: &FlowEntry<A>, protocol: u8, last_seen: u32, now: u32) -> bool {
        let idle = now.wrapping_sub(last_seen);
        idle < u32::MAX / 2 && idle > self.of(entry, protocol)
    }
}

#[cfg(test)]
mod tests {
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
        let spoke = Progress::SPOKE.and_peer(Progress::SPOKE);
        assert_eq!(carried(Progress::SPOKE), t.tcp_opening);
        assert_eq!(carried(spoke), t.tcp_established);
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
    fn no_default_is_below_its_floor() {
        let Timeouts {
            offered,
            tcp_opening,
            tcp_established,
            tcp_closing,
            tcp_reset,
            udp,
            udp_stream,
            icmp,
        } = Timeouts::DEFAULT;
        let floor = Timeouts::FLOOR;
        assert!(offered >= floor.offered && tcp_opening >= floor.tcp_opening && icmp >= floor.icmp);
        assert!(tcp_established >= floor.tcp_established && tcp_closing >= floor.tcp_closing);
        assert!(tcp_reset >= floor.tcp_reset && udp >= floor.udp && udp_stream >= floor.udp_stream);
    }
}
