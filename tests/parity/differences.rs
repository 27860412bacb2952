//! The differences that are right and wanted: the rows of `docs/parity.md`. Each says exactly what either side does.

use std::net::IpAddr;

use crate::{
    canonical::{are_joined, fragment_id, fragment_offset, source},
    family::Family,
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
    /// Row 6: what Causeway does not translate of IPv6. nf_nat does, Causeway drops it.
    Untranslated,
    /// Row 7: fragments of IPv6 that fit into one packet once the fragment header is gone. nf_nat sends the packet, Causeway the
    /// fragments.
    Rejoined,
}

impl Difference {
    /// nf_nat has a mapping of which Causeway knows nothing.
    pub(crate) fn is_mapped_by_nf_nat_alone(self) -> bool {
        matches!(
            self,
            Self::MidFlow | Self::Spoofed | Self::SecondAssociation | Self::Untranslated
        )
    }

    /// Whether this is what the row describes, and nothing else.
    pub(crate) fn describes(self, shot: &Shot, left: &[Output<'_>], right: &[Output<'_>]) -> bool {
        let End::At(sender, _) = shot.spec.src else {
            return false;
        };
        let node = Family::of(sender).node();
        match self {
            Self::MidFlow | Self::Spoofed | Self::SecondAssociation | Self::Untranslated => {
                leaves_once(left, node) && right.is_empty()
            }
            Self::InvalidLeaks => leaves_once(left, sender) && right.is_empty(),
            Self::InvalidFromPod => leaves_once(left, sender) && leaves_once(right, node),
            Self::InvalidFromOutside => left.is_empty() && arrives_once(right),
            Self::SpoofedFromOutside => arrives_once(left) && right.is_empty(),
            Self::LateHead => {
                left.len() > 1
                    && right.len() == 1
                    && right.iter().chain(left).all(|out| out.point == right[0].point)
                    && fragment_offset(right[0].bytes) == 0
            }
            Self::Rejoined => {
                let [whole] = left else { return false };
                !right.is_empty()
                    && right
                        .iter()
                        .all(|part| part.point == whole.point && fragment_id(part.bytes).is_some())
                    && are_joined(whole.bytes, right.iter().map(|part| part.bytes))
            }
            // The node itself says that nobody listens.
            Self::Outlives => leaves_once(left, node) && arrives_once(right),
        }
    }
}

fn arrives_once(outputs: &[Output<'_>]) -> bool {
    outputs.len() == 1 && outputs[0].point != WIRE
}

fn leaves_once(outputs: &[Output<'_>], from: IpAddr) -> bool {
    outputs.len() == 1 && outputs[0].point == WIRE && source(outputs[0].bytes) == Some(from)
}
