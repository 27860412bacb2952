//! `causeway bundle`: everything that somebody far away needs to see, in one archive.
//!
//! Nothing that cannot be read ends it: the manifest names it. Other programs are asked side by side, each for a few seconds
//! at most.

mod sources;
mod tar;

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use causeway::{go_json::rfc3339, root::Root};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use self::tar::Archive;
use super::{Failure, output::API_VERSION};

/// A file of the archive, or why it is not there.
struct Piece {
    name: String,
    contents: Result<Vec<u8>, String>,
}

/// What the archive has and what it lacks.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    api_version: &'static str,
    kind: &'static str,
    /// RFC 3339.
    created: String,
    version: &'static str,
    node: String,
    files: Vec<Listed>,
    missing: Vec<Missing>,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    bytes: usize,
    sha256: String,
}

#[derive(Serialize)]
struct Missing {
    name: String,
    why: String,
}

/// Writes the archive; without a name to a file of its own in the working directory.
pub(crate) fn run(root: &Root, output: Option<&Path>) -> Result<(), Failure> {
    let now = SystemTime::now();
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // The host's name is others'; the archive's has room for so much of it.
    let short: String = node
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(40)
        .collect();
    let title = format!("causeway-{short}-{seconds}");
    let pieces = sources::gather(root);
    let manifest = manifest(&pieces, rfc3339(now), node);
    let default = PathBuf::from(format!("{title}.tar"));
    let path = output.unwrap_or(&default);
    if path == Path::new("-") {
        return write(io::stdout().lock(), &title, seconds, &pieces, &manifest).map_err(Failure::Output);
    }
    let failed = |source| Failure::File {
        path: path.to_owned(),
        source,
    };
    // It tells about every pod of the node.
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    write(file.map_err(failed)?, &title, seconds, &pieces, &manifest).map_err(failed)?;
    let (files, missing) = (manifest.files.len(), manifest.missing.len());
    writeln!(
        io::stdout(),
        "{}: {files} files; {missing} could not be had (see manifest.json)",
        path.display()
    )
    .map_err(Failure::Output)
}

fn manifest(pieces: &[Piece], created: String, node: String) -> Manifest {
    let listed = |name: &str, contents: &[u8]| Listed {
        name: name.to_owned(),
        bytes: contents.len(),
        sha256: <[u8; 32]>::from(Sha256::digest(contents))
            .map(|byte| format!("{byte:02x}"))
            .concat(),
    };
    let mut manifest = Manifest {
        api_version: API_VERSION,
        kind: "Bundle",
        created,
        version: env!("CARGO_PKG_VERSION"),
        node,
        files: Vec::new(),
        missing: Vec::new(),
    };
    for Piece { name, contents } in pieces {
        match contents {
            Ok(contents) => manifest.files.push(listed(name, contents)),
            Err(why) => manifest.missing.push(Missing {
                name: name.clone(),
                why: why.clone(),
            }),
        }
    }
    manifest
}

fn write(
    out: impl Write,
    title: &str,
    seconds: u64,
    pieces: &[Piece],
    manifest: &Manifest,
) -> io::Result<()> {
    let mut archive = Archive::new(BufWriter::new(out), seconds);
    archive.add(
        &format!("{title}/manifest.json"),
        &serde_json::to_vec_pretty(manifest)?,
    )?;
    for Piece { name, contents } in pieces {
        if let Ok(contents) = contents {
            archive.add(&format!("{title}/{name}"), contents)?;
        }
    }
    archive.finish()
}
