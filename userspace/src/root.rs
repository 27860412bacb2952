//! Where a node's files are. Every absolute path that the project opens for itself goes through here.

use std::path::{Path, PathBuf};

/// The directory that stands for `/`.
///
/// With a root of its own (state, locks, bpffs) and a network namespace, a node is complete: several of them live
/// side by side on one machine. `/proc` and `/sys/class` are the kernel's and are never moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// Names the root. Unset or empty means `/`.
    pub const VARIABLE: &str = "CAUSEWAY_ROOT";

    /// The root that the environment names.
    pub fn from_env() -> Self {
        match std::env::var_os(Self::VARIABLE) {
            Some(directory) if !directory.is_empty() => Self(directory.into()),
            _ => Self::new("/"),
        }
    }

    /// A root at `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// `absolute` below this root: `/var/run/x` is `<root>/var/run/x`.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.0.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    /// Whether this is the machine's own root.
    pub fn is_system(&self) -> bool {
        self.0 == Path::new("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_stay_below_the_root() {
        let root = Root::new("/tmp/node");
        assert_eq!(
            root.path("/var/run/azure-vnet.json"),
            Path::new("/tmp/node/var/run/azure-vnet.json")
        );
        assert_eq!(root.path("run"), Path::new("/tmp/node/run"));
        assert_eq!(root.path("/"), Path::new("/tmp/node/"));
        assert_eq!(Root::new("/").path("/etc/config"), Path::new("/etc/config"));
    }
}
