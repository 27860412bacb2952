//! The differences that are right and wanted: the rows of `docs/parity.md`. Each says exactly what either side does.

use causeway_tests::fabric::NODE;

use crate::{
    canonical::source,
    lane::{Output, WIRE},
    packet::End,
    script::Shot,
};

/// A row of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Difference {
    /// An ACK of a pod that belongs to no flow: conntrack makes it a new connection (`nf_conntrack_tcp_loose`), Causeway
    /// drops it.
    MidFlow,
    /// A packet of a pod that conntrack calls INVALID: nf_nat lets it out with the pod's address, Causeway drops it.
    InvalidLeaks,
    /// A wrong transport checksum from a pod, which conntrack calls INVALID: nf_nat lets it out with the pod's address, Causeway
    /// translates it and leaves the checksum as wrong as it was.
    ChecksumFromPod,
    /// The same from outside: nf_nat does not know it and the node drops it, Causeway delivers it, as wrong as it was.
    ChecksumFromOutside,
    /// An answer of which conntrack no longer knows the question: Causeway remembers it longer.
    Outlives,
    /// A source address that is not the pod's: nf_nat translates it like any other, Causeway drops it.
    Spoofed,
}

impl Difference {
    /// nf_nat has a mapping of which Causeway knows nothing.
    pub(crate) fn is_mapped_by_nf_nat_alone(self) -> bool {
        matches!(self, Self::MidFlow | Self::Spoofed)
    }

    /// Whether this is what the row describes, and nothing else.
    pub(crate) fn describes(self, shot: &Shot, left: &[&Output], right: &[&Output]) -> bool {
        let End::At(sender, _) = shot.spec.src else {
            return false;
        };
        match self {
            Self::MidFlow | Self::Spoofed => leaves_once(left, NODE) && right.is_empty(),
            Self::InvalidLeaks => leaves_once(left, sender) && right.is_empty(),
            Self::ChecksumFromPod => leaves_once(left, sender) && leaves_once(right, NODE),
            // The node itself says that nobody listens.
            Self::Outlives => leaves_once(left, NODE) && right.len() == 1 && right[0].point != WIRE,
            Self::ChecksumFromOutside => left.is_empty() && right.len() == 1 && right[0].point != WIRE,
        }
    }
}

fn leaves_once(outputs: &[&Output], from: std::net::Ipv4Addr) -> bool {
    outputs.len() == 1 && outputs[0].point == WIRE && source(&outputs[0].bytes) == from
}
