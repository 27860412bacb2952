//! Exchanges the pinned programs for those of this build, under the traffic that they carry.
//!
//! Every hook changes over in one step: a link is updated, a filter replaced, so no packet meets neither program. The
//! maps stay, and with them every flow. An older schema is taken over as well ([`schema1`]): its tree is rebuilt with the
//! maps whose layout has not changed, and the others are converted.

mod schema1;

use std::{
    fs,
    path::{Path, PathBuf},
};

use causeway_common::maps::{PROGRAM_NAMES, SCHEMA, SWEEP_PROGRAM};
use sha1::{Digest as _, Sha1};

use super::{
    Datapath, DatapathError, Expedited,
    attach::{self, Hook},
    bpf::AttachLink,
    load::{self, OBJECT, OBJECT_V6},
    lock,
    pins::{self, PinTree},
};
use crate::{
    durable,
    links::{Link, Netlink},
    root::Root,
};

/// What an upgrade found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgraded {
    /// Nothing is loaded.
    NotLoaded,
    /// The programs are those of this build.
    UpToDate,
    /// They were exchanged, on so many hooks.
    Exchanged {
        /// Links and filters.
        hooks: usize,
    },
}

/// Which build's programs are pinned. `/run` forgets at boot, as bpffs does.
const BUILD: &str = "/run/causeway/build";

impl Datapath {
    /// Exchanges the pinned programs for this build's, if they are others; with `again` also if they are the same.
    ///
    /// # Errors
    ///
    /// After one every hook has its old program again.
    pub fn upgrade(root: &Root, again: bool) -> Result<Upgraded, DatapathError> {
        let _lock = lock(root)?;
        let _expedited = Expedited::begin(true);
        let live = PinTree::live(root);
        if !live.exists()? {
            return match pins::foreign_trees(root)?.into_iter().next() {
                Some(path) => take_over(root, &path),
                None => Ok(Upgraded::NotLoaded),
            };
        }
        // Left by one who was killed when all hooks had changed over: nothing of it is attached.
        for path in pins::foreign_trees(root)?.iter().filter(|path| is_schema1(path)) {
            PinTree::at(path.clone()).remove()?;
        }
        if !again && is_of_this_build(root) {
            return Ok(Upgraded::UpToDate);
        }
        let hooks = exchange(root, &live)?;
        note_build(root);
        tracing::info!(hooks, build = %build(), "the programs are exchanged");
        Ok(Upgraded::Exchanged { hooks })
    }
}

/// The caller holds the lock.
pub(crate) fn take_over(root: &Root, path: &Path) -> Result<Upgraded, DatapathError> {
    if !is_schema1(path) {
        return Err(DatapathError::ForeignTree(path.to_owned()));
    }
    let before = PinTree::at(path.to_owned());
    let hooks = schema1::take_over(root, &before)?;
    note_build(root);
    tracing::info!(
        hooks,
        from = 1,
        to = SCHEMA,
        "a datapath of an older schema is taken over"
    );
    Ok(Upgraded::Exchanged { hooks })
}

fn is_schema1(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "v1")
}

/// Notes that the pinned programs are this build's. Without the note they are exchanged once for nothing.
pub(crate) fn note_build(root: &Root) {
    let path = root.path(BUILD);
    let written = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&path, build()));
    if let Err(error) = written {
        tracing::warn!(%error, path = %path.display(), "cannot note which programs are loaded");
    }
}

fn is_of_this_build(root: &Root) -> bool {
    durable::read(&root.path(BUILD)).ok().flatten().as_deref() == Some(build().as_bytes())
}

/// A name for this build's programs.
fn build() -> String {
    let digest = Sha1::new()
        .chain_update(OBJECT)
        .chain_update(OBJECT_V6)
        .finalize();
    let leading = digest
        .iter()
        .take(8)
        .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{leading:016x}")
}

/// Returns on how many hooks.
fn exchange(root: &Root, pins: &PinTree) -> Result<usize, DatapathError> {
    let next = |name: &str| pins.program(&format!("{name}_next"));
    for name in PROGRAM_NAMES {
        pins::unpin(&next(name))?;
    }
    load::programs(pins, next)?;
    let hooks = match switch(pins, next) {
        Ok(hooks) => hooks,
        Err(error) => {
            if let Err(error) = switch(pins, |name| pins.program(name)) {
                tracing::warn!(%error, "cannot give every hook its old program again");
            }
            for name in PROGRAM_NAMES {
                pins::unpin(&next(name))?;
            }
            return Err(error);
        }
    };
    for name in PROGRAM_NAMES {
        let path = pins.program(name);
        fs::rename(next(name), &path).map_err(|source| DatapathError::file(&path, source))?;
    }
    // Loaded anew when it is next due.
    pins::unpin(&pins.program(SWEEP_PROGRAM))?;
    super::xdp::exchange(pins)?;
    super::ipv6::exchange(root, pins)?;
    Ok(hooks)
}

/// Gives every hook the program that `path` names for it.
fn switch(pins: &PinTree, path: impl Fn(&str) -> PathBuf) -> Result<usize, DatapathError> {
    let mut hooks = 0;
    for pin in pins.link_pins()? {
        let Some(program) = program_of(&pin) else { continue };
        let link = AttachLink::open(&pin).map_err(|source| DatapathError::file(&pin, source))?;
        let Some(link) = link else { continue };
        match link.update(&path(program)) {
            Ok(()) => hooks += 1,
            // Its interface is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => return Err(DatapathError::file(&pin, error)),
        }
    }
    let mut netlink = Netlink::new()?;
    for Link { name, index, .. } in netlink.links()? {
        for hook in Hook::uplink(&name, index).iter().chain(&Hook::pod(&name, index)) {
            hooks += usize::from(attach::clsact::replace_filter(
                &mut netlink,
                hook,
                &path(hook.program()),
            )?);
        }
    }
    Ok(hooks)
}

/// The program that belongs to the link pinned at `path`; `None` for XDP's.
fn program_of(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    let (owner, direction) = name.rsplit_once('_')?;
    match (owner, direction) {
        ("uplink", "ingress") => Some("cwy_from_uplink"),
        ("uplink", "egress") => Some("cwy_to_uplink"),
        (_, "ingress") => Some("cwy_from_pod"),
        (_, "egress") => Some("cwy_to_pod"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::pins::Owner;

    #[test]
    fn the_name_of_a_pin_says_the_program() {
        let pins = PinTree::live(&Root::new("/tmp/node"));
        for hook in Hook::uplink("eth0", 2).iter().chain(&Hook::pod("azv1", 7)) {
            let pin = pins.link(hook.owner, hook.direction);
            assert_eq!(program_of(&pin), Some(hook.program()));
        }
        let owner = Owner::Pod { host_if: "azv_1_2" };
        let pin = pins.link(owner, super::super::Direction::Egress);
        assert_eq!(program_of(&pin), Some("cwy_to_pod"));
        assert_eq!(program_of(&pins.xdp_link()), None);
    }
}
