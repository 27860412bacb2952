//! What is wrong with the input.

use thiserror::Error;

/// An input that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{origin}: {message}")]
pub struct InputError {
    /// The file or the flag.
    pub origin: String,
    /// What is wrong, where in it, and what belongs there.
    pub message: String,
}

impl InputError {
    /// An error of that file or flag.
    pub fn new(origin: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            origin: origin.into(),
            message: message.into(),
        }
    }
}
