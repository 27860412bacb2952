//! Leaves the node as it was found.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::Path,
};

use causeway_common::maps::PROGRAM_NAMES;

use super::{
    DatapathError, Expedited,
    attach::{self, Direction, Hook},
    load, lock,
    pins::{self, Owner, PinTree},
};
use crate::{
    exact_rule,
    links::{Link, Netlink, Qdisc},
    node,
    restore::Restore,
    root::Root,
    settings,
};

/// What unloading found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unloaded {
    /// Whether a datapath was there.
    pub was_loaded: bool,
}

/// The agent's lock: whoever runs holds it.
const AGENT_LOCK: &str = "agent.lock";
/// What an agent that runs has there.
const AGENTS: [&str; 4] = [AGENT_LOCK, "causeway.sock", "settings.json", "apiserver.json"];

impl super::Datapath {
    /// Detaches and unpins everything, and restores what loading and the first pod changed: bpffs, qdiscs,
    /// `net.ipv4.ip_forward`. Refuses nothing, does what can be done, and is idempotent: pods that are still there
    /// are served by the kernel's routing alone, untranslated.
    pub fn unload(root: &Root) -> Result<Unloaded, DatapathError> {
        let lock = lock(root)?;
        let expedited = Expedited::begin(true);
        let was_loaded = !pins::trees(root)?.is_empty();
        let restore = Restore::new(root);
        let mut errors = Vec::new();
        let mut note = |result: Result<(), DatapathError>| errors.extend(result.err());
        // Filters before trees: a filter is known by its name, also when its tree is lost.
        note(remove_filters(&restore));
        note(remove_trees(root));
        drop(expedited);
        note(pins::unmount_bpffs(root));
        note(restore_forwarding(&restore));
        note(exact_rule::remove(root).map_err(DatapathError::from));
        DatapathError::collect(|| "unloading".to_owned(), errors)?;
        restore.clear()?;
        let run = root.path("/run/causeway");
        clear(&run, &root.path(settings::KEPT)).map_err(|source| DatapathError::file(run, source))?;
        drop(lock);
        Ok(Unloaded { was_loaded })
    }

    /// Does what must not outlive the datapath, while nobody unloads it; `None` if it is not there.
    pub fn while_loaded<T>(root: &Root, act: impl FnOnce() -> T) -> Result<Option<T>, DatapathError> {
        let _lock = lock(root)?;
        Ok((!pins::trees(root)?.is_empty()).then(act))
    }
}

/// Removes what is noted for the time between two boots, but not under an agent that runs: its lock and its socket are
/// how it is found.
fn clear(run: &Path, kept: &Path) -> io::Result<()> {
    let agent = run.join(AGENT_LOCK);
    let is_running = match File::open(&agent) {
        Ok(lock) => lock.try_lock().is_err(),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if !is_running {
        pins::ignore_missing(fs::remove_file(kept))?;
        // Something else may be kept there.
        kept.parent().map(fs::remove_dir);
        return pins::ignore_missing(fs::remove_dir_all(run));
    }
    for entry in fs::read_dir(run)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if !AGENTS.iter().any(|name| entry.file_name() == **name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes the trees of every version.
fn remove_trees(root: &Root) -> Result<(), DatapathError> {
    let mut errors = Vec::new();
    for path in pins::trees(root)? {
        errors.extend(load::discard(&PinTree::at(path)).err());
    }
    let base = pins::base(root);
    let removed = pins::ignore_missing(fs::remove_dir(&base));
    errors.extend(removed.err().map(|source| DatapathError::file(base, source)));
    DatapathError::collect(|| "removing the pins".to_owned(), errors)
}

/// Removes our clsact filters from every interface, and the qdiscs that were added for them and are empty.
fn remove_filters(restore: &Restore) -> Result<(), DatapathError> {
    let mut netlink = Netlink::new()?;
    let added = restore.clsact()?;
    let mut errors = Vec::new();
    for link in netlink.links()? {
        errors.extend(remove_filters_of(&mut netlink, &link, added.contains(&link.name)).err());
    }
    DatapathError::collect(|| "removing the filters".to_owned(), errors)
}

fn remove_filters_of(netlink: &mut Netlink, link: &Link, qdisc_is_ours: bool) -> Result<(), DatapathError> {
    let Some(qdisc) = netlink.ingress_qdisc(link.index)? else {
        return Ok(());
    };
    let mut left = 0;
    for direction in Direction::BOTH {
        if qdisc == Qdisc::Ingress && direction == Direction::Egress {
            continue;
        }
        for owner in [Owner::Uplink, Owner::Pod { host_if: &link.name }] {
            let hook = Hook {
                interface: &link.name,
                ifindex: link.index,
                owner,
                direction,
            };
            debug_assert!(PROGRAM_NAMES.contains(&hook.program()), "a hook has a program");
            attach::clsact::detach_filter(netlink, &hook)?;
        }
        left += netlink.filters(link.index, direction == Direction::Egress)?.1;
    }
    if qdisc_is_ours && qdisc == Qdisc::Clsact && left == 0 {
        netlink.delete_clsact(link.index)?;
    }
    Ok(())
}

fn restore_forwarding(restore: &Restore) -> Result<(), DatapathError> {
    if let Some(before) = restore.forwarding()? {
        node::restore_forwarding(&before)?;
    }
    Ok(node::restore_sysctls(&restore.sysctls()?)?)
}
