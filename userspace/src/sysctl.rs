//! `/proc/sys`, as the network namespace of the calling thread shows it.

use std::{
    fs,
    io::{self, ErrorKind},
    path::PathBuf,
};

/// The value of a sysctl such as `net/ipv4/ip_forward`, `None` where the kernel does not have it.
pub(crate) fn read(name: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(path(name)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets a sysctl.
pub(crate) fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value)
}

/// Where it is.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}
