//! The ring of events: samples of what the programs drop. It has one reader at a time; what nobody reads stays until it
//! is full, and then nothing more is written.

use std::{fmt, io, os::fd::AsFd as _, time::Duration};

use aya::maps::{MapData, RingBuf};
use causeway_common::event::Event;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Datapath, DatapathError};
use crate::durable::Lock;

/// Held by whoever reads events.
const LOCK: &str = "/run/causeway/events.lock";

/// The reader's end of the ring.
pub struct Events {
    ring: RingBuf<MapData>,
    _only_reader: Lock,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Datapath {
    /// Opens the ring of events.
    ///
    /// # Errors
    ///
    /// When somebody else is reading; the error names the process.
    pub fn events(&self) -> Result<Events, DatapathError> {
        let lock = Lock::acquire(&self.root.path(LOCK), Duration::ZERO)?;
        Ok(Events {
            ring: self.tables.events()?,
            _only_reader: lock,
        })
    }
}

impl Iterator for Events {
    type Item = Event;

    /// The oldest event that was not read yet. Records of another length than this build's are passed over.
    fn next(&mut self) -> Option<Event> {
        loop {
            let record = self.ring.next()?;
            if record.len() == size_of::<Event>() {
                // SAFETY: the record has an event's length, and any bytes are a value of `Event`.
                return Some(unsafe { record.as_ptr().cast::<Event>().read_unaligned() });
            }
        }
    }
}

impl Events {
    /// Waits until there is an event, at most `timeout`. Whether there may be one.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec {
            tv_sec: i64::from(u32::MAX),
            tv_nsec: 0,
        });
        let mut ring = [PollFd::from_borrowed_fd(self.ring.as_fd(), PollFlags::IN)];
        match poll(&mut ring, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }
}
