//! Marks the map types as plain data for aya.

use crate::{
    crowd::Crowd,
    event::Event,
    flow::FlowEntry,
    fragment::{FragmentEntry, FragmentKey},
    maps::{
        Backend, Balancer, Budget, Config, Count, IfaceEntry, PodEntry, PortWord, RangeEntry, RangeKey,
        SweepJob, Usage,
    },
    tuple::FlowKey,
};

macro_rules! plain_data {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)`, integers and byte arrays only, and no padding (asserted beside each type), so every
            // bit pattern is a value and every byte is initialised.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

plain_data!(
    FlowKey<[u8; 4]>,
    FlowEntry<[u8; 4]>,
    FragmentKey<[u8; 4]>,
    FragmentEntry<[u8; 4]>,
    IfaceEntry<[u8; 4]>,
    Config<[u8; 4]>,
    PodEntry,
    RangeEntry,
    RangeKey<[u8; 4]>,
    PortWord,
    Balancer,
    Backend<[u8; 4]>,
    Count,
    Crowd<[u8; 4]>,
    Event,
    Usage,
    Budget,
    SweepJob,
);
