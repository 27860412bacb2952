//! What the programs tell of a packet, for `causeway monitor`: that it is dropped or refused, or begins a flow. Counters are
//! complete; events are samples, so many a second, CPU and reason, and none while the buffer is full.

use crate::{
    maps::EVENT_BYTES,
    reason::{Reason, Verdict},
};

/// Bytes of the packet that an event carries: the IPv4 header with options and the first of what follows it.
pub const EVENT_PACKET: usize = 64;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A packet that is dropped.
    Drop,
    /// What was asked for is refused: a connection, or a place in `cwy_flows`.
    Refusal,
    /// A packet that begins a flow, or a direction of one.
    Flow,
}

impl EventKind {
    /// What is to be told of a packet with this reason.
    #[inline(always)]
    pub const fn of(reason: Reason) -> Option<Self> {
        match (reason, reason.verdict()) {
            (_, Verdict::Dropped) => Some(Self::Drop),
            (_, Verdict::Refused) | (Reason::OfferRefused | Reason::OfferQuota, _) => Some(Self::Refusal),
            (Reason::Promoted | Reason::RecordedKernel | Reason::SnatPromoted | Reason::SnatKernel, _) => {
                Some(Self::Flow)
            }
            _ => None,
        }
    }

    /// [`Self::of`] for the number of a reason. By sets of bits: the kernel programs would branch for each reason.
    #[inline(always)]
    pub const fn of_number(reason: u32) -> Option<Self> {
        const DROPS: [u64; 2] = EventKind::Drop.reasons();
        const REFUSALS: [u64; 2] = EventKind::Refusal.reasons();
        const FLOWS: [u64; 2] = EventKind::Flow.reasons();
        if is_in(DROPS, reason) {
            Some(Self::Drop)
        } else if is_in(REFUSALS, reason) {
            Some(Self::Refusal)
        } else if is_in(FLOWS, reason) {
            Some(Self::Flow)
        } else {
            None
        }
    }

    /// Whether something is to be told of a packet with this reason when all has been done to it. Of a flow that begins
    /// with a translation it is told before, with the packet as the pod sent it.
    #[inline(always)]
    pub const fn is_told_last(reason: u32) -> bool {
        const TOLD: [u64; 2] = {
            let (drops, refusals, flows) = (
                EventKind::Drop.reasons(),
                EventKind::Refusal.reasons(),
                EventKind::Flow.reasons(),
            );
            let mut told = [
                drops[0] | refusals[0] | flows[0],
                drops[1] | refusals[1] | flows[1],
            ];
            let before = [Reason::SnatPromoted as usize, Reason::SnatKernel as usize];
            told[before[0] / 64] &= !(1 << (before[0] % 64));
            told[before[1] / 64] &= !(1 << (before[1] % 64));
            told
        };
        is_in(TOLD, reason)
    }

    /// Those of which an event of this kind is told, a bit each.
    const fn reasons(self) -> [u64; 2] {
        let mut set = [0; 2];
        let mut number = 0;
        while number < Reason::ALL.len() {
            if let Some(kind) = Self::of(Reason::ALL[number])
                && kind as u8 == self as u8
            {
                set[number / 64] |= 1 << (number % 64);
            }
            number += 1;
        }
        set
    }

    /// Events a second, CPU and reason.
    #[inline(always)]
    pub const fn rate(self) -> u32 {
        match self {
            Self::Drop | Self::Refusal => 8,
            Self::Flow => 64,
        }
    }

    /// Bytes of `cwy_events` that may be unread. There is always room for what goes wrong, however many flows begin.
    #[inline(always)]
    pub const fn room(self) -> u64 {
        match self {
            Self::Drop | Self::Refusal => EVENT_BYTES as u64,
            Self::Flow => EVENT_BYTES as u64 / 2,
        }
    }
}

#[inline(always)]
const fn is_in([low, high]: [u64; 2], number: u32) -> bool {
    let half = if number < 64 { low } else { high };
    number < 128 && half >> (number & 63) & 1 != 0
}

const _: () = assert!(Reason::ALL.len() <= 128);

/// Record of `cwy_events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC` nanoseconds, to the kernel's tick.
    pub time: u64,
    /// Index of the interface whose hook the packet passed.
    pub ifindex: u32,
    /// Length of the frame in bytes.
    pub length: u32,
    /// [`Reason`] as a number.
    pub reason: u8,
    /// [`EventHook`].
    pub hook: u8,
    /// How many bytes of `packet` were copied.
    pub captured: u16,
    /// Zero.
    pub _pad: u32,
    /// The packet from its network header on.
    pub packet: [u8; EVENT_PACKET],
}

/// Values of [`Event::hook`].
#[derive(Debug)]
pub struct EventHook;

impl EventHook {
    /// `cwy_from_pod`.
    pub const FROM_POD: u8 = 0;
    /// `cwy_to_pod`.
    pub const TO_POD: u8 = 1;
    /// `cwy_from_uplink`.
    pub const FROM_UPLINK: u8 = 2;
    /// `cwy_to_uplink`.
    pub const TO_UPLINK: u8 = 3;

    /// The word people see.
    pub const fn name(hook: u8) -> &'static str {
        match hook {
            Self::FROM_POD => "from_pod",
            Self::TO_POD => "to_pod",
            Self::FROM_UPLINK => "from_uplink",
            _ => "to_uplink",
        }
    }
}

const _: () = assert!(EventKind::Flow.room() < EventKind::Drop.room());
const _: () = assert!(size_of::<Event>() == 8 + 4 + 4 + 1 + 1 + 2 + 4 + EVENT_PACKET);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_reason_tells_as_much_as_the_reason() {
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(EventKind::of_number(number as u32), EventKind::of(*reason));
            let is_told_before = matches!(reason, Reason::SnatPromoted | Reason::SnatKernel);
            let is_told = EventKind::of(*reason).is_some() && !is_told_before;
            assert_eq!(EventKind::is_told_last(number as u32), is_told);
        }
        for number in [Reason::ALL.len() as u32, 127, 128, 192, u32::MAX] {
            assert_eq!(EventKind::of_number(number), None, "{number}");
        }
    }
}
