//! Hooks without tcx: a filter of fixed priority and handle at a clsact qdisc, where it is found again by them.

use std::{mem, path::Path};

use aya::programs::{
    Link as _, ProgramError, SchedClassifier,
    tc::{
        NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle, qdisc_add_clsact,
    },
};

use super::{Direction, Hook, failed};
use crate::{
    datapath::{DatapathError, bpf, pins::PinTree},
    links::{Filter, Netlink, Qdisc},
    restore::Restore,
};

/// Removes our filter from a clsact hook. Returns whether it was there.
pub(crate) fn detach_filter(netlink: &mut Netlink, hook: &Hook<'_>) -> Result<bool, DatapathError> {
    if !has_filter(netlink, hook)? {
        return Ok(false);
    }
    detach(hook).map(|()| true)
}

/// Removes the filter that stands where ours belongs.
pub(super) fn detach(hook: &Hook<'_>) -> Result<(), DatapathError> {
    link(hook)?.detach().map_err(|source| failed(hook, source))
}

/// Puts the program pinned at `program` in the place of our filter's. Returns whether there is one.
pub(crate) fn replace_filter(
    netlink: &mut Netlink,
    hook: &Hook<'_>,
    program: &Path,
) -> Result<bool, DatapathError> {
    if !has_filter(netlink, hook)? {
        return Ok(false);
    }
    let mut program = open_program(program)?;
    let attached = program.attach_to_link(link(hook)?);
    keep(&mut program, hook, attached).map(|()| true)
}

/// Whether our filter is on a clsact hook, of whichever tree.
pub(crate) fn has_filter(netlink: &mut Netlink, hook: &Hook<'_>) -> Result<bool, DatapathError> {
    Ok(ours(netlink, hook)?.is_some())
}

/// Whether the filter runs the program of this tree, not one of a tree that was lost.
pub(super) fn is_current(
    pins: &PinTree,
    hook: &Hook<'_>,
    filter: Option<&Filter>,
) -> Result<bool, DatapathError> {
    let Some(filter) = filter else { return Ok(false) };
    let path = pins.program(hook.program());
    let id = bpf::program_id(&path).map_err(|source| DatapathError::file(&path, source))?;
    Ok(filter.program_id == id)
}

/// Priority of our filters: before those that `tc` numbers by itself (from 49152 down), behind a user's own first.
const PRIORITY: u16 = 50;
/// Handle of our filters.
const HANDLE: u32 = 1;

pub(super) fn attach(
    netlink: &mut Netlink,
    pins: &PinTree,
    restore: &Restore,
    hook: &Hook<'_>,
) -> Result<(), DatapathError> {
    match (netlink.ingress_qdisc(hook.ifindex)?, hook.direction) {
        (Some(Qdisc::Clsact), _) | (Some(Qdisc::Ingress), Direction::Ingress) => {}
        (Some(Qdisc::Ingress), Direction::Egress) => {
            return Err(DatapathError::IngressQdisc(hook.interface.to_owned()));
        }
        (None, _) => {
            restore.note_clsact(hook.interface)?;
            qdisc_add_clsact(hook.interface).map_err(|source| failed(hook, source))?;
        }
    }
    let mut program = open_program(&pins.program(hook.program()))?;
    let attached = match filter_in_place(netlink, hook)? {
        Some(filter) if filter.name == hook.program() => program.attach_to_link(link(hook)?),
        Some(filter) => {
            return Err(DatapathError::FilterInPlace {
                hook: hook.to_string(),
                name: filter.name,
            });
        }
        None => {
            let options = NlOptions {
                priority: PRIORITY,
                handle: HANDLE.into(),
                classid: None,
            };
            program.attach_with_options(
                hook.interface,
                hook.direction.into(),
                TcAttachOptions::Netlink(options),
            )
        }
    };
    keep(&mut program, hook, attached)
}

fn open_program(path: &Path) -> Result<SchedClassifier, DatapathError> {
    SchedClassifier::from_pin(path).map_err(|source| DatapathError::Pin {
        path: path.to_owned(),
        source: source.into(),
    })
}

/// Lets a filter outlive the program object, which would remove it when it is dropped.
fn keep(
    program: &mut SchedClassifier,
    hook: &Hook<'_>,
    attached: Result<SchedClassifierLinkId, ProgramError>,
) -> Result<(), DatapathError> {
    let link = attached
        .and_then(|id| program.take_link(id))
        .map_err(|source| failed(hook, source))?;
    mem::forget(link);
    Ok(())
}

/// Our filter on this hook, of whichever tree.
pub(super) fn ours(netlink: &mut Netlink, hook: &Hook<'_>) -> Result<Option<Filter>, DatapathError> {
    match (netlink.ingress_qdisc(hook.ifindex)?, hook.direction) {
        // An ingress qdisc shows its filters for either direction.
        (None, _) | (Some(Qdisc::Ingress), Direction::Egress) => Ok(None),
        _ => Ok(filter_in_place(netlink, hook)?.filter(|filter| filter.name == hook.program())),
    }
}

/// The filter that stands where ours belongs.
fn filter_in_place(netlink: &mut Netlink, hook: &Hook<'_>) -> Result<Option<Filter>, DatapathError> {
    let (filters, _) = netlink.filters(hook.ifindex, hook.direction == Direction::Egress)?;
    Ok(filters
        .into_iter()
        .find(|filter| filter.priority == PRIORITY && filter.handle == HANDLE))
}

fn link(hook: &Hook<'_>) -> Result<SchedClassifierLink, DatapathError> {
    let handle = TcHandle::from(HANDLE);
    SchedClassifierLink::attached(hook.interface, hook.direction.into(), PRIORITY, handle, None)
        .map_err(|source| failed(hook, source))
}
