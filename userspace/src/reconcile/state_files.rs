//! The state files. Whoever empties or garbles one has it restored as it was last seen whole.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::Pass;
use crate::{
    durable::{self, Lock, LockError},
    endpoints,
    ipam::store,
    root::Root,
};

#[derive(Debug)]
pub(super) struct StateFiles([StateFile; 2]);

impl StateFiles {
    pub(super) fn new(root: &Root) -> Self {
        let file = |path: &str, lock: &str, is_whole| StateFile {
            path: root.path(path),
            lock: root.path(lock),
            is_whole,
            last: None,
        };
        Self([
            file(endpoints::STATE, endpoints::LOCK, endpoints::is_whole),
            file(store::STATE, store::LOCK, store::is_whole),
        ])
    }

    /// Returns whether one of them has changed since the last time.
    pub(super) fn check(&mut self, notes: &mut Pass) -> bool {
        let mut changed = false;
        for file in &mut self.0 {
            match file.check() {
                Ok(Finding::AsBefore) => continue,
                Ok(Finding::Changed) => {}
                Ok(Finding::Restored) => {
                    notes.note_mended(format!("{} was damaged or gone", file.path.display()));
                }
                Err(error) => {
                    notes.unless_failed::<(), _>(Err(error));
                }
            }
            changed = true;
        }
        changed
    }
}

/// What became of a file since it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    AsBefore,
    Changed,
    Restored,
}

#[derive(Debug)]
struct StateFile {
    path: PathBuf,
    lock: PathBuf,
    is_whole: fn(&[u8]) -> bool,
    /// Its content when it was last seen whole, and which file that was.
    last: Option<(Vec<u8>, Version)>,
}

/// What tells a file from the one that stood there before: inode, length, time of the last change.
type Version = (u64, u64, i64, i64);

#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot restore {path}: {source}", path = path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl StateFile {
    fn check(&mut self) -> Result<Finding, FileError> {
        let version = version_of(&self.path);
        if version.is_some() && self.last.as_ref().map(|(_, version)| *version) == version {
            return Ok(Finding::AsBefore);
        }
        let failed = |source| FileError::File {
            path: self.path.clone(),
            source,
        };
        let content = durable::read(&self.path).map_err(failed)?;
        if let Some(content) = content.filter(|content| (self.is_whole)(content)) {
            self.last = version.map(|version| (content, version));
            return Ok(Finding::Changed);
        }
        let Some((last, noted)) = &mut self.last else {
            return Ok(Finding::AsBefore);
        };
        let _lock = Lock::acquire(&self.lock, Duration::from_secs(1))?;
        // A call may have written it meanwhile.
        match durable::read(&self.path).map_err(failed)? {
            Some(content) if (self.is_whole)(&content) => return Ok(Finding::Changed),
            Some(content) if !content.is_empty() => {
                durable::quarantine(&self.path).map_err(failed)?;
            }
            _ => {}
        }
        durable::write(&self.path, last).map_err(failed)?;
        *noted = version_of(&self.path).unwrap_or_default();
        Ok(Finding::Restored)
    }
}

/// That of the file.
fn version_of(path: &Path) -> Option<Version> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_restored_as_it_was_last_seen_whole_and_the_damage_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let path = root.path(endpoints::STATE);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut files = StateFiles::new(&root);
        let check = |files: &mut StateFiles| {
            let mut pass = Pass::default();
            files.check(&mut pass);
            assert!(pass.faults.is_empty(), "{:?}", pass.faults);
            pass.mended.len()
        };
        fs::write(&path, "{").unwrap();
        assert_eq!(check(&mut files), 0, "nothing is known yet");
        let whole = r#"{"Network":{"ExternalInterfaces":{}}}"#;
        fs::write(&path, whole).unwrap();
        assert_eq!(check(&mut files), 0);
        for damage in ["", "{", "null garbage", r#"{"Network":7}"#] {
            fs::write(&path, damage).unwrap();
            assert_eq!(check(&mut files), 1, "{damage}");
            assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(check(&mut files), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        let aside = root.path(format!("{}.corrupt-0", endpoints::STATE));
        assert_eq!(fs::read_to_string(aside).unwrap(), "{");
    }
}
