//! Interfaces, addresses, routes and neighbours as the kernel has them, to be put back to the byte.

mod object;

use std::{fs::File, io};

use libc::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

pub(super) use self::object::{
    Object, destination, gateway, is_kernels, is_lesser, is_permanent, local, station,
};
use super::{
    MigrateError,
    netlink::{Body, Protocol, Socket, attribute, attributes, u32_at},
};

/// Lengths of `struct ifinfomsg`, `ifaddrmsg`, `rtmsg` and `ndmsg` in bytes.
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ROUTE: usize = 12;
const NEIGHBOUR: usize = 12;
const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;

/// `enum` values of linux/if_link.h (Linux 6.18) that the libc crate lacks.
mod link {
    pub(super) const LINK: u16 = 5;
    pub(super) const QDISC: u16 = 6;
    pub(super) const MASTER: u16 = 10;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const XDP: u16 = 43;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const INFO_PORT_KIND: u16 = 4;
    pub(super) const INFO_PORT_DATA: u16 = 5;
    pub(super) const XDP_ATTACHED: u16 = 2;
    pub(super) const BRIDGE_FORWARD_DELAY: u16 = 1;
    pub(super) const BRIDGE_STP: u16 = 5;
    /// What of a bridge's port can be set, and is no state of its own: priority, cost, hairpin mode, guard, protect, fast
    /// leave, learning, unicast flood, proxy ARP (two of them), multicast flood, to unicast, broadcast flood, neighbour
    /// suppression, isolation.
    pub(super) const PORT_SETTINGS: [u16; 15] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 27, 28, 30, 32, 33];
}

/// An interface.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    pub(super) kind: String,
    /// The bridge whose port it is.
    pub(super) master: Option<u32>,
    /// Its settings as a port.
    pub(super) port: Body,
    /// The other end of a veth.
    pub(super) peer: Option<u32>,
    pub(super) has_xdp: bool,
    pub(super) qdisc: String,
    /// Of a bridge, in 1/100 s.
    pub(super) forward_delay: Option<u32>,
    pub(super) has_stp: bool,
}

/// A socket of rtnetlink in one network namespace.
#[derive(Debug)]
pub(super) struct Kernel(Socket);

type Result<T> = std::result::Result<T, MigrateError>;

impl Kernel {
    /// In the caller's namespace.
    pub(super) fn new() -> Result<Self> {
        Socket::open(Protocol::Route)
            .map(Self)
            .map_err(failed("open a netlink socket"))
    }

    /// In a pod's.
    pub(super) fn inside(netns: &File) -> Result<Self> {
        Socket::open_inside(netns)
            .map(Self)
            .map_err(failed("enter the pod's network namespace"))
    }

    pub(super) fn devices(&mut self) -> Result<Vec<Device>> {
        let messages = self.list(libc::RTM_GETLINK, &[0; LINK], "list interfaces")?;
        Ok(messages.iter().filter_map(|body| device(body)).collect())
    }

    pub(super) fn device(&mut self, name: &str) -> Result<Option<Device>> {
        Ok(self.devices()?.into_iter().find(|device| device.name == name))
    }

    /// The IPv4 addresses of an interface.
    pub(super) fn addresses(&mut self, index: u32) -> Result<Vec<Body>> {
        self.addresses_of(index, AF_INET)
    }

    /// Whether it has an IPv6 address of global scope.
    pub(super) fn has_global_ipv6(&mut self, index: u32) -> Result<bool> {
        let addresses = self.addresses_of(index, AF_INET6)?;
        Ok(addresses
            .iter()
            .any(|address| address.0[3] == libc::RT_SCOPE_UNIVERSE))
    }

    fn addresses_of(&mut self, index: u32, family: u8) -> Result<Vec<Body>> {
        let messages = self.list(libc::RTM_GETADDR, &fixed(family, ADDRESS), "list addresses")?;
        let is_it = |body: &Vec<u8>| body[0] == family && u32_at(body, 4) == Some(index);
        Ok(messages.into_iter().filter(is_it).map(Body).collect())
    }

    /// The IPv4 unicast routes by an interface, of all tables but the kernel's own of local addresses.
    pub(super) fn routes(&mut self, index: u32) -> Result<Vec<Body>> {
        let messages = self.list(libc::RTM_GETROUTE, &fixed(AF_INET, ROUTE), "list routes")?;
        let is_it = |body: &Vec<u8>| {
            body[7] == libc::RTN_UNICAST
                && body[4] != libc::RT_TABLE_LOCAL
                && attribute(&body[ROUTE..], libc::RTA_OIF).and_then(|oif| u32_at(oif, 0)) == Some(index)
        };
        Ok(messages.into_iter().filter(is_it).map(Body).collect())
    }

    /// The IPv4 neighbours on an interface whose MAC is known.
    pub(super) fn neighbours(&mut self, index: u32) -> Result<Vec<Body>> {
        let messages = self.list(libc::RTM_GETNEIGH, &fixed(AF_INET, NEIGHBOUR), "list neighbours")?;
        let is_it = |body: &Vec<u8>| {
            u32_at(body, 4) == Some(index)
                && attribute(&body[NEIGHBOUR..], libc::NDA_LLADDR).is_some_and(|mac| mac.len() == 6)
        };
        Ok(messages.into_iter().filter(is_it).map(Body).collect())
    }

    /// Makes what is not there.
    pub(super) fn add(&mut self, object: &Object<'_>) -> Result<()> {
        let flags = if object.kind == libc::RTM_NEWROUTE {
            (NLM_F_CREATE | NLM_F_APPEND) as u16
        } else {
            (NLM_F_CREATE | NLM_F_EXCL) as u16
        };
        self.change(
            object.kind,
            flags,
            &object.body,
            || format!("add {}", object.what),
            &[libc::EEXIST],
        )
    }

    /// Makes it, in the place of another if need be.
    pub(super) fn replace(&mut self, object: &Object<'_>) -> Result<()> {
        let flags = (NLM_F_CREATE | NLM_F_REPLACE) as u16;
        self.change(
            object.kind,
            flags,
            &object.body,
            || format!("set {}", object.what),
            &[],
        )
    }

    /// Takes away what is there.
    pub(super) fn remove(&mut self, object: &Object<'_>) -> Result<()> {
        let gone = [libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL, libc::ENODEV];
        self.change(
            object.kind + 1,
            0,
            &object.body,
            || format!("remove {}", object.what),
            &gone,
        )
    }

    /// Makes the interface a port of the bridge with these settings; or of none.
    pub(super) fn set_master(&mut self, device: &Device, bridge: u32, port: &Body) -> Result<()> {
        let master = about(device.index).with(link::MASTER, &bridge.to_ne_bytes());
        let action = || match bridge {
            0 => format!("take {} out of its bridge", device.name),
            _ => format!("make {} a port of the bridge", device.name),
        };
        self.change(libc::RTM_NEWLINK, 0, &master, action, &[])?;
        if bridge == 0 || port.0.is_empty() {
            return Ok(());
        }
        let info = Body::default()
            .with(link::INFO_PORT_KIND, b"bridge\0")
            .with_nested(link::INFO_PORT_DATA, port);
        let settings = about(device.index).with_nested(link::LINKINFO, &info);
        let action = || format!("set {} up as a port of the bridge", device.name);
        self.change(libc::RTM_NEWLINK, 0, &settings, action, &[])
    }

    /// How long a bridge waits before a port takes part, in 1/100 s.
    pub(super) fn set_forward_delay(&mut self, bridge: u32, delay: u32) -> Result<()> {
        let data = Body::default().with(link::BRIDGE_FORWARD_DELAY, &delay.to_ne_bytes());
        let info = Body::default()
            .with(link::INFO_KIND, b"bridge\0")
            .with_nested(link::INFO_DATA, &data);
        let message = about(bridge).with_nested(link::LINKINFO, &info);
        self.change(
            libc::RTM_NEWLINK,
            0,
            &message,
            || "set the bridge's forward delay".to_owned(),
            &[],
        )
    }

    fn list(&mut self, kind: u16, body: &[u8], action: &str) -> Result<Vec<Vec<u8>>> {
        let messages = self.0.list(kind, body).map_err(failed(action))?;
        // Every kind of object has a fixed part of eight bytes at least.
        Ok(messages
            .into_iter()
            .filter(|body| body.len() >= body_length(kind))
            .collect())
    }

    fn change(
        &mut self,
        kind: u16,
        flags: u16,
        body: &Body,
        action: impl Fn() -> String,
        tolerated: &[i32],
    ) -> Result<()> {
        match self.0.ask(kind, flags, &body.0) {
            Ok(_) => Ok(()),
            Err(error)
                if error
                    .raw_os_error()
                    .is_some_and(|errno| tolerated.contains(&errno)) =>
            {
                Ok(())
            }
            Err(source) => Err(MigrateError::Kernel {
                action: action(),
                source,
            }),
        }
    }
}

fn body_length(kind: u16) -> usize {
    match kind {
        libc::RTM_GETLINK => LINK,
        libc::RTM_GETADDR => ADDRESS,
        _ => ROUTE,
    }
}

fn fixed(family: u8, length: usize) -> Vec<u8> {
    let mut fixed = vec![0; length];
    fixed[0] = family;
    fixed
}

fn about(index: u32) -> Body {
    let mut fixed = [0; LINK];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    Body::new(&fixed)
}

fn failed(action: &str) -> impl Fn(io::Error) -> MigrateError + '_ {
    move |source| MigrateError::Kernel {
        action: action.to_owned(),
        source,
    }
}

fn device(body: &[u8]) -> Option<Device> {
    let rest = &body[LINK..];
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
    let number = |kind| attribute(rest, kind).and_then(|value| u32_at(value, 0));
    let info = attribute(rest, link::LINKINFO).unwrap_or_default();
    let data = attribute(info, link::INFO_DATA).unwrap_or_default();
    let kind = text(attribute(info, link::INFO_KIND).unwrap_or_default());
    let of_bridge = |number| {
        let value = (kind == "bridge").then(|| attribute(data, number)).flatten();
        value.and_then(|value| u32_at(value, 0))
    };
    let port = attribute(info, link::INFO_PORT_DATA).unwrap_or_default();
    let settings = attributes(port).filter(|(kind, _)| link::PORT_SETTINGS.contains(kind));
    let xdp = attribute(rest, link::XDP).and_then(|xdp| attribute(xdp, link::XDP_ATTACHED));
    Some(Device {
        index: u32_at(body, 4)?,
        name: text(attribute(rest, libc::IFLA_IFNAME)?),
        mac: attribute(rest, libc::IFLA_ADDRESS)
            .and_then(|mac| mac.try_into().ok())
            .unwrap_or_default(),
        mtu: number(libc::IFLA_MTU).unwrap_or_default(),
        master: number(link::MASTER),
        port: settings.fold(Body::default(), |body, (kind, value)| body.with(kind, value)),
        peer: number(link::LINK),
        has_xdp: xdp.is_some_and(|attached| attached != [0]),
        qdisc: text(attribute(rest, link::QDISC).unwrap_or_default()),
        forward_delay: of_bridge(link::BRIDGE_FORWARD_DELAY),
        has_stp: of_bridge(link::BRIDGE_STP).is_some_and(|stp| stp != 0),
        kind,
    })
}
