//! What an interface has, as messages that make it or take it away.

use std::net::Ipv4Addr;

use super::{
    super::netlink::{Body, attribute, u32_at},
    ADDRESS, AF_INET, NEIGHBOUR, ROUTE, fixed,
};

/// `RTNH_F_ONLINK` of linux/rtnetlink.h: the next hop is on the interface's wire, whatever the routes say.
const ONLINK: u32 = 4;

/// Something of an interface, to be made or removed.
#[derive(Debug)]
pub(in crate::migrate) struct Object<'a> {
    pub(super) kind: u16,
    pub(super) body: Body,
    pub(super) what: &'a str,
}

impl Object<'_> {
    /// An address as the kernel gave it, on this interface.
    pub(in crate::migrate) fn address(before: &Body, index: u32, name: &str) -> Self {
        const FLAGS: u16 = 8;
        const LABEL: u16 = 3;
        let mut body = before.changed(ADDRESS, |kind, value| match kind {
            LABEL => Some([name.as_bytes(), b"\0"].concat()),
            // Secondary, permanent, tentative: the kernel's own.
            FLAGS => {
                let kernels = libc::IFA_F_SECONDARY | libc::IFA_F_PERMANENT | libc::IFA_F_TENTATIVE;
                Some(
                    (u32_at(value, 0).unwrap_or_default() & !kernels)
                        .to_ne_bytes()
                        .to_vec(),
                )
            }
            _ => Some(value.to_vec()),
        });
        body.0[2] = 0;
        body.0[4..8].copy_from_slice(&index.to_ne_bytes());
        Self {
            kind: libc::RTM_NEWADDR,
            body,
            what: "the node's address",
        }
    }

    /// A route as the kernel gave it, by this interface.
    pub(in crate::migrate) fn route(before: &Body, index: u32) -> Self {
        let mut body = before.changed(ROUTE, |kind, value| match kind {
            libc::RTA_OIF => Some(index.to_ne_bytes().to_vec()),
            libc::RTA_CACHEINFO => None,
            _ => Some(value.to_vec()),
        });
        // Of the flags only the one that was asked for: others say how the link is.
        let flags = u32_at(&body.0, 8).unwrap_or_default() & ONLINK;
        body.0[8..12].copy_from_slice(&flags.to_ne_bytes());
        Self {
            kind: libc::RTM_NEWROUTE,
            body,
            what: "a route",
        }
    }

    /// A route with another next hop on the same interface.
    pub(in crate::migrate) fn route_via(before: &Body, index: u32, gateway: Ipv4Addr) -> Self {
        let Self { kind, body, what } = Self::route(before, index);
        let mut body = body.changed(ROUTE, |kind, value| match kind {
            libc::RTA_GATEWAY | libc::RTA_PREFSRC => None,
            _ => Some(value.to_vec()),
        });
        body.0[6] = libc::RT_SCOPE_UNIVERSE;
        let body = body.with(libc::RTA_GATEWAY, &gateway.octets());
        Self { kind, body, what }
    }

    /// A route to one address on the interface's own wire.
    pub(in crate::migrate) fn route_to(address: Ipv4Addr, index: u32) -> Self {
        let mut fixed = fixed(AF_INET, ROUTE);
        fixed[1] = 32;
        fixed[4] = libc::RT_TABLE_MAIN;
        fixed[5] = libc::RTPROT_STATIC;
        fixed[6] = libc::RT_SCOPE_LINK;
        fixed[7] = libc::RTN_UNICAST;
        let body = Body::new(&fixed)
            .with(libc::RTA_DST, &address.octets())
            .with(libc::RTA_OIF, &index.to_ne_bytes());
        Self {
            kind: libc::RTM_NEWROUTE,
            body,
            what: "the route to a pod or its gateway",
        }
    }

    /// A neighbour as the kernel gave it, on this interface.
    pub(in crate::migrate) fn neighbour(before: &Body, index: u32) -> Self {
        let mut body = before.changed(NEIGHBOUR, |kind, value| {
            matches!(kind, libc::NDA_DST | libc::NDA_LLADDR).then(|| value.to_vec())
        });
        body.0[4..8].copy_from_slice(&index.to_ne_bytes());
        if !is_permanent(before) {
            body.0[8..10].copy_from_slice(&libc::NUD_STALE.to_ne_bytes());
        }
        Self {
            kind: libc::RTM_NEWNEIGH,
            body,
            what: "a neighbour",
        }
    }

    /// A neighbour that is known for good.
    pub(in crate::migrate) fn permanent(address: Ipv4Addr, mac: [u8; 6], index: u32) -> Self {
        let mut fixed = fixed(AF_INET, NEIGHBOUR);
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
        let body = Body::new(&fixed)
            .with(libc::NDA_DST, &address.octets())
            .with(libc::NDA_LLADDR, &mac);
        Self {
            kind: libc::RTM_NEWNEIGH,
            body,
            what: "the neighbour of a pod or its gateway",
        }
    }
}

/// Whether a neighbour is known for good.
pub(in crate::migrate) fn is_permanent(neighbour: &Body) -> bool {
    neighbour.0.get(8..10) == Some(&libc::NUD_PERMANENT.to_ne_bytes()[..])
}

/// The neighbour's address and MAC.
pub(in crate::migrate) fn station(neighbour: &Body) -> Option<(Ipv4Addr, [u8; 6])> {
    let rest = neighbour.0.get(NEIGHBOUR..)?;
    let address: [u8; 4] = attribute(rest, libc::NDA_DST)?.try_into().ok()?;
    Some((
        address.into(),
        attribute(rest, libc::NDA_LLADDR)?.try_into().ok()?,
    ))
}

/// The address that is local here, and the length of its prefix.
pub(in crate::migrate) fn local(address: &Body) -> Option<(Ipv4Addr, u8)> {
    let local: [u8; 4] = attribute(address.0.get(ADDRESS..)?, libc::IFA_LOCAL)?
        .try_into()
        .ok()?;
    Some((local.into(), address.0[1]))
}

/// Whether an address is not its subnet's first, or not of global scope.
pub(in crate::migrate) fn is_lesser(address: &Body) -> bool {
    address.0[2] & libc::IFA_F_SECONDARY as u8 != 0 || address.0[3] != libc::RT_SCOPE_UNIVERSE
}

/// The next hop of a route.
pub(in crate::migrate) fn gateway(route: &Body) -> Option<Ipv4Addr> {
    let gateway: [u8; 4] = attribute(route.0.get(ROUTE..)?, libc::RTA_GATEWAY)?
        .try_into()
        .ok()?;
    Some(gateway.into())
}

/// The prefix of a route.
pub(in crate::migrate) fn destination(route: &Body) -> (Ipv4Addr, u8) {
    let to = attribute(route.0.get(ROUTE..).unwrap_or_default(), libc::RTA_DST);
    let to: [u8; 4] = to.and_then(|to| to.try_into().ok()).unwrap_or_default();
    (to.into(), route.0[1])
}

/// Whether the kernel has made a route by itself, for an address.
pub(in crate::migrate) fn is_kernels(route: &Body) -> bool {
    route.0[5] == libc::RTPROT_KERNEL
}
