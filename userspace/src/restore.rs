//! What was changed on the node beside the datapath itself, so that `unload` can put it back.
//!
//! One small file a fact below `<root>/run/causeway/restore`. `/run` forgets at boot, as the changes themselves do.
//! A fact is noted before the change is made: after a crash between the two, putting back is a change that changes
//! nothing.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use crate::root::Root;

/// A note could not be read or written.
#[derive(Debug)]
pub(crate) struct RestoreError {
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

/// The notes of a node.
#[derive(Debug)]
pub(crate) struct Restore {
    directory: PathBuf,
}

impl Restore {
    pub(crate) fn new(root: &Root) -> Self {
        Self {
            directory: root.path("/run/causeway/restore"),
        }
    }

    /// `net.ipv4.ip_forward` had this value. An older note wins: it is what the node was found with.
    pub(crate) fn note_forwarding(&self, before: &str) -> Result<(), RestoreError> {
        match self.forwarding()? {
            Some(_) => Ok(()),
            None => write(&self.directory.join("ip_forward"), before),
        }
    }

    pub(crate) fn forwarding(&self) -> Result<Option<String>, RestoreError> {
        read(&self.directory.join("ip_forward"))
    }

    /// The sysctl had this value, in the order of the changes. An older note wins.
    pub(crate) fn note_sysctl(&self, name: &str, before: &str) -> Result<(), RestoreError> {
        let mut noted = self.sysctls()?;
        if noted.iter().any(|(known, _)| known == name) {
            return Ok(());
        }
        noted.push((name.to_owned(), before.to_owned()));
        let lines = noted.iter().map(|(name, before)| format!("{name} {before}\n"));
        write(&self.directory.join("sysctls"), &lines.collect::<String>())
    }

    /// The sysctls that were changed, with the values that they had.
    pub(crate) fn sysctls(&self) -> Result<Vec<(String, String)>, RestoreError> {
        let noted = read(&self.directory.join("sysctls"))?.unwrap_or_default();
        let lines = noted.lines().filter_map(|line| line.split_once(' '));
        Ok(lines
            .map(|(name, before)| (name.to_owned(), before.to_owned()))
            .collect())
    }

    /// A bpffs was mounted here.
    pub(crate) fn note_bpffs(&self, mount_point: &Path) -> Result<(), RestoreError> {
        write(&self.directory.join("bpffs"), &mount_point.to_string_lossy())
    }

    pub(crate) fn has_bpffs(&self) -> Result<bool, RestoreError> {
        Ok(read(&self.directory.join("bpffs"))?.is_some())
    }

    /// A clsact qdisc was added to this interface.
    pub(crate) fn note_clsact(&self, interface: &str) -> Result<(), RestoreError> {
        write(&self.directory.join("clsact").join(interface), "")
    }

    /// The interface's qdisc is gone with the interface.
    pub(crate) fn forget_clsact(&self, interface: &str) -> Result<(), RestoreError> {
        remove(&self.directory.join("clsact").join(interface))
    }

    /// The interfaces that were given a clsact qdisc.
    pub(crate) fn clsact(&self) -> Result<Vec<String>, RestoreError> {
        let directory = self.directory.join("clsact");
        let failed = |source| RestoreError {
            path: directory.clone(),
            source,
        };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        entries
            .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) -> Result<(), RestoreError> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(RestoreError {
                path: self.directory.clone(),
                source: error,
            }),
            _ => Ok(()),
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), RestoreError> {
    let written = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, text));
    written.map_err(|source| RestoreError {
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<Option<String>, RestoreError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RestoreError {
            path: path.to_owned(),
            source,
        }),
    }
}

fn remove(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(RestoreError {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_noted_is_the_one_put_back() {
        let directory = tempfile::tempdir().unwrap();
        let restore = Restore::new(&Root::new(directory.path()));
        assert_eq!(restore.forwarding().unwrap(), None);
        restore.note_forwarding("0").unwrap();
        restore.note_forwarding("1").unwrap();
        assert_eq!(restore.forwarding().unwrap().as_deref(), Some("0"));
        for (name, before) in [("a/b", "1"), ("c", "0"), ("a/b", "2")] {
            restore.note_sysctl(name, before).unwrap();
        }
        let pair = |name: &str, before: &str| (name.to_owned(), before.to_owned());
        assert_eq!(restore.sysctls().unwrap(), [pair("a/b", "1"), pair("c", "0")]);
    }

    #[test]
    fn notes_are_kept_by_interface_until_cleared() {
        let directory = tempfile::tempdir().unwrap();
        let restore = Restore::new(&Root::new(directory.path()));
        assert!(restore.clsact().unwrap().is_empty() && !restore.has_bpffs().unwrap());
        restore.note_clsact("eth0").unwrap();
        restore.note_clsact("azv1").unwrap();
        restore.forget_clsact("azv1").unwrap();
        restore.forget_clsact("azv1").unwrap();
        restore.note_bpffs(Path::new("/sys/fs/bpf")).unwrap();
        assert_eq!(restore.clsact().unwrap(), ["eth0"]);
        assert!(restore.has_bpffs().unwrap());
        restore.clear().unwrap();
        restore.clear().unwrap();
        assert!(restore.clsact().unwrap().is_empty() && !restore.has_bpffs().unwrap());
    }
}
