//! XDP on the uplink. Whoever asks for it has the program loaded and pinned; from then on every `ensure` keeps it attached
//! to the uplink, in its driver. Where the driver cannot, the one who asks is told so, and nothing changes.

use std::{fmt, io};

use causeway_common::maps::XDP_PROGRAM;

use super::{
    Datapath, DatapathError, attach,
    bpf::AttachLink,
    load, lock,
    pins::{self, PinTree},
};
use crate::{links::Netlink, node::Uplink};

impl Datapath {
    /// Whether XDP has been asked for.
    pub fn has_xdp(&self) -> Result<bool, DatapathError> {
        let path = self.pins.program(XDP_PROGRAM);
        path.try_exists()
            .map_err(|source| DatapathError::file(path, source))
    }

    /// Attaches the XDP program to the uplink's driver, or takes it off. Idempotent.
    pub fn set_xdp(&self, uplink: &Uplink, wanted: bool) -> Result<(), DatapathError> {
        if wanted == self.has_xdp()? && (!wanted || is_attached(&self.pins, uplink.ifindex)?) {
            return Ok(());
        }
        let _lock = lock(&self.root)?;
        if !wanted {
            return remove(&self.pins);
        }
        let had = self.has_xdp()?;
        load::xdp_program(&self.pins)?;
        let attached = attach_to(&self.pins, uplink);
        match &attached {
            Ok(()) => tracing::info!(interface = uplink.name, program = XDP_PROGRAM, "attached"),
            Err(_) if had => {}
            Err(_) => remove(&self.pins)?,
        }
        attached
    }

    /// Whether the XDP program is in the driver of the uplink; `None` if nobody asked for it.
    pub fn xdp(&self) -> Result<Option<bool>, DatapathError> {
        let is_attached = || is_attached(&self.pins, self.config()?.uplink_ifindex);
        self.has_xdp()?.then(is_attached).transpose()
    }

    /// What is wrong with XDP on the uplink.
    pub(super) fn inspect_xdp(&self) -> Result<Option<String>, DatapathError> {
        let ifindex = self.config()?.uplink_ifindex;
        let link = Netlink::new()?.link_by_index(ifindex)?;
        let interface = link.map_or_else(|| "an interface that is gone".to_owned(), |link| link.name);
        let missing = self.xdp()? == Some(false);
        Ok(missing.then(|| format!("the program {XDP_PROGRAM} is not attached to {interface}")))
    }

    /// Whether what was asked for is attached to the uplink.
    pub(super) fn xdp_serves(&self, uplink: &Uplink) -> Result<bool, DatapathError> {
        Ok(!self.has_xdp()? || is_attached(&self.pins, uplink.ifindex)?)
    }

    /// Attaches what was asked for to an uplink that has changed. One whose driver cannot is served by tc alone.
    pub(super) fn follow_xdp(&self, uplink: &Uplink) -> Result<(), DatapathError> {
        if self.xdp_serves(uplink)? {
            return Ok(());
        }
        match attach_to(&self.pins, uplink) {
            Err(error @ DatapathError::Xdp(_)) => {
                tracing::warn!(%error, "XDP is given up");
                remove(&self.pins)
            }
            attached => attached,
        }
    }
}

fn is_attached(pins: &PinTree, ifindex: u32) -> Result<bool, DatapathError> {
    Ok(attach::linked_to(&pins.xdp_link())? == Some(ifindex))
}

fn attach_to(pins: &PinTree, uplink: &Uplink) -> Result<(), DatapathError> {
    if is_attached(pins, uplink.ifindex)? {
        return Ok(());
    }
    let path = pins.xdp_link();
    attach::detach_pin(&path)?;
    let link = AttachLink::xdp(&pins.program(XDP_PROGRAM), uplink.ifindex).map_err(|source| {
        DatapathError::Xdp(XdpRefusal {
            interface: uplink.name.clone(),
            mtu: uplink.mtu,
            source,
        })
    })?;
    link.pin(&path)
        .map_err(|source| DatapathError::file(&path, source))?;
    pins::restrict(&path, 0o600)
}

/// Puts this build's program in the place of the one that is pinned, if one is.
pub(super) fn exchange(pins: &PinTree) -> Result<(), DatapathError> {
    let path = pins.program(XDP_PROGRAM);
    if !pins::unpin(&path)? {
        return Ok(());
    }
    load::xdp_program(pins)?;
    let pin = pins.xdp_link();
    let failed = |source| DatapathError::file(&pin, source);
    match AttachLink::open(&pin).map_err(failed)? {
        Some(link) => link.update(&path).map_err(failed),
        None => Ok(()),
    }
}

/// The program's pin goes last: while it is there, what it has to do is asked for.
fn remove(pins: &PinTree) -> Result<(), DatapathError> {
    attach::detach_pin(&pins.xdp_link())?;
    pins::unpin(&pins.program(XDP_PROGRAM)).map(drop)
}

/// A driver that does not take the program.
#[derive(Debug)]
pub struct XdpRefusal {
    interface: String,
    mtu: u32,
    source: io::Error,
}

impl fmt::Display for XdpRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            interface,
            mtu,
            source,
        } = self;
        write!(f, "XDP cannot be used on {interface}: ")?;
        match source.raw_os_error() {
            Some(libc::EOPNOTSUPP) => write!(f, "its driver runs no XDP programs"),
            Some(libc::EBUSY | libc::EEXIST) => write!(
                f,
                "another XDP program is attached to it (`ip link show {interface}` names it)"
            ),
            _ => write!(
                f,
                "its driver refuses the program ({source}): an MTU of {mtu} or LRO may be too much for it"
            ),
        }?;
        write!(f, "; remove \"uplinkXdp\" from the configuration to do without")
    }
}

impl std::error::Error for XdpRefusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_why_and_what_to_do() {
        let text = |errno| {
            let refusal = XdpRefusal {
                interface: "eth0".to_owned(),
                mtu: 9000,
                source: io::Error::from_raw_os_error(errno),
            };
            refusal.to_string()
        };
        assert!(text(libc::EOPNOTSUPP).contains("eth0: its driver runs no XDP"));
        assert!(text(libc::EBUSY).contains("another XDP program"));
        assert!(text(libc::ERANGE).contains("an MTU of 9000"));
        assert!(
            text(libc::EOPNOTSUPP).ends_with("remove \"uplinkXdp\" from the configuration to do without")
        );
    }
}
