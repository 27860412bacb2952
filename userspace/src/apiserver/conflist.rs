//! What the conflist says of the API server. The agent's files stand over it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Description, Document};
use crate::{
    datapath::{Datapath, DatapathError},
    durable,
    root::Root,
    settings::Settings,
};

/// Where the plug-in notes it for the agent.
pub const CONFLIST: &str = "/run/causeway/conflist/apiserver.json";

/// The directory of [`CONFLIST`], which has nothing else.
pub fn directory(root: &Root) -> PathBuf {
    let file = root.path(CONFLIST);
    file.parent().map_or_else(|| file.clone(), Path::to_owned)
}

/// It cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    /// It cannot be noted.
    #[error("cannot note the API server of the conflist in {path}: {source}", path = path.display())]
    Note {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The programs cannot be told.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// What was noted last; nothing if it cannot be read.
pub fn noted(root: &Root) -> Option<Document> {
    let bytes = durable::read(&root.path(CONFLIST)).ok().flatten()?;
    serde_json::from_slice(&bytes).ok()
}

/// Follows what a conflist says, unless the agent's files say otherwise. Costs one reading of a file where nothing has
/// changed.
///
/// # Errors
///
/// Nothing is half-done: the next call tries again.
pub fn follow(
    root: &Root,
    datapath: &Datapath,
    document: &Document,
    server: &Description,
) -> Result<(), ConflistError> {
    let before = noted(root);
    if before.as_ref() == Some(document) {
        return Ok(());
    }
    let of_before = before
        .and_then(|before| before.check().ok())
        .map(|before| before.at_rest());
    let mut settings = Settings::noted(root);
    // What is there and is not ours the agent has noted.
    if settings.api_server.is_none() || settings.api_server == of_before {
        settings.api_server = Some(server.at_rest());
        settings.note(root).map_err(|error| ConflistError::Note {
            path: error.path().to_owned(),
            source: io::Error::other(error.to_string()),
        })?;
        datapath.apply_choice(&settings)?;
    }
    let path = root.path(CONFLIST);
    let write = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        durable::write(&path, &serde_json::to_vec(document)?)
    };
    write().map_err(|source| ConflistError::Note {
        path: path.clone(),
        source,
    })
}
