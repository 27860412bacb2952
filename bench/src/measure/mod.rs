//! The measures, by name.

mod disturbed;
mod families;
mod first;
mod paths;
mod plugins;
mod programs;
mod scale;
mod sockets;

use anyhow::Result;

use crate::{
    facts::{self, Fact},
    peer::Peer,
    rounds::{Outcome, Plan},
    stand::{Build, Stand},
};

/// What a measure works with.
#[derive(Debug)]
pub(crate) struct Hall {
    /// The peers, built side by side, with four pods each.
    pub(crate) stands: Vec<Stand>,
    /// What the other build is made of.
    pub(crate) build: Build,
    /// How long and how often.
    pub(crate) plan: Plan,
}

/// A measure.
#[derive(Clone, Copy)]
pub(crate) struct Measure {
    /// Its name on the command line; also the name of its outcome.
    pub(crate) name: &'static str,
    /// What is measured, in a sentence.
    pub(crate) title: &'static str,
    /// Whether `--quick` runs it.
    pub(crate) quick: bool,
    run: fn(&Self, &Hall) -> Result<Outcome>,
}

/// All of them, in the order in which they run.
pub(crate) const ALL: &[Measure] = &[
    Measure {
        name: "snat",
        title: "SNAT egress: 60-byte UDP frames, 1024 flows, pod to internet, one CPU",
        quick: true,
        run: paths::snat,
    },
    Measure {
        name: "reverse",
        title: "answers to translated flows: 60-byte UDP frames, 1024 flows, internet to pod, one CPU",
        quick: true,
        run: paths::reverse,
    },
    Measure {
        name: "reverse-xdp",
        title: "answers that XDP on the uplink redirects: 60-byte UDP frames, 1024 flows, internet to pod, one CPU",
        quick: true,
        run: paths::reverse_xdp,
    },
    Measure {
        name: "pod-to-pod",
        title: "pod to pod on one node: 60-byte UDP frames, 1024 flows, one CPU",
        quick: true,
        run: paths::pod_to_pod,
    },
    Measure {
        name: "pod-to-vnet",
        title: "pod to an excluded range: 60-byte UDP frames, 1024 flows, one CPU",
        quick: false,
        run: paths::pod_to_vnet,
    },
    Measure {
        name: "snat-imix",
        title: "SNAT egress: the simple Internet mix of frame lengths, 1024 flows, one CPU",
        quick: false,
        run: paths::snat_imix,
    },
    Measure {
        name: "kernel-flows",
        title: "flows that the kernel keeps, translated twice by kube-proxy's rules for a ClusterIP: 60-byte UDP frames, one CPU",
        quick: true,
        run: paths::kernel_flows,
    },
    Measure {
        name: "cpus",
        title: "SNAT egress from two pods on two CPUs at once: 60-byte UDP frames, 1024 flows each",
        quick: true,
        run: paths::two_cpus,
    },
    Measure {
        name: "ranges",
        title: "SNAT egress with 10,000 excluded ranges: established flows, 60-byte UDP frames, one CPU",
        quick: true,
        run: scale::ranges,
    },
    Measure {
        name: "first-ranges",
        title: "first packets with 10,000 excluded ranges, 60-byte UDP frames, one CPU",
        quick: false,
        run: scale::first_packets_and_ranges,
    },
    Measure {
        name: "pods",
        title: "SNAT egress with many pods on the node: established flows of one, 60-byte UDP frames, one CPU",
        quick: true,
        run: scale::pods,
    },
    Measure {
        name: "rr-udp",
        title: "one byte there and back over UDP, pod to internet, both ends on one CPU",
        quick: false,
        run: sockets::udp_requests,
    },
    Measure {
        name: "rr-tcp",
        title: "one byte there and back over one TCP connection, pod to internet, both ends on one CPU",
        quick: true,
        run: sockets::tcp_requests,
    },
    Measure {
        name: "crr",
        title: "a TCP connection for one byte there and back, pod to internet, both ends on one CPU",
        quick: true,
        run: sockets::connections,
    },
    Measure {
        name: "stream",
        title: "one TCP stream with GSO, pod to internet, both ends on one CPU",
        quick: true,
        run: sockets::stream,
    },
    Measure {
        name: "stream-no-gso",
        title: "one TCP stream in segments of the MTU (no TSO, GSO or GRO), pod to internet, both ends on one CPU",
        quick: false,
        run: sockets::stream_without_gso,
    },
    Measure {
        name: "flows",
        title: "SNAT egress with more and more flows: 60-byte UDP frames at random among them, one CPU",
        quick: true,
        run: scale::flows,
    },
    Measure {
        name: "new-flows",
        title: "first packets: each opens a translated flow, 60-byte UDP frames, one CPU",
        quick: true,
        run: first::new_flows,
    },
    Measure {
        name: "ports",
        title: "first packets towards one remote of which so many per cent of the ports are in use, the pod's own among them",
        quick: true,
        run: first::ports,
    },
    Measure {
        name: "programs",
        title: "the installed programs alone, in BPF, 60-byte UDP frames; 32k translated flows in the table",
        quick: true,
        run: programs::nanoseconds,
    },
    Measure {
        name: "ipv6-pod-to-pod",
        title: "IPv6 beside IPv4, pod to pod on one node: 80-byte UDP frames, 1024 flows, one CPU",
        quick: true,
        run: families::pod_to_pod,
    },
    Measure {
        name: "ipv6-pod-to-vnet",
        title: "IPv6 beside IPv4, pod to an address that nothing is translated for: 80-byte UDP frames, 1024 flows, one CPU",
        quick: true,
        run: families::pod_to_vnet,
    },
    Measure {
        name: "ipv6-vnet-to-pod",
        title: "IPv6 beside IPv4, flows that a host outside opens to a pod: 80-byte UDP frames, 1024 flows, one CPU",
        quick: true,
        run: families::vnet_to_pod,
    },
    Measure {
        name: "ipv6-rr-tcp",
        title: "IPv6 beside IPv4, one byte there and back over one TCP connection, pod to VNet, both ends on one CPU",
        quick: true,
        run: families::tcp_requests,
    },
    Measure {
        name: "ipv6-stream",
        title: "IPv6 beside IPv4, one TCP stream with GSO, pod to VNet, both ends on one CPU",
        quick: true,
        run: families::tcp_stream,
    },
    Measure {
        name: "ipv6-programs",
        title: "IPv6 beside IPv4, the installed programs alone, in BPF, 80-byte UDP frames, 1024 flows",
        quick: true,
        run: families::programs,
    },
    Measure {
        name: "upgrade",
        title: "established flows while `causeway upgrade --again` exchanges the programs, while the excluded ranges become others: UDP frames, 1024 flows, one CPU",
        quick: true,
        run: disturbed::upgrade,
    },
    Measure {
        name: "sweep",
        title: "established flows while `causeway sweep` runs over a table that is full to seven eighths: 60-byte UDP frames, 1024 flows, one CPU",
        quick: true,
        run: disturbed::sweep,
    },
    Measure {
        name: "cni-add",
        title: "one ADD of the CNI plug-ins, from start to end of their processes, and the netlink requests that it needs",
        quick: false,
        run: plugins::add,
    },
    Measure {
        name: "cni-del",
        title: "one DEL of the CNI plug-ins, from start to end of their processes, and the netlink requests that it needs",
        quick: false,
        run: plugins::del,
    },
    Measure {
        name: "cni-storm",
        title: "32 ADDs at once, until the last one is done",
        quick: false,
        run: plugins::storm,
    },
    Measure {
        name: "cni-full",
        title: "a node with 250 pods: their ADDs at once, their DELs at once, and STATUS",
        quick: false,
        run: plugins::full,
    },
    Measure {
        name: "load",
        title: "loading, verifying and attaching the programs: what a node's first ADD takes longer than its second",
        quick: true,
        run: plugins::load,
    },
];

impl Measure {
    /// Measures.
    pub(crate) fn run(&self, hall: &Hall) -> Result<Outcome> {
        (self.run)(self, hall)
    }
}

impl Hall {
    /// What the node that is measured has installed.
    pub(crate) fn facts(&self) -> Result<Vec<Fact>> {
        let ours = self.stands(|peer| peer == Peer::Causeway);
        let facts: Vec<Vec<Fact>> = ours.map(facts::of).collect::<Result<_>>()?;
        Ok(facts.concat())
    }

    /// The peers that a measure is about. What XDP does to the uplink is not an ordinary measure's.
    pub(crate) fn stands(&self, wanted: impl Fn(Peer) -> bool) -> impl Iterator<Item = &Stand> {
        self.with_xdp(move |peer| peer != Peer::CausewayXdp && wanted(peer))
    }

    /// The same peers, built anew: what other measures have left in their tables costs nothing, and counts towards no quota.
    pub(crate) fn fresh(&self, pods: u8, wanted: impl Fn(Peer) -> bool) -> Result<Vec<Stand>> {
        self.fresh_of(&self.build, pods, wanted)
    }

    /// As [`Self::fresh`], with tables for so many flows.
    pub(crate) fn fresh_for(
        &self,
        max_flows: u32,
        pods: u8,
        wanted: impl Fn(Peer) -> bool,
    ) -> Result<Vec<Stand>> {
        let build = Build {
            max_flows: Some(max_flows),
            ..self.build.clone()
        };
        self.fresh_of(&build, pods, wanted)
    }

    fn fresh_of(&self, build: &Build, pods: u8, wanted: impl Fn(Peer) -> bool) -> Result<Vec<Stand>> {
        let peers = self.stands(wanted).map(|stand| stand.peer);
        peers.map(|peer| Stand::build(peer, pods, build)).collect()
    }

    /// As [`Self::stands`], for the measure of XDP.
    pub(crate) fn with_xdp(&self, wanted: impl Fn(Peer) -> bool) -> impl Iterator<Item = &Stand> {
        self.stands.iter().filter(move |stand| wanted(stand.peer))
    }
}
