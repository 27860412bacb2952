//! A second hold on everything that is pinned: for a process that stays.
//!
//! A pin is a file, and files get deleted. Whoever has the object open can pin it again, and until then the program stays
//! attached and the map keeps its flows. What was taken away on purpose is told by its link, which is detached first.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use causeway_common::maps::{MAP_NAMES, PROGRAM_NAMES, V6_MAP_NAMES, V6_PROGRAM_NAMES};

use super::{
    Datapath, DatapathError, Pod,
    attach::{self, Hook},
    bpf, lock,
    pins::{self, PinTree, Stamp},
};
use crate::{links::Netlink, root::Root};

/// The objects of a datapath, held open.
#[derive(Debug, Default)]
pub struct Hold {
    /// By the path of the pin.
    objects: BTreeMap<OsString, Object>,
    /// When the pins had last changed before they were all found to be held.
    stamp: Option<Stamp>,
}

#[derive(Debug)]
struct Object {
    descriptor: OwnedFd,
    /// Number of the pin's inode: another one is another object.
    inode: u64,
    is_link: bool,
}

impl Hold {
    /// Takes hold of what is pinned, and pins again what is not any more and should be. Returns the paths of those.
    /// Nothing is held of a datapath that was unloaded.
    pub fn refresh(&mut self, root: &Root) -> Result<Vec<PathBuf>, DatapathError> {
        let pins = PinTree::live(root);
        let stamp = pins.stamp();
        if stamp.is_some() && stamp == self.stamp {
            return Ok(Vec::new());
        }
        self.stamp = None;
        let mut missing = self.adopt(&pins)?;
        if missing.is_empty() {
            self.stamp = stamp;
            return Ok(missing);
        }
        // Whoever loads, unloads or exchanges the datapath holds the lock, and may be in the middle of it.
        let _lock = lock(root)?;
        missing = self.adopt(&pins)?;
        if !pins.exists()? && !self.is_attached()? {
            self.objects.clear();
            return Ok(Vec::new());
        }
        let mut restored = Vec::new();
        for path in missing {
            if self.restore(&pins, &path)? {
                restored.push(path);
            }
        }
        Ok(restored)
    }

    /// Opens pins that are not held. Returns the paths of objects whose pin is gone.
    fn adopt(&mut self, pins: &PinTree) -> Result<Vec<PathBuf>, DatapathError> {
        let there = pins.inodes()?;
        for (path, inode) in &there {
            if self
                .objects
                .get(path)
                .is_some_and(|object| object.inode == *inode)
            {
                continue;
            }
            match bpf::open_pin(path.as_ref()) {
                Ok(descriptor) => {
                    let object = Object {
                        descriptor,
                        inode: *inode,
                        is_link: is_link(pins, path.as_ref()),
                    };
                    self.objects.insert(path.clone(), object);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(DatapathError::file(path, error)),
            }
        }
        let gone = self.objects.keys().filter(|path| !there.contains_key(*path));
        Ok(gone.map(PathBuf::from).collect())
    }

    /// Whether every link that is held is attached. One of a pod that is just being deleted is not.
    pub fn is_whole(&self) -> bool {
        self.links().all(Object::is_attached)
    }

    /// Whether pins may have come or gone since the last [`Self::refresh`].
    pub fn is_outdated(&self, root: &Root) -> bool {
        self.stamp.is_none() || self.stamp != PinTree::live(root).stamp()
    }

    /// Whether both programs are on the interface of a pod.
    pub fn serves(&self, datapath: &Datapath, pod: &Pod) -> Result<bool, DatapathError> {
        for hook in Hook::pod(&pod.host_if, pod.ifindex) {
            let path = datapath.pins.link(hook.owner, hook.direction);
            let is_attached = self.ifindex(&path) == Some(pod.ifindex)
                || attach::attached(&datapath.pins, &hook)?.is_some();
            if !is_attached {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the programs still stand on the uplink although the tree is gone.
    fn is_attached(&self) -> Result<bool, DatapathError> {
        if self.links().any(Object::is_attached) {
            return Ok(true);
        }
        let mut netlink = Netlink::new()?;
        for link in netlink.links()? {
            for hook in Hook::uplink(&link.name, link.index) {
                if attach::clsact::has_filter(&mut netlink, &hook)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Returns whether the object was to be pinned.
    fn restore(&mut self, pins: &PinTree, path: &Path) -> Result<bool, DatapathError> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let belongs = if is_link(pins, path) {
            self.ifindex(path).unwrap_or(0) != 0
        } else {
            // The others are loaded when they are asked for.
            is_map(name) || PROGRAM_NAMES.contains(&name) || V6_PROGRAM_NAMES.contains(&name)
        };
        let Some(object) = self.objects.get_mut(path.as_os_str()).filter(|_| belongs) else {
            self.objects.remove(path.as_os_str());
            return Ok(false);
        };
        pins.create()?;
        let failed = |source| DatapathError::file(path, source);
        bpf::pin(&object.descriptor, path).map_err(failed)?;
        let mode = if is_map(name) { 0o640 } else { 0o600 };
        pins::restrict(path, mode)?;
        object.inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(true)
    }

    fn links(&self) -> impl Iterator<Item = &Object> {
        self.objects.values().filter(|object| object.is_link)
    }

    fn ifindex(&self, path: &Path) -> Option<u32> {
        self.objects.get(path.as_os_str())?.ifindex()
    }
}

impl Object {
    /// As [`bpf::link_ifindex`].
    fn ifindex(&self) -> Option<u32> {
        bpf::link_ifindex(&self.descriptor).ok()
    }

    fn is_attached(&self) -> bool {
        self.ifindex().is_some_and(|ifindex| ifindex != 0)
    }
}

fn is_map(name: &str) -> bool {
    MAP_NAMES.contains(&name) || V6_MAP_NAMES.contains(&name)
}

fn is_link(pins: &PinTree, path: &Path) -> bool {
    path.parent() == Some(&pins.link_directory())
}

impl Datapath {
    /// Whether a datapath is pinned here.
    pub fn is_loaded(root: &Root) -> Result<bool, DatapathError> {
        PinTree::live(root).exists()
    }
}
