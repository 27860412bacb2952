//! Who is compared: Causeway, what it replaces, what the kernel offers, and what the machine allows.

/// A way to do a node's work, or a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Causeway, brought up by its CNI plug-in.
    Causeway,
    /// The same with XDP on the uplink; in one measure only.
    CausewayXdp,
    /// Another build of it, to compare with.
    OtherBuild,
    /// What Causeway replaces: bridge, br_netfilter and the MASQUERADE rule, by iptables-nft.
    BridgeNft,
    /// The same by iptables-legacy.
    BridgeLegacy,
    /// Routed veths and the MASQUERADE rule, by iptables-legacy.
    RoutedMasquerade,
    /// Routed veths and an nftables masquerade rule with a set.
    NftMasquerade,
    /// The same, and a flow table ([nf_flowtable]) that established flows go by. Not of every kernel.
    ///
    /// [nf_flowtable]: https://docs.kernel.org/networking/nf_flowtable.html
    FlowTable,
    /// Routed veths without translation: less than what is asked for.
    Routed,
    /// A bridge without translation.
    Bridge,
    /// The model of a feature-rich eBPF path.
    Model,
    /// A tc program at every hook that redirects without looking.
    BlindTc,
    /// An XDP program that redirects without looking.
    BlindXdp,
    /// No node at all: one veth pair from pod to far end.
    DirectVeth,
}

/// What a peer is to a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What is measured.
    Ours,
    /// What it replaces.
    Incumbent,
    /// What else there is.
    Neighbour,
    /// What the machine allows.
    Bound,
}

impl Peer {
    /// All that can be built from the repository and the distribution, in the order of the tables.
    pub(crate) const ALL: [Self; 13] = [
        Self::Causeway,
        Self::CausewayXdp,
        Self::BridgeNft,
        Self::BridgeLegacy,
        Self::RoutedMasquerade,
        Self::NftMasquerade,
        Self::FlowTable,
        Self::Routed,
        Self::Bridge,
        Self::Model,
        Self::BlindTc,
        Self::BlindXdp,
        Self::DirectVeth,
    ];

    /// The name in tables, results and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Causeway => "causeway",
            Self::CausewayXdp => "causeway-xdp",
            Self::OtherBuild => "other-build",
            Self::BridgeNft => "bridge-nft",
            Self::BridgeLegacy => "bridge-legacy",
            Self::RoutedMasquerade => "routed-masquerade",
            Self::NftMasquerade => "routed-nft",
            Self::FlowTable => "routed-flowtable",
            Self::Routed => "routed",
            Self::Bridge => "bridge",
            Self::Model => "model",
            Self::BlindTc => "blind-tc",
            Self::BlindXdp => "blind-xdp",
            Self::DirectVeth => "direct-veth",
        }
    }

    /// What it is.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Causeway => "Causeway through its CNI plug-in",
            Self::CausewayXdp => "the same with XDP on the uplink, for answers",
            Self::OtherBuild => "Causeway from the tree named with --other",
            Self::BridgeNft => "bridge, br_netfilter, the MASQUERADE rule by iptables-nft",
            Self::BridgeLegacy => "bridge, br_netfilter, the MASQUERADE rule by iptables-legacy",
            Self::RoutedMasquerade => "routed veth, the MASQUERADE rule by iptables-legacy",
            Self::NftMasquerade => "routed veth, masquerade in nftables",
            Self::FlowTable => "the same with a flow table, where the kernel has nf_flow_table",
            Self::Routed => "routed veth, no translation",
            Self::Bridge => "bridge, br_netfilter, no translation",
            Self::Model => "model of a feature-rich eBPF path: LPM, two LRU lookups, tail calls, fib lookup",
            Self::BlindTc => "tc program that redirects without looking",
            Self::BlindXdp => "XDP program that redirects without looking",
            Self::DirectVeth => "one veth pair, no node",
        }
    }

    /// What it is to a comparison.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Causeway | Self::CausewayXdp | Self::OtherBuild => Kind::Ours,
            Self::BridgeNft | Self::BridgeLegacy => Kind::Incumbent,
            Self::RoutedMasquerade
            | Self::NftMasquerade
            | Self::FlowTable
            | Self::Routed
            | Self::Bridge
            | Self::Model => Kind::Neighbour,
            Self::BlindTc | Self::BlindXdp | Self::DirectVeth => Kind::Bound,
        }
    }

    /// Whether it replaces a pod's address by the node's on the way to the internet.
    pub(crate) fn translates(self) -> bool {
        match self {
            Self::Causeway
            | Self::CausewayXdp
            | Self::OtherBuild
            | Self::BridgeNft
            | Self::BridgeLegacy
            | Self::RoutedMasquerade
            | Self::NftMasquerade
            | Self::FlowTable
            | Self::Model => true,
            Self::Routed | Self::Bridge | Self::BlindTc | Self::BlindXdp | Self::DirectVeth => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_of_one_peer() {
        for (index, peer) in Peer::ALL.iter().enumerate() {
            assert!(Peer::ALL[..index].iter().all(|other| other.name() != peer.name()));
        }
    }

    #[test]
    fn what_is_replaced_translates() {
        let incumbents = Peer::ALL.iter().filter(|peer| peer.kind() == Kind::Incumbent);
        assert!(incumbents.clone().count() == 2 && incumbents.clone().all(|peer| peer.translates()));
    }
}
