//! A pod's wiring: from the bridge to a route of its own, and back. Its address, its interface and its MAC stay.

use std::{fs::File, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::{
    MigrateError,
    journal::{Journal, Pod},
    kernel::{self, Device, Kernel, Object},
    netlink::Body,
    survey::open_netns,
};
use crate::{datapath, links::GATEWAY};

type Result<T> = std::result::Result<T, MigrateError>;

/// Both ends of a pod's link, in their namespaces.
pub(super) struct Wire<'a> {
    pod: &'a Pod,
    /// The host's end.
    pub(super) host: Device,
    inside: Kernel,
    device: Device,
}

impl<'a> Wire<'a> {
    /// Opens a pod's link; `None` when it is gone.
    pub(super) fn open(pod: &'a Pod, kernel: &mut Kernel) -> Result<Option<Self>> {
        let Some(host) = kernel.device(&pod.host_if)? else {
            return Ok(None);
        };
        let netns: File = open_netns(&pod.netns).map_err(|source| MigrateError::Kernel {
            action: format!("enter the network namespace of pod {}", pod.name),
            source,
        })?;
        let mut inside = Kernel::inside(&netns)?;
        Ok(inside.device(&pod.if_name)?.map(|device| Self {
            pod,
            host,
            inside,
            device,
        }))
    }

    /// The pod's address.
    pub(super) fn addr(&self) -> Ipv4Addr {
        self.pod.addr()
    }

    /// What the programs are told of the pod. One whose packets a queueing discipline has to see is not carried.
    pub(super) fn as_pod(&self) -> datapath::Pod {
        datapath::Pod {
            addresses: datapath::PodAddresses::V4(self.pod.addr()),
            ifindex: self.host.index,
            host_if: self.host.name.clone(),
            mac: self.device.mac,
            host_mac: self.host.mac,
            mtu: u16::try_from(self.device.mtu).unwrap_or(u16::MAX),
            stack_only: !matches!(
                self.host.qdisc.as_str(),
                "" | "noqueue" | "noop" | "mq" | "fq_codel" | "pfifo_fast"
            ),
            takes_frames: false,
        }
    }

    /// Has the pod send what is for the node to the host's end. What it sends to another MAC, the bridge's, passes the programs,
    /// and nothing of that is held.
    pub(super) fn address_node(&mut self, node: Ipv4Addr) -> Result<()> {
        let (inside, index) = (&mut self.inside, self.device.index);
        inside.replace(&Object::permanent(node, self.host.mac, index))
    }

    /// The host routes to the pod, and the pod sends everything to the host's end. While that is a port of the bridge still,
    /// the bridge gives the host what is sent to it.
    pub(super) fn route(&mut self, kernel: &mut Kernel, node: Ipv4Addr) -> Result<()> {
        kernel.replace(&Object::permanent(
            self.pod.addr(),
            self.device.mac,
            self.host.index,
        ))?;
        kernel.replace(&Object::route_to(self.pod.addr(), self.host.index))?;
        let (inside, index) = (&mut self.inside, self.device.index);
        inside.replace(&Object::permanent(GATEWAY, self.host.mac, index))?;
        inside.replace(&Object::route_to(GATEWAY, index))?;
        let (made, own): (Vec<&Body>, Vec<&Body>) = self
            .pod
            .routes
            .iter()
            .partition(|route| kernel::is_kernels(route));
        for route in own {
            inside.replace(&Object::route_via(route, index, GATEWAY))?;
        }
        // Its neighbours would not answer it any more.
        made.into_iter()
            .try_for_each(|route| inside.remove(&Object::route(route, index)))?;
        inside.remove(&Object::permanent(node, self.host.mac, index))
    }

    /// The pod reaches its subnet and its gateway by the bridge again.
    pub(super) fn unroute(&mut self, kernel: &mut Kernel, node: Ipv4Addr) -> Result<()> {
        let (inside, index) = (&mut self.inside, self.device.index);
        let there = inside.routes(index)?;
        let (made, own): (Vec<&Body>, Vec<&Body>) = self
            .pod
            .routes
            .iter()
            .partition(|route| kernel::is_kernels(route));
        for route in made {
            // What is there already would be there twice: the kernel tells routes apart by more than their prefix.
            if !there
                .iter()
                .any(|found| kernel::destination(found) == kernel::destination(route))
            {
                inside.add(&Object::route(route, index))?;
            }
        }
        for route in own {
            inside.replace(&Object::route(route, index))?;
        }
        inside.remove(&Object::route_to(GATEWAY, index))?;
        inside.remove(&Object::permanent(GATEWAY, self.host.mac, index))?;
        inside.remove(&Object::permanent(node, self.host.mac, index))?;
        kernel.remove(&Object::route_to(self.pod.addr(), self.host.index))?;
        kernel.remove(&Object::permanent(
            self.pod.addr(),
            self.device.mac,
            self.host.index,
        ))
    }

    /// Makes the host's end a port of the bridge as it was, or of none (`bridge` 0).
    pub(super) fn set_bridge(&self, kernel: &mut Kernel, bridge: u32) -> Result<()> {
        if self.host.master.unwrap_or_default() == bridge {
            return Ok(());
        }
        kernel.set_master(&self.host, bridge, &self.pod.port)
    }
}

/// `IFLA_BRPORT_MODE`: hairpin.
const HAIRPIN: u16 = 4;

/// A pod that came while the node was Causeway's, as the incumbent would have made it.
pub(super) fn adopted(pod: Pod, journal: &Journal) -> Pod {
    let gateways = journal
        .pods
        .iter()
        .flat_map(|pod| &pod.routes)
        .chain(&journal.bridge.routes);
    let gateway = gateways
        .filter(|route| kernel::destination(route).1 == 0)
        .find_map(kernel::gateway);
    let mut routes = vec![on_link(pod.address)];
    routes.extend(gateway.map(default_via));
    Pod {
        port: Body::default().with(HAIRPIN, &[1]),
        routes,
        ..pod
    }
}

/// As the kernel makes it for an address.
fn on_link(address: Ipv4Net) -> Body {
    let header = [
        libc::AF_INET as u8,
        address.prefix_len(),
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_KERNEL,
        libc::RT_SCOPE_LINK,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    Body::new(&header)
        .with(libc::RTA_DST, &address.network().octets())
        .with(libc::RTA_PREFSRC, &address.addr().octets())
        .with(libc::RTA_OIF, &[0; 4])
}

fn default_via(gateway: Ipv4Addr) -> Body {
    let header = [
        libc::AF_INET as u8,
        0,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    Body::new(&header)
        .with(libc::RTA_GATEWAY, &gateway.octets())
        .with(libc::RTA_OIF, &[0; 4])
}
