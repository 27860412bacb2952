//! A site behind a link that takes less than the others, with a router of its own:
//!
//! ```text
//!   fabric ── 198.18.0.1/30, MTU 1300 ── 198.18.0.2 gate 192.0.2.1 ── server 192.0.2.10 (outside every excluded range)
//!                                                                            10.2.0.10  (inside)
//! ```
//!
//! The server opens connections to the VNet with its inner address. Neither end knows of the narrow link: they have to be told by the routers at its ends.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{
    fabric::Fabric,
    netns::{Netns, connect},
};

/// MTU of the narrow link in bytes.
pub const NARROW: u16 = 1300;
/// The server's address outside every excluded range: pods reach it with the node's address.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The server's address inside the excluded ranges: pods reach it with their own.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 10);
/// The fabric's end of the narrow link.
pub const NEAR_END: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The gate's end of the narrow link.
pub const FAR_END: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The fabric's interface on the narrow link.
pub const NARROW_LINK: &str = "narrow";

/// The site.
#[derive(Debug)]
pub struct Site {
    /// Its router.
    pub gate: Netns,
    /// Its server.
    pub server: Netns,
}

impl Site {
    /// Builds it behind the fabric.
    pub fn behind(fabric: &Fabric) -> Result<Self> {
        let [gate, server] = [Netns::new()?, Netns::new()?];
        let router = &fabric.router;
        connect(router, NARROW_LINK, &gate, "eth0")?;
        router.ip(&format!(
            "link set {NARROW_LINK} mtu {NARROW}\naddr add {NEAR_END}/30 dev {NARROW_LINK}\n\
             route add 192.0.2.0/24 via {FAR_END}\nroute add {INSIDE} via {FAR_END}"
        ))?;
        gate.sysctl("net/ipv4/ip_forward", "1")?;
        connect(&gate, "site", &server, "eth0")?;
        gate.ip(&format!(
            "link set eth0 mtu {NARROW}\naddr add {FAR_END}/30 dev eth0\naddr add 192.0.2.1/24 dev site\n\
             route add default via {NEAR_END}\nroute add {INSIDE} via {OUTSIDE}"
        ))?;
        server.ip(&format!(
            "addr add {OUTSIDE}/24 dev eth0\naddr add {INSIDE}/32 dev eth0\n\
             route add default via 192.0.2.1\nroute add 10.0.0.0/8 via 192.0.2.1 src {INSIDE}"
        ))?;
        Ok(Self { gate, server })
    }
}
