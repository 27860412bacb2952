//! Puts the pinned programs on their hooks, and takes them off.
//!
//! With tcx (Linux 6.6) a hook is a link pinned beside the programs. Without, it is a filter of fixed priority and
//! handle at a clsact qdisc, where it is found again by them. Whether the kernel has tcx is found out by trying.

pub(crate) mod clsact;

use std::{env, fmt, io, path::Path};

use aya::programs::{ProgramError, TcAttachType};

use super::{
    DatapathError,
    bpf::AttachLink,
    pins::{self, Owner, PinTree},
};
use crate::{links::Netlink, restore::Restore};

/// Which side of an interface. Also the kernel's word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What arrives on the interface.
    Ingress,
    /// What leaves by it.
    Egress,
}

impl Direction {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl From<Direction> for TcAttachType {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}

/// How a program is held on its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A pinned link.
    Tcx,
    /// A filter.
    Clsact,
}

impl Mechanism {
    /// The word people see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Which mechanisms may be used for hooks to come. Hooks that are attached stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// tcx where the kernel has it, else clsact.
    Auto,
    /// tcx or nothing.
    Tcx,
    /// clsact, as if the kernel had no tcx: for tests of that path on a kernel that has both.
    Clsact,
}

impl AttachMode {
    /// Names the mode: `auto`, `tcx` or `clsact`.
    pub const VARIABLE: &str = "CAUSEWAY_ATTACH";

    /// The mode that the environment names; [`Self::Auto`] unless it does.
    pub fn from_env() -> Result<Self, DatapathError> {
        match env::var(Self::VARIABLE) {
            Ok(value) => Self::parse(&value),
            Err(_) => Ok(Self::Auto),
        }
    }

    fn parse(value: &str) -> Result<Self, DatapathError> {
        match value {
            "" | "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            other => Err(DatapathError::AttachMode(other.to_owned())),
        }
    }
}

/// One side of one interface, and the program that belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook<'a> {
    pub(crate) interface: &'a str,
    pub(crate) ifindex: u32,
    pub(crate) owner: Owner<'a>,
    pub(crate) direction: Direction,
}

impl<'a> Hook<'a> {
    /// Both hooks of the uplink.
    pub(crate) fn uplink(interface: &'a str, ifindex: u32) -> [Self; 2] {
        Direction::BOTH.map(|direction| Self {
            interface,
            ifindex,
            owner: Owner::Uplink,
            direction,
        })
    }

    /// Both hooks of the host's end of a pod.
    pub(crate) fn pod(host_if: &'a str, ifindex: u32) -> [Self; 2] {
        let owner = Owner::Pod { host_if };
        Direction::BOTH.map(|direction| Self {
            interface: host_if,
            ifindex,
            owner,
            direction,
        })
    }

    /// Name of the program.
    pub(crate) fn program(&self) -> &'static str {
        match (self.owner, self.direction) {
            (Owner::Pod { .. }, Direction::Ingress) => "cwy_from_pod",
            (Owner::Pod { .. }, Direction::Egress) => "cwy_to_pod",
            (Owner::Uplink, Direction::Ingress) => "cwy_from_uplink",
            (Owner::Uplink, Direction::Egress) => "cwy_to_uplink",
        }
    }
}

impl fmt::Display for Hook<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.interface, self.direction.name())
    }
}

/// Attaches the program to its hook, unless it is there.
pub(crate) fn attach(
    netlink: &mut Netlink,
    pins: &PinTree,
    restore: &Restore,
    hook: &Hook<'_>,
    mode: AttachMode,
) -> Result<Mechanism, DatapathError> {
    if is_pinned(pins, hook)? {
        return Ok(Mechanism::Tcx);
    }
    let filter = clsact::ours(netlink, hook)?;
    if mode != AttachMode::Tcx && clsact::is_current(pins, hook, filter.as_ref())? {
        return Ok(Mechanism::Clsact);
    }
    let mechanism = put(netlink, pins, restore, hook, mode)?;
    if mechanism == Mechanism::Tcx && filter.is_some() {
        clsact::detach(hook)?;
    }
    Ok(mechanism)
}

/// As [`attach`], to an interface that had no program before: the kernel is not asked for one.
pub(crate) fn attach_first(
    netlink: &mut Netlink,
    pins: &PinTree,
    restore: &Restore,
    hook: &Hook<'_>,
    mode: AttachMode,
) -> Result<Mechanism, DatapathError> {
    if is_pinned(pins, hook)? {
        return Ok(Mechanism::Tcx);
    }
    put(netlink, pins, restore, hook, mode)
}

/// Whether the program is on its hook by a link. A pin of that name which is defunct or of another interface is removed.
fn is_pinned(pins: &PinTree, hook: &Hook<'_>) -> Result<bool, DatapathError> {
    let pin = pins.link(hook.owner, hook.direction);
    match linked_to(&pin)? {
        Some(ifindex) if ifindex == hook.ifindex => Ok(true),
        Some(_) => detach_pin(&pin).map(|_| false),
        None => Ok(false),
    }
}

fn put(
    netlink: &mut Netlink,
    pins: &PinTree,
    restore: &Restore,
    hook: &Hook<'_>,
    mode: AttachMode,
) -> Result<Mechanism, DatapathError> {
    if mode != AttachMode::Clsact && attach_tcx(pins, hook)? {
        return Ok(Mechanism::Tcx);
    }
    if mode == AttachMode::Tcx {
        return Err(DatapathError::NoTcx(hook.to_string()));
    }
    clsact::attach(netlink, pins, restore, hook)?;
    Ok(Mechanism::Clsact)
}

/// How the program is attached to its hook, `None` when it is not.
pub(crate) fn attached(pins: &PinTree, hook: &Hook<'_>) -> Result<Option<Mechanism>, DatapathError> {
    if is_linked(pins, hook)? {
        return Ok(Some(Mechanism::Tcx));
    }
    let filter = clsact::ours(&mut Netlink::new()?, hook)?;
    Ok(clsact::is_current(pins, hook, filter.as_ref())?.then_some(Mechanism::Clsact))
}

/// Gives up a hook of a pod whose interface is about to go. A tcx link is detached before its pin is removed: with the pin
/// alone gone, the kernel would detach in its own time, and whoever changes an interface next would wait for that.
pub(crate) fn release(netlink: &mut Netlink, pins: &PinTree, hook: &Hook<'_>) -> Result<(), DatapathError> {
    let was_pinned = detach_pin(&pins.link(hook.owner, hook.direction))?;
    if !was_pinned {
        clsact::detach_filter(netlink, hook)?;
    }
    Ok(())
}

/// Detaches and unpins the tcx link at `path`. Returns whether it was there.
pub(crate) fn detach_pin(path: &Path) -> Result<bool, DatapathError> {
    let link = AttachLink::open(path).map_err(|source| DatapathError::file(path, source))?;
    if let Some(link) = link {
        match link.detach() {
            // ENOLINK: its interface is gone.
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => {
                return Err(DatapathError::file(path, error));
            }
            _ => {}
        }
    }
    pins::unpin(path)
}

/// Removes the pins of links whose interface is gone.
pub(crate) fn remove_defunct(pins: &PinTree) -> Result<(), DatapathError> {
    for path in pins.link_pins()? {
        if linked_to(&path)? == Some(0) {
            pins::unpin(&path)?;
        }
    }
    Ok(())
}

/// Whether the hook's pin is a link to its interface.
fn is_linked(pins: &PinTree, hook: &Hook<'_>) -> Result<bool, DatapathError> {
    Ok(linked_to(&pins.link(hook.owner, hook.direction))? == Some(hook.ifindex))
}

/// Index of the interface to which the link pinned at `path` is attached, 0 if to none any more; `None` without a pin.
pub(crate) fn linked_to(path: &Path) -> Result<Option<u32>, DatapathError> {
    let link = AttachLink::open(path).and_then(|link| link.map(|link| link.ifindex()).transpose());
    link.map_err(|source| DatapathError::file(path, source))
}

/// Returns `false` where the kernel has no tcx.
fn attach_tcx(pins: &PinTree, hook: &Hook<'_>) -> Result<bool, DatapathError> {
    let link = match AttachLink::tcx(&pins.program(hook.program()), hook.ifindex, hook.direction) {
        Ok(link) => link,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
        Err(error) => return Err(failed(hook, error)),
    };
    let path = pins.link(hook.owner, hook.direction);
    link.pin(&path)
        .map_err(|source| DatapathError::file(&path, source))?;
    pins::restrict(&path, 0o600)?;
    Ok(true)
}

fn failed(hook: &Hook<'_>, source: impl Into<AttachFailure>) -> DatapathError {
    DatapathError::Attach {
        program: hook.program(),
        hook: hook.to_string(),
        source: source.into(),
    }
}

/// What the kernel said to an attachment.
#[derive(Debug, thiserror::Error)]
pub enum AttachFailure {
    /// To a link.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// To a qdisc.
    #[error(transparent)]
    Tc(#[from] aya::programs::tc::TcError),
    /// To a filter.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hook_has_its_own_program() {
        let programs: Vec<_> = Hook::uplink("eth0", 2)
            .iter()
            .chain(&Hook::pod("azv1", 7))
            .map(Hook::program)
            .collect();
        assert_eq!(
            programs,
            ["cwy_from_uplink", "cwy_to_uplink", "cwy_from_pod", "cwy_to_pod"]
        );
        assert!(
            programs
                .iter()
                .all(|name| causeway_common::maps::PROGRAM_NAMES.contains(name))
        );
    }

    #[test]
    fn a_mode_that_is_none_is_refused_by_name() {
        assert_eq!(AttachMode::parse("clsact").unwrap(), AttachMode::Clsact);
        assert_eq!(AttachMode::parse("").unwrap(), AttachMode::Auto);
        let error = AttachMode::parse("xdp").unwrap_err().to_string();
        assert!(
            error.contains("\"xdp\"") && error.contains(AttachMode::VARIABLE),
            "{error}"
        );
    }
}
