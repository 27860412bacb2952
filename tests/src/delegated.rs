//! The subnet that is delegated to the API server: a namespace behind the fabric, with the addresses of its servers.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{
    fabric::Fabric,
    netns::{Netns, connect},
};

/// The delegated subnet.
pub const SUBNET: &str = "10.226.0.0/28";
/// Virtual addresses that a cloud's load balancer serves.
pub const VIPS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 226, 0, 4), Ipv4Addr::new(10, 226, 0, 8)];
/// A virtual address that nobody has: the node is the load balancer.
pub const NOBODYS: Ipv4Addr = Ipv4Addr::new(10, 226, 0, 12);
/// The API servers.
pub const SERVERS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 226, 0, 5),
    Ipv4Addr::new(10, 226, 0, 6),
    Ipv4Addr::new(10, 226, 0, 7),
];

/// Makes the subnet. The addresses but [`NOBODYS`] are there; nobody listens.
pub fn subnet(fabric: &Fabric) -> Result<Netns> {
    let ns = Netns::new()?;
    connect(&ns, "eth0", &fabric.router, "api")?;
    fabric.router.ip("addr add 10.226.0.1/28 dev api")?;
    let addresses = VIPS.iter().chain(&SERVERS);
    let mut script: Vec<String> = addresses
        .map(|address| format!("addr add {address}/28 dev eth0"))
        .collect();
    script.push("route add default via 10.226.0.1".to_owned());
    ns.ip(&script.join("\n"))?;
    Ok(ns)
}
