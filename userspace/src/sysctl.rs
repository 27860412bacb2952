//! `/proc/sys`, as the network namespace of the calling thread shows it.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::FileExt as _,
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

/// A sysctl that is read again and again. It is held open: where namespaces are many, walking to it takes longer than all
/// the rest. It goes on showing the namespace of the thread that read it first.
#[derive(Debug)]
pub(crate) struct Held {
    name: &'static str,
    file: Option<File>,
}

impl Held {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, file: None }
    }

    /// As [`read`], but only its first 64 bytes.
    pub(crate) fn read(&mut self) -> io::Result<Option<String>> {
        if let Some(Ok(value)) = self.file.as_ref().map(head) {
            return Ok(Some(value));
        }
        // What was held may be of a module that is gone.
        self.file = match File::open(path(self.name)) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        self.file.as_ref().map(head).transpose()
    }
}

fn head(file: &File) -> io::Result<String> {
    let mut bytes = [0; 64];
    let length = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).trim().to_owned())
}

/// Sets a sysctl.
pub(crate) fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value)
}

/// Where it is.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}
