//! The pins: which are there, and who may use them.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use causeway::{datapath::DatapathError, root::Root};
use causeway_common::maps::{IPV6_MAP, MAP_NAMES, PROGRAM_NAMES, SCHEMA, V6_MAP_NAMES, V6_PROGRAM_NAMES};
use rustix::fs::statfs;

use super::{Code, Finding, Snapshot, snapshot::Pinned};

/// What is below the directory of pins.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// Directories of other versions.
    foreign: Vec<PathBuf>,
    /// The tree that is being built, or was.
    staging: Option<PathBuf>,
    missing_maps: Vec<PathBuf>,
    missing_programs: Vec<PathBuf>,
    /// Path, mode and owner, and the mode that it should have.
    loose: Vec<(PathBuf, u32, u32, u32)>,
}

/// Maps that a tree may lack: its programs do without.
const OPTIONAL: [&str; 2] = ["cwy_moved", IPV6_MAP];

pub(super) fn read(root: &Root) -> Pins {
    let base = root.path("/sys/fs/bpf/causeway");
    let live = base.join(format!("v{SCHEMA}"));
    let mut pins = Pins::default();
    for path in list(&base) {
        match path.file_name().and_then(|name| name.to_str()) {
            _ if path == live => {}
            Some("staging") => pins.staging = Some(path),
            _ => pins.foreign.push(path),
        }
    }
    if !live.is_dir() {
        return pins;
    }
    let absent = |directory: &str, names: &mut dyn Iterator<Item = &str>| -> Vec<PathBuf> {
        names
            .map(|name| live.join(directory).join(name))
            .filter(|path| !path.exists())
            .collect()
    };
    pins.missing_maps = absent(
        "maps",
        &mut MAP_NAMES.into_iter().filter(|name| !OPTIONAL.contains(name)),
    );
    pins.missing_programs = absent("progs", &mut PROGRAM_NAMES.into_iter());
    // Those for IPv6 are there together or not at all.
    let missing = absent("maps", &mut V6_MAP_NAMES.into_iter());
    if missing.len() < V6_MAP_NAMES.len() {
        pins.missing_maps.extend(missing);
        pins.missing_programs
            .extend(absent("progs", &mut V6_PROGRAM_NAMES.into_iter()));
    }
    for (directory, mode) in [("maps", 0o640), ("progs", 0o600), ("links", 0o600)] {
        let directory = live.join(directory);
        pins.loose.extend(loose(&directory, 0o750));
        pins.loose
            .extend(list(&directory).iter().filter_map(|path| loose(path, mode)));
    }
    pins
}

/// More than the owner should have, or another owner.
fn loose(path: &Path, mode: u32) -> Option<(PathBuf, u32, u32, u32)> {
    let metadata = fs::metadata(path).ok()?;
    let (found, owner) = (metadata.mode() & 0o7777, metadata.uid());
    (found & !mode != 0 || owner != 0).then(|| (path.to_owned(), found, owner, mode))
}

fn list(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

pub(super) fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.f_type == BPF_FS_MAGIC)
}

pub(super) fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let (pins, mut found) = (&snapshot.pins, Vec::new());
    let pods = snapshot.endpoints().len();
    let is_loaded = !matches!(snapshot.datapath, Pinned::Absent);
    if pods > 0 && !snapshot.kernel.has_bpffs {
        let path = snapshot.root.path("/sys/fs/bpf");
        found.push(Finding::new(
            Code::NoBpffs,
            format!("{} is no bpffs, and there are {pods} pods", path.display()),
        ));
    } else if pods > 0 && !is_loaded {
        let path = snapshot.root.path("/sys/fs/bpf/causeway");
        let about = format!(
            "there is no {}, and there are {pods} pods",
            path.join(format!("v{SCHEMA}")).display()
        );
        found.push(Finding::new(Code::NotLoaded, about));
    }
    found.extend(pins.loose.iter().map(|(path, mode, owner, wanted)| {
        let about = format!("{} has mode {mode:04o} and owner {owner}", path.display());
        Finding::new(Code::PinAccess, about)
            .with("PATH", path.display())
            .with("VALUE", format!("{wanted:04o}"))
    }));
    let at =
        |code, path: &PathBuf| Finding::new(code, path.display().to_string()).with("PATH", path.display());
    found.extend(pins.foreign.iter().map(|path| at(Code::ForeignTree, path)));
    found.extend(pins.staging.iter().map(|path| at(Code::HalfMade, path)));
    found.extend(pins.missing_maps.iter().map(|path| at(Code::MapMissing, path)));
    found.extend(
        pins.missing_programs
            .iter()
            .map(|path| at(Code::ProgramMissing, path)),
    );
    if let Pinned::Unusable(error) = &snapshot.datapath {
        found.extend(unusable(error, pins));
    }
    found
}

/// Why the tree cannot be opened, unless a missing pin says it already.
fn unusable(error: &DatapathError, pins: &Pins) -> Option<Finding> {
    match error {
        DatapathError::Layout { path, .. } => {
            Some(Finding::new(Code::MapLayout, error.to_string()).with("PATH", path.display()))
        }
        _ if pins.missing_maps.is_empty() && pins.missing_programs.is_empty() => {
            Some(Finding::new(Code::MapMissing, error.to_string()))
        }
        _ => None,
    }
}
