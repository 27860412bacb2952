//! The mark of a family's sweeps: its modification time is the end of the last sweep (or the time of the first call), and its
//! content the seconds until the next one. Who sweeps, of whichever family, has locked that of IPv4.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    marker::PhantomData,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use causeway_common::{addr::Address, schedule::Schedule};

use crate::{datapath::DatapathError, durable, root::Root};

pub(super) type V4 = [u8; 4];
pub(super) type V6 = [u8; 16];

#[derive(Debug)]
pub(super) struct Mark<A> {
    path: PathBuf,
    file: File,
    family: PhantomData<A>,
}

impl Mark<V4> {
    /// Waits until nobody else sweeps.
    pub(super) fn lock(&self) -> Result<(), DatapathError> {
        self.file.lock().map_err(|source| self.failed(source))
    }

    /// Whether nobody else is sweeping.
    pub(super) fn try_lock(&self) -> Result<bool, DatapathError> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(source)) => Err(self.failed(source)),
        }
    }
}

impl<A: Address> Mark<A> {
    /// The mark of the family, which is made if there is none.
    pub(super) fn open(root: &Root) -> Result<Self, DatapathError> {
        let path = Self::path(root);
        let file = durable::open(&path, options().create(true).truncate(false));
        let file = file.map_err(|source| DatapathError::file(&path, source))?;
        Ok(Self::of(path, file))
    }

    /// The mark of the family, if there is one.
    pub(super) fn find(root: &Root) -> Result<Option<Self>, DatapathError> {
        let path = Self::path(root);
        match options().open(&path) {
            Ok(file) => Ok(Some(Self::of(path, file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DatapathError::file(&path, source)),
        }
    }

    fn path(root: &Root) -> PathBuf {
        root.path(format!("/run/causeway/sweep-{}", A::FAMILY))
    }

    fn of(path: PathBuf, file: File) -> Self {
        Self {
            path,
            file,
            family: PhantomData,
        }
    }

    pub(super) fn is_due(&self) -> Result<bool, DatapathError> {
        let modified = self.file.metadata().and_then(|metadata| metadata.modified());
        let modified = modified.map_err(|source| self.failed(source))?;
        let period = Duration::from_secs(self.schedule()?.seconds().into());
        // A time to come is of a clock that has been set back.
        Ok(modified.elapsed().map_or(true, |age| age > period))
    }

    /// [`Schedule::FIRST`] before the first sweep; and if the content makes no sense.
    pub(super) fn schedule(&self) -> Result<Schedule<A>, DatapathError> {
        let mut text = [0; 16];
        let length = self
            .file
            .read_at(&mut text, 0)
            .map_err(|source| self.failed(source))?;
        let seconds = str::from_utf8(&text[..length]).map(|text| text.trim().parse());
        Ok(match seconds {
            Ok(Ok(seconds)) => Schedule::kept(seconds),
            _ => Schedule::FIRST,
        })
    }

    /// Notes that a sweep has ended.
    pub(super) fn set(&self, next: Schedule<A>) -> Result<(), DatapathError> {
        let text = format!("{}\n", next.seconds());
        let written = self
            .file
            .set_len(0)
            .and_then(|()| self.file.write_all_at(text.as_bytes(), 0))
            .and_then(|()| self.file.set_modified(SystemTime::now()));
        written.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> DatapathError {
        DatapathError::file(&self.path, source)
    }
}

fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true);
    options
}

#[cfg(test)]
mod tests {
    use std::fs;

    use causeway_common::schedule::Found;

    use super::*;

    fn ago(seconds: u64) -> SystemTime {
        SystemTime::now() - Duration::from_secs(seconds)
    }

    #[test]
    fn the_next_call_keeps_to_the_schedule_that_the_last_sweep_left() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let mark = Mark::<V4>::open(&root).unwrap();
        assert_eq!(mark.schedule().unwrap(), Schedule::FIRST);
        assert!(
            !mark.is_due().unwrap(),
            "nobody has swept, and nobody had the time to"
        );
        let nothing = Found {
            scanned: 100,
            forgotten: 0,
            is_cut: false,
        };
        mark.set(mark.schedule().unwrap().after(nothing)).unwrap();

        let next = Mark::<V4>::open(&root).unwrap();
        for (seconds, is_due) in [(100, false), (121, true)] {
            next.file.set_modified(ago(seconds)).unwrap();
            assert_eq!(next.is_due().unwrap(), is_due, "after {seconds} s");
        }
        next.set(Schedule::AT_ONCE).unwrap();
        assert!(mark.is_due().unwrap(), "a pass was cut");
        fs::write(&mark.path, b"\xff 7").unwrap();
        assert_eq!(mark.schedule().unwrap(), Schedule::FIRST);
    }

    #[test]
    fn families_keep_their_schedules_apart() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert!(Mark::<V6>::find(&root).unwrap().is_none());
        let (four, six) = (Mark::<V4>::open(&root).unwrap(), Mark::<V6>::open(&root).unwrap());
        four.set(Schedule::SHORTEST).unwrap();
        assert_eq!(six.schedule().unwrap(), Schedule::FIRST);
        let found = Mark::<V6>::find(&root).unwrap().unwrap();
        found.set(Schedule::AT_ONCE).unwrap();
        assert!(six.is_due().unwrap() && !four.is_due().unwrap());
        four.lock().unwrap();
        assert!(!Mark::<V4>::open(&root).unwrap().try_lock().unwrap());
    }
}
