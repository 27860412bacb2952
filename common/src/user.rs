//! Marks the map types as plain data for aya.

use crate::{
    addr::Address,
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

macro_rules! plain_data_of_a_family {
    ($($type:ident),+ $(,)?) => {
        $(
            // SAFETY: as above; [`Address`] is implemented for byte arrays of two lengths, for both of which the size is
            // asserted.
            unsafe impl<A: Address + aya::Pod> aya::Pod for $type<A> {}
        )+
    };
}

plain_data!(
    PodEntry,
    RangeEntry,
    PortWord,
    Balancer,
    Count,
    Event,
    Usage,
    Budget,
    SweepJob,
    Backend<[u8; 4]>,
    Crowd<[u8; 4]>,
);
plain_data_of_a_family!(
    FlowKey,
    FlowEntry,
    FragmentKey,
    FragmentEntry,
    IfaceEntry,
    RangeKey,
    Config
);
