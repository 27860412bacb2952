//! The differences that are right and wanted: the rows of `docs/parity.md`. Each says exactly what either side does.

use std::net::Ipv4Addr;

use causeway_tests::fabric::NODE;

use crate::{
    canonical::{fragment_offset, source},
    frames::Output,
    lane::WIRE,
    packet::End,
    script::Shot,
};

/// A difference that a row of the document describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Difference {
    /// Row 1: an ACK of a pod that belongs to no flow. Conntrack makes it a new connection (`nf_conntrack_tcp_loose`), Causeway
    /// drops it.
    MidFlow,
    /// Row 1: a packet of a pod that belongs to no flow and opens none, which conntrack calls INVALID: nf_nat lets it out with
    /// the pod's address, Causeway drops it.
    InvalidLeaks,
    /// Row 2: a pod's packet of a flow, which conntrack calls INVALID: nf_nat lets it out with the pod's address, Causeway
    /// translates it and leaves it as it is.
    InvalidFromPod,
    /// Row 2: the same from outside. nf_nat does not know it and the node drops it, Causeway delivers it.
    InvalidFromOutside,
    /// Row 3: a source address that is not the pod's. nf_nat translates it like any other, Causeway drops it.
    Spoofed,
    /// Row 3: a pod's source address from outside, for another pod. The kernel forwards it, Causeway drops it.
    SpoofedFromOutside,
    /// Row 4: an answer of which conntrack no longer knows the question. Causeway remembers it longer.
    Outlives,
    /// Row 5: a datagram's first fragment, after all others. nf_nat has held them and sends them on behind it; Causeway has let
    /// them go.
    LateHead,
    /// Row 5: SCTP of a pod to a remote that another pod has an association with. nf_nat translates the port, Causeway drops it.
    SecondAssociation,
}

impl Difference {
    /// nf_nat has a mapping of which Causeway knows nothing.
    pub(crate) fn is_mapped_by_nf_nat_alone(self) -> bool {
        matches!(self, Self::MidFlow | Self::Spoofed | Self::SecondAssociation)
    }

    /// Whether this is what the row describes, and nothing else.
    pub(crate) fn describes(self, shot: &Shot, left: &[Output<'_>], right: &[Output<'_>]) -> bool {
        let End::At(sender, _) = shot.spec.src else {
            return false;
        };
        match self {
            Self::MidFlow | Self::Spoofed | Self::SecondAssociation => {
                leaves_once(left, NODE) && right.is_empty()
            }
            Self::InvalidLeaks => leaves_once(left, sender) && right.is_empty(),
            Self::InvalidFromPod => leaves_once(left, sender) && leaves_once(right, NODE),
            Self::InvalidFromOutside => left.is_empty() && arrives_once(right),
            Self::SpoofedFromOutside => arrives_once(left) && right.is_empty(),
            Self::LateHead => {
                left.len() > 1
                    && right.len() == 1
                    && right.iter().chain(left).all(|out| out.point == right[0].point)
                    && fragment_offset(right[0].bytes) == 0
            }
            // The node itself says that nobody listens.
            Self::Outlives => leaves_once(left, NODE) && arrives_once(right),
        }
    }
}

fn arrives_once(outputs: &[Output<'_>]) -> bool {
    outputs.len() == 1 && outputs[0].point != WIRE
}

fn leaves_once(outputs: &[Output<'_>], from: Ipv4Addr) -> bool {
    outputs.len() == 1 && outputs[0].point == WIRE && source(outputs[0].bytes) == from
}
