//! The node's addresses and routes: from the bridge to the interface below it, and back. At every moment the node has them
//! on one of the two.

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::Duration,
};

use super::{
    MigrateError,
    journal::Journal,
    kernel::{self, Device, Kernel, Object},
};

type Result<T> = std::result::Result<T, MigrateError>;

/// The bridge and the uplink as they are now.
pub(super) struct Pair {
    pub(super) bridge: Device,
    pub(super) uplink: Device,
}

impl Pair {
    pub(super) fn find(journal: &Journal, kernel: &mut Kernel) -> Result<Self> {
        let mut find = |name: &str| {
            kernel.device(name)?.ok_or_else(|| MigrateError::Kernel {
                action: format!("find the interface {name}"),
                source: std::io::Error::from_raw_os_error(libc::ENODEV),
            })
        };
        Ok(Self {
            bridge: find(&journal.bridge.name)?,
            uplink: find(&journal.uplink.name)?,
        })
    }

    /// Gives the uplink what the bridge has; both have it then, and the bridge is the one that is used.
    pub(super) fn share(&self, journal: &Journal, kernel: &mut Kernel) -> Result<()> {
        if self.uplink.master != Some(self.bridge.index) {
            return Ok(());
        }
        give(journal, kernel, &self.bridge, &self.uplink)
    }

    /// Takes it from the bridge, and the uplink out of it.
    pub(super) fn leave_bridge(&self, journal: &Journal, kernel: &mut Kernel) -> Result<()> {
        take(journal, kernel, &self.bridge)?;
        match self.uplink.master {
            Some(_) => kernel.set_master(&self.uplink, 0, &journal.uplink.port),
            None => Ok(()),
        }
    }

    /// Makes the uplink a port again, which takes part at once, and gives the bridge everything back.
    pub(super) fn join_bridge(&self, journal: &Journal, kernel: &mut Kernel) -> Result<()> {
        if self.uplink.master != Some(self.bridge.index) {
            kernel.set_master(&self.uplink, self.bridge.index, &journal.uplink.port)?;
        }
        give(journal, kernel, &self.uplink, &self.bridge)?;
        take(journal, kernel, &self.uplink)
    }
}

/// Gives `to` the addresses, neighbours and routes that `from` has.
fn give(journal: &Journal, kernel: &mut Kernel, from: &Device, to: &Device) -> Result<()> {
    for address in &journal.bridge.addresses {
        kernel.add(&Object::address(address, to.index, &to.name))?;
    }
    for neighbour in kernel.neighbours(from.index)? {
        if !kernel::is_permanent(&neighbour) {
            kernel.add(&Object::neighbour(&neighbour, to.index))?;
        }
    }
    journal
        .bridge
        .routes
        .iter()
        .try_for_each(|route| kernel.add(&Object::route(route, to.index)))
}

/// Takes the routes and addresses away; what the other interface has comes into force.
fn take(journal: &Journal, kernel: &mut Kernel, from: &Device) -> Result<()> {
    for route in &journal.bridge.routes {
        kernel.remove(&Object::route(route, from.index))?;
    }
    // Secondary addresses go with their primary one, so it goes last.
    let addresses = journal.bridge.addresses.iter().rev();
    addresses
        .into_iter()
        .try_for_each(|address| kernel.remove(&Object::address(address, from.index, &from.name)))
}

/// How often the next hop's MAC is looked for, and how long to wait in between.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// The MAC of the next hop to everywhere. `None` where it does not answer: then nobody outside can be reached.
pub(super) fn next_hop(journal: &Journal, kernel: &mut Kernel, from: &Device) -> Result<Option<[u8; 6]>> {
    let mut defaults = journal
        .bridge
        .routes
        .iter()
        .filter(|route| kernel::destination(route).1 == 0);
    let Some(gateway) = defaults.find_map(kernel::gateway) else {
        return Ok(None);
    };
    for look in 0..LOOKS {
        let neighbours = kernel.neighbours(from.index)?;
        if let Some((_, mac)) = neighbours
            .iter()
            .filter_map(kernel::station)
            .find(|(address, _)| *address == gateway)
        {
            return Ok(Some(mac));
        }
        if look == 0 {
            ask(gateway);
        }
        thread::sleep(PAUSE);
    }
    Ok(None)
}

/// Makes the kernel look for a neighbour: a datagram to the discard service (RFC 863), which nobody needs to receive.
fn ask(neighbour: Ipv4Addr) {
    if let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
        socket.send_to(&[], (neighbour, 9)).ok();
    }
}
