//! A second hold on everything that is pinned: for a process that stays.
//!
//! A pin is a file, and files get deleted. Whoever has the object open can pin it again, and until then the program stays
//! attached and the map keeps its flows. What was taken away on purpose is told by its link, which is detached first.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use causeway_common::maps::{MAP_NAMES, PROGRAM_NAMES};

use super::{
    Datapath, DatapathError,
    attach::{self, Hook},
    bpf::{self, AttachLink},
    lock,
    pins::{self, PinTree},
};
use crate::{links::Netlink, root::Root};

/// The objects of a datapath, held open.
#[derive(Debug, Default)]
pub struct Hold {
    objects: BTreeMap<PathBuf, Object>,
}

#[derive(Debug)]
struct Object {
    descriptor: OwnedFd,
    /// Number of the pin's inode: another one is another object.
    inode: u64,
}

impl Hold {
    /// Takes hold of what is pinned, and pins again what is not any more and should be. Returns the paths of those.
    /// Nothing is held of a datapath that was unloaded.
    pub fn refresh(&mut self, root: &Root) -> Result<Vec<PathBuf>, DatapathError> {
        let pins = PinTree::live(root);
        let mut missing = self.adopt(&pins)?;
        if missing.is_empty() {
            return Ok(missing);
        }
        // Whoever loads, unloads or exchanges the datapath holds the lock, and may be in the middle of it.
        let _lock = lock(root)?;
        missing = self.adopt(&pins)?;
        if !pins.exists()? && !self.is_attached(&pins)? {
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
        for path in pins.all()? {
            let failed = |source| DatapathError::file(&path, source);
            let inode = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata.ino(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            if self
                .objects
                .get(&path)
                .is_some_and(|object| object.inode == inode)
            {
                continue;
            }
            match bpf::open_pin(&path) {
                Ok(descriptor) => {
                    self.objects.insert(path.clone(), Object { descriptor, inode });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let gone = self.objects.keys().filter(|path| !path.exists());
        Ok(gone.cloned().collect())
    }

    /// Whether the programs still stand on the uplink although the tree is gone.
    fn is_attached(&self, pins: &PinTree) -> Result<bool, DatapathError> {
        for path in self.objects.keys().filter(|path| is_link(pins, path)) {
            if self.ifindex(path).unwrap_or(0) != 0 {
                return Ok(true);
            }
        }
        let mut netlink = Netlink::new()?;
        for link in netlink.links()? {
            for hook in Hook::uplink(&link.name, link.index) {
                if attach::has_filter(&mut netlink, &hook)? {
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
            MAP_NAMES.contains(&name) || PROGRAM_NAMES.contains(&name)
        };
        let Some(object) = self.objects.get_mut(path).filter(|_| belongs) else {
            self.objects.remove(path);
            return Ok(false);
        };
        pins.create()?;
        let failed = |source| DatapathError::file(path, source);
        bpf::pin(&object.descriptor, path).map_err(failed)?;
        let mode = if MAP_NAMES.contains(&name) { 0o640 } else { 0o600 };
        pins::restrict(path, mode)?;
        object.inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(true)
    }

    fn ifindex(&self, path: &Path) -> Option<u32> {
        let descriptor = self.objects.get(path)?.descriptor.as_fd();
        let link = AttachLink::from_descriptor(descriptor.try_clone_to_owned().ok()?);
        link.ifindex().ok()
    }
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
