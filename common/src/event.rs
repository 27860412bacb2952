//! What the programs tell about a packet that they drop, for `causeway monitor`. Counters are complete; events are
//! samples, so many a second, CPU and reason, and none while the buffer is full.

/// Bytes of the packet that an event carries: the IPv4 header with options and the first of what follows it.
pub const EVENT_PACKET: usize = 64;
/// Events a second, CPU and reason.
pub const EVENT_RATE: u32 = 8;

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
    /// [`Reason`](crate::reason::Reason) as a number.
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

const _: () = assert!(size_of::<Event>() == 8 + 4 + 4 + 1 + 1 + 2 + 4 + EVENT_PACKET);
