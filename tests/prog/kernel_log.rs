//! What the kernel complains about while a test runs.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
};

/// The kernel's log from the moment of opening on.
pub(crate) struct KernelLog(File);

/// Words of lines that no packet may cause.
const ALARMS: [&str; 7] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "csum failure",
    "general protection fault",
    "KASAN",
    "Call Trace",
];

impl KernelLog {
    pub(crate) fn open() -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// Complaints since it was opened, or read before. A read returns one record.
    pub(crate) fn complaints(&mut self) -> io::Result<Vec<String>> {
        let mut complaints = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    let line = String::from_utf8_lossy(&record[..length]);
                    if ALARMS.iter().any(|alarm| line.contains(alarm)) {
                        complaints.push(line.trim_end().to_owned());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(complaints),
                // Records were overwritten before they were read: the next read goes on behind them.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
