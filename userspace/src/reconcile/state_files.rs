//! The state files. Whoever empties or garbles one has it restored as it was last seen whole.

use std::{path::PathBuf, time::Duration};

use super::Notes;
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

    pub(super) fn check(&mut self, notes: &mut Notes<'_>) {
        for file in &mut self.0 {
            match file.check() {
                Ok(true) => notes.mended(format!("{} was damaged or gone", file.path.display())),
                Ok(false) => {}
                Err(error) => {
                    notes.unless_failed::<(), _>(Err(error));
                }
            }
        }
    }
}

#[derive(Debug)]
struct StateFile {
    path: PathBuf,
    lock: PathBuf,
    is_whole: fn(&[u8]) -> bool,
    /// Its content when it was last seen whole.
    last: Option<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot restore {path}: {source}", path = path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl StateFile {
    /// Returns whether it had to be restored.
    fn check(&mut self) -> Result<bool, FileError> {
        let failed = |source| FileError::File {
            path: self.path.clone(),
            source,
        };
        let content = durable::read(&self.path).map_err(failed)?;
        if let Some(content) = content.filter(|content| (self.is_whole)(content)) {
            self.last = Some(content);
            return Ok(false);
        }
        let Some(last) = &self.last else { return Ok(false) };
        let _lock = Lock::acquire(&self.lock, Duration::from_secs(1))?;
        // A call may have written it meanwhile.
        match durable::read(&self.path).map_err(failed)? {
            Some(content) if (self.is_whole)(&content) => return Ok(false),
            Some(content) if !content.is_empty() => {
                durable::quarantine(&self.path).map_err(failed)?;
            }
            _ => {}
        }
        durable::write(&self.path, last).map_err(failed)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_restored_as_it_was_last_seen_whole_and_the_damage_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let path = root.path(endpoints::STATE);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut files = StateFiles::new(&root);
        let check = |files: &mut StateFiles| {
            let (mut mended, mut faults) = (Vec::new(), Vec::new());
            files.check(&mut Notes {
                mended: &mut mended,
                faults: &mut faults,
            });
            assert!(faults.is_empty(), "{faults:?}");
            mended.len()
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
