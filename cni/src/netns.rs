//! The container's network namespace, as the runtime names it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
};

use crate::error::{CniError, code};

/// Opens the namespace at `path`. Unless `own_allowed`, it must not be the caller's.
pub(crate) fn open(path: &str, own_allowed: bool) -> Result<File, CniError> {
    // O_NONBLOCK: a FIFO in this place must not hang the runtime.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = opened.map_err(|error| invalid(path, &error.to_string()))?;
    if !is_network_namespace(&file).map_err(|error| invalid(path, &error.to_string()))? {
        return Err(invalid(path, "it is not a network namespace"));
    }
    if !own_allowed && is_own(&file).map_err(|error| invalid(path, &error.to_string()))? {
        return Err(invalid(
            path,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        ));
    }
    Ok(file)
}

fn invalid(path: &str, problem: &str) -> CniError {
    CniError::new(
        code::NETNS,
        format!("failed to open netns {path:?}: {problem}; CNI_NETNS must be the container's"),
    )
}

/// `NS_GET_NSTYPE` of `linux/nsfs.h`: `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

fn is_network_namespace(file: &File) -> io::Result<bool> {
    if u64::try_from(rustix::fs::fstatfs(file)?.f_type) != Ok(NSFS_MAGIC) {
        return Ok(false);
    }
    // SAFETY: the descriptor is open, and the request takes no argument.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(kind == libc::CLONE_NEWNET)
}

fn is_own(file: &File) -> io::Result<bool> {
    let own = std::fs::metadata("/proc/thread-self/ns/net")?;
    let other = file.metadata()?;
    Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_foreign_network_namespace_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        for (path, needle) in [
            ("/nonexistent", "No such file"),
            ("netnspath", "No such file"),
            ("/proc/self/ns/uts", "not a network namespace"),
            ("/dev/null", "not a network namespace"),
            ("/tmp", "not a network namespace"),
            (pipe.to_str().unwrap(), "not a network namespace"),
            ("/proc/self/ns/net", "should not be the same"),
        ] {
            let error = open(path, false).unwrap_err();
            assert_eq!(error.code, 8);
            assert!(error.msg.contains(needle), "{path}: {}", error.msg);
        }
        open("/proc/self/ns/net", true).unwrap();
    }
}
