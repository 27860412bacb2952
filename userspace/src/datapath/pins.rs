//! Where the datapath is pinned: `<bpffs>/causeway/v<schema>/{maps,progs,links}`.
//!
//! The tree is built as `staging` and renamed to its final name when it is complete: a tree with the final name is
//! never half made. Names hold no dots, which bpffs keeps for itself.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, DirBuilder, DirEntry, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, DirEntryExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use causeway_common::maps::SCHEMA;
use rustix::{
    fs::statfs,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use super::{DatapathError, attach::Direction};
use crate::{restore::Restore, root::Root};

/// Who is attached where. The name of the pin says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner<'a> {
    Uplink,
    Pod { host_if: &'a str },
}

/// What a tree consists of.
const DIRECTORIES: [&str; 3] = ["maps", "progs", "links"];

/// The kernel takes a file's time from a clock that advances ten times in this time, or more often.
const TICK: Duration = Duration::from_millis(100);

/// Of each directory of a tree: inode, seconds and nanoseconds of its last change.
pub(crate) type Stamp = [(u64, i64, i64); DIRECTORIES.len()];

/// One tree of pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PinTree {
    directory: PathBuf,
}

impl PinTree {
    /// The tree in use.
    pub(crate) fn live(root: &Root) -> Self {
        Self {
            directory: base(root).join(format!("v{SCHEMA}")),
        }
    }

    /// The tree being built.
    pub(crate) fn staging(root: &Root) -> Self {
        Self {
            directory: base(root).join("staging"),
        }
    }

    /// Some tree, of whichever version.
    pub(crate) fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.directory.join("maps").join(name)
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join("progs").join(name)
    }

    pub(crate) fn link(&self, owner: Owner<'_>, direction: Direction) -> PathBuf {
        let owner = match owner {
            Owner::Uplink => "uplink",
            Owner::Pod { host_if } => host_if,
        };
        self.link_directory()
            .join(format!("{owner}_{}", direction.name()))
    }

    /// The link of the XDP program.
    pub(crate) fn xdp_link(&self) -> PathBuf {
        self.link_directory().join("uplink_xdp")
    }

    /// Every pinned link.
    pub(crate) fn link_pins(&self) -> Result<Vec<PathBuf>, DatapathError> {
        list(&self.link_directory())
    }

    /// Where links are pinned.
    pub(crate) fn link_directory(&self) -> PathBuf {
        self.directory.join("links")
    }

    /// Every pin, by its path, with the number of its inode. Paths are compared part by part, which takes long for hundreds
    /// of them: these are strings.
    pub(crate) fn inodes(&self) -> Result<BTreeMap<OsString, u64>, DatapathError> {
        let mut inodes = BTreeMap::new();
        for name in DIRECTORIES {
            let directory = self.directory.join(name);
            let found = entries(&directory)?;
            inodes.extend(
                found
                    .into_iter()
                    .map(|entry| (entry.path().into_os_string(), entry.ino())),
            );
        }
        Ok(inodes)
    }

    /// When pins last came or went: the directories with the time of their last change. `None` where one of them is missing,
    /// or has changed so lately that its time may not change with the next pin.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        let of = |name| {
            let metadata = fs::metadata(self.directory.join(name)).ok()?;
            let age = metadata.modified().ok()?.elapsed().ok()?;
            (age > TICK).then(|| (metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
        };
        let [maps, progs, links] = DIRECTORIES.map(of);
        Some([maps?, progs?, links?])
    }

    pub(crate) fn exists(&self) -> Result<bool, DatapathError> {
        self.directory
            .try_exists()
            .map_err(|source| DatapathError::file(&self.directory, source))
    }

    /// Makes the empty directories.
    pub(crate) fn create(&self) -> Result<(), DatapathError> {
        for name in DIRECTORIES {
            make_directory(&self.directory.join(name))?;
        }
        Ok(())
    }

    /// Gives a complete tree its final name.
    pub(crate) fn rename(&self, to: &Self) -> Result<(), DatapathError> {
        fs::rename(&self.directory, &to.directory)
            .map_err(|source| DatapathError::file(&to.directory, source))
    }

    /// Removes every pin and directory. What is only pinned here is detached and freed.
    pub(crate) fn remove(&self) -> Result<(), DatapathError> {
        ignore_missing(fs::remove_dir_all(&self.directory))
            .map_err(|source| DatapathError::file(&self.directory, source))
    }
}

/// The directory of all trees.
pub(crate) fn base(root: &Root) -> PathBuf {
    mount_point(root).join("causeway")
}

/// Every tree, of whichever version.
pub(crate) fn trees(root: &Root) -> Result<Vec<PathBuf>, DatapathError> {
    list(&base(root))
}

/// The trees of other schema versions.
pub(crate) fn foreign_trees(root: &Root) -> Result<Vec<PathBuf>, DatapathError> {
    let ours = [PinTree::live(root).directory, PinTree::staging(root).directory];
    Ok(trees(root)?
        .into_iter()
        .filter(|path| !ours.contains(path))
        .collect())
}

/// Mounts a bpffs where none is, and notes it.
pub(crate) fn mount_bpffs(root: &Root) -> Result<(), DatapathError> {
    let point = mount_point(root);
    let failed = |source| DatapathError::Bpffs {
        mount_point: point.clone(),
        source,
    };
    fs::create_dir_all(&point).map_err(failed)?;
    if is_bpffs(&point).map_err(failed)? {
        return Ok(());
    }
    Restore::new(root).note_bpffs(&point)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", &point, "bpf", flags, c"mode=0700").map_err(|errno| failed(errno.into()))?;
    tracing::info!(mount_point = %point.display(), "bpffs mounted");
    Ok(())
}

/// Unmounts the bpffs if [`mount_bpffs`] mounted it.
pub(crate) fn unmount_bpffs(root: &Root) -> Result<(), DatapathError> {
    let point = mount_point(root);
    if !Restore::new(root).has_bpffs()? {
        return Ok(());
    }
    let failed = |source| DatapathError::Bpffs {
        mount_point: point.clone(),
        source,
    };
    match is_bpffs(&point) {
        Ok(true) => unmount(&point, UnmountFlags::empty()).map_err(|errno| failed(errno.into())),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes a pin. Returns whether it was there.
pub(crate) fn unpin(path: &Path) -> Result<bool, DatapathError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(DatapathError::file(path, source)),
    }
}

/// Sets the mode of a pin.
pub(crate) fn restrict(path: &Path, mode: u32) -> Result<(), DatapathError> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|source| DatapathError::file(path, source))
}

pub(crate) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    Ok(entries(directory)?
        .into_iter()
        .map(|entry| entry.path())
        .collect())
}

/// What is in a directory; nothing when it is not there.
fn entries(directory: &Path) -> Result<Vec<DirEntry>, DatapathError> {
    let failed = |source| DatapathError::file(directory, source);
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map_err(failed)).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

fn mount_point(root: &Root) -> PathBuf {
    root.path("/sys/fs/bpf")
}

fn make_directory(path: &Path) -> Result<(), DatapathError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
        .map_err(|source| DatapathError::file(path, source))
}

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.f_type == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_named_by_schema_owner_and_direction() {
        let tree = PinTree::live(&Root::new("/tmp/node"));
        let base = Path::new("/tmp/node/sys/fs/bpf/causeway/v2");
        assert_eq!(tree.map("cwy_flows"), base.join("maps/cwy_flows"));
        assert_eq!(tree.program("cwy_to_pod"), base.join("progs/cwy_to_pod"));
        assert_eq!(
            tree.link(Owner::Uplink, Direction::Egress),
            base.join("links/uplink_egress")
        );
        let pod = Owner::Pod { host_if: "azv1234" };
        assert_eq!(
            tree.link(pod, Direction::Ingress),
            base.join("links/azv1234_ingress")
        );
    }

    #[test]
    fn a_directory_on_disk_is_no_bpffs() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_bpffs(directory.path()).unwrap());
    }

    #[test]
    fn a_tree_of_another_schema_is_foreign() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert!(foreign_trees(&root).unwrap().is_empty());
        PinTree::live(&root).create().unwrap();
        PinTree::staging(&root).create().unwrap();
        fs::create_dir(base(&root).join("v0")).unwrap();
        assert_eq!(foreign_trees(&root).unwrap(), [base(&root).join("v0")]);
    }

    #[test]
    fn a_missing_pin_is_nothing_to_remove() {
        assert!(!unpin(Path::new("/nonexistent/pin")).unwrap());
    }
}
