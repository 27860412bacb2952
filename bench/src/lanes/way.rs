//! Ways through a peer: what is sent from where to where, and what arrives.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    fabric::{INTERNET, NODE, PEERED},
    node::Pod,
};

use crate::{
    counter::Wanted,
    family::Family,
    generator::{Flows, Frames, SMALLEST, Stream},
    stand::Stand,
};

/// UDP port of the measured packets' servers (RFC 863, discard).
pub(crate) const DISCARD: u16 = 9;
/// The pod's port of the first flow.
pub(crate) const FIRST_PORT: u16 = 20_000;
/// Low bits of a flow's number that make its port.
const PORT_BITS: u32 = 10;
/// The ClusterIP that is sent to, where there is one.
pub(crate) const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 50), DISCARD);
/// The first address of the internet that is sent to.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 0, 0);

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Pods to the internet, with the node's address where the peer translates.
    Out,
    /// Answers from the internet to the first pod.
    Back,
    /// First pod to the VNet, which translates nothing.
    ToVnet,
    /// The VNet to the first pod: flows that a host outside opens.
    FromVnet,
    /// First pod to second.
    Across,
    /// First pod to a ClusterIP, which the kernel translates to a host of the internet.
    Service,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// How many pods send, on the way out; as many as the flows can be shared among.
    pub(crate) pods: usize,
    /// Whether each pod sends on a CPU of its own, all at once; otherwise all on one, one after the other.
    pub(crate) together: bool,
    /// How many flows over all of them, a power of two for each.
    pub(crate) flows: u32,
    /// Of which family they are.
    pub(crate) family: Family,
    /// How long the frames are.
    pub(crate) frames: Frames,
}

impl Load {
    /// The smallest frames of IPv4, 1024 flows of one pod.
    pub(crate) const PLAIN: Self = Self {
        pods: 1,
        together: false,
        flows: 1024,
        family: Family::V4,
        frames: Frames::Of(SMALLEST),
    };
}

/// The addresses that a packet must have at the end of a way.
pub(super) fn wanted(stand: &Stand, way: Way, family: Family) -> Result<Wanted> {
    let all = family.bits();
    // A pod's, any pod's, and that of any host of a network.
    let pod = (stand.addr(&stand.pods[0], family)?, all);
    let pods = (pod.0, all - 8);
    let hosts = |first: IpAddr| (first, all - 16);
    let (src, dst) = match way {
        Way::Out if stand.peer.translates() => ((NODE.into(), all), hosts(OUTSIDE.into())),
        Way::Out => (pods, hosts(OUTSIDE.into())),
        Way::ToVnet => (pods, hosts(family.vnet())),
        Way::FromVnet => (hosts(family.vnet()), pod),
        Way::Service => ((NODE.into(), all), (INTERNET.into(), all)),
        Way::Back => (hosts(OUTSIDE.into()), pod),
        Way::Across => (pod, (stand.addr(second(stand)?, family)?, all)),
    };
    Ok(Wanted {
        src,
        dst,
        verify: true,
    })
}

/// The packets of a way, from or to a pod.
pub(crate) fn stream(stand: &Stand, pod: &Pod, way: Way, load: Load) -> Result<Stream> {
    let family = load.family;
    let own = stand.addr(pod, family)?;
    let (src, dst) = match way {
        Way::Out => (own, OUTSIDE.into()),
        Way::Service => (own, IpAddr::from(*VIP.ip())),
        Way::ToVnet => (own, family.vnet()),
        Way::FromVnet => (family.vnet(), own),
        Way::Back => (OUTSIDE.into(), stand.seen(pod).into()),
        Way::Across => (own, stand.addr(second(stand)?, family)?),
    };
    ensure!(
        Family::of(src) == Family::of(dst),
        "nothing of {} is sent {way:?}",
        family.name()
    );
    let (dst_mac, src_mac) = match way {
        Way::Out | Way::Service => stand.first_hop(pod, INTERNET)?,
        Way::ToVnet => stand.first_hop(pod, PEERED)?,
        Way::Across => stand.first_hop(pod, second(stand)?.addr)?,
        Way::Back | Way::FromVnet => stand.last_hop()?,
    };
    let answers = way == Way::Back;
    Ok(Stream {
        src_mac,
        dst_mac,
        src,
        dst,
        ports: if answers {
            (DISCARD, FIRST_PORT)
        } else {
            (FIRST_PORT, DISCARD)
        },
        answers,
        port_bits: PORT_BITS,
        flows: Flows::From(0),
        frames: load.frames,
    })
}

/// The pod that another one sends to.
pub(crate) fn second(stand: &Stand) -> Result<&Pod> {
    stand.pods.get(1).context("pod to pod needs two pods")
}
