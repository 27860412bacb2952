//! What an interface has received.

use causeway_tests::{
    capture::Capture,
    frame::{Frame, Packet},
};

use crate::side::A_WHILE;

/// The packet that comes in while everything that was sent before is dealt with.
pub(crate) fn arrival(wire: &Capture, wanted: impl Fn(&Packet) -> bool) -> Option<Packet> {
    wire.wait(A_WHILE, |frame| {
        packet_of(frame).filter(|ip| !frame.outgoing && wanted(ip))
    })
}

/// A packet that an interface has received.
pub(crate) fn received(wire: &Capture, wanted: impl Fn(&Packet) -> bool) -> Option<Packet> {
    all_received(wire, wanted).into_iter().next()
}

/// Every such packet.
pub(crate) fn all_received(wire: &Capture, wanted: impl Fn(&Packet) -> bool) -> Vec<Packet> {
    let frames = wire.so_far().into_iter().filter(|frame| !frame.outgoing);
    frames
        .filter_map(|frame| packet_of(&frame).filter(|ip| wanted(ip)))
        .collect()
}

/// The packet in a frame, of either family.
pub(crate) fn packet_of(frame: &Frame) -> Option<Packet> {
    frame.ip.clone().or_else(|| frame.ipv6.clone())
}
