//! A call that finds no free address looks for those whose pods are gone.

use causeway::{attachments::orphans, root::Root};

use crate::error::CniError;

/// Makes an attempt; and another one if it found no free address and some were those of pods that are gone.
pub(crate) fn making_room(
    root: &Root,
    mut attempt: impl FnMut() -> Result<(), CniError>,
) -> Result<(), CniError> {
    match attempt() {
        Err(error) if error.is_exhaustion => match orphans::collect(root, |_| true) {
            0 => Err(error),
            _ => attempt(),
        },
        done => done,
    }
}
