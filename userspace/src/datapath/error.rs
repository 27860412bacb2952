//! What can go wrong, and what to do about it.

use std::{io, path::PathBuf};

use aya::{maps::MapError, programs::ProgramError};
use thiserror::Error;

use super::{AttachFailure, AttachMode, Layout, XdpRefusal};
use crate::{
    durable::LockError, exact_rule::ExactRuleError, links::LinkError, node::NodeError, restore::RestoreError,
};

/// What can go wrong with the datapath.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// Somebody else holds the lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel's rule beside the programs.
    #[error(transparent)]
    ExactRule(#[from] ExactRuleError),
    /// No bpffs.
    #[error("cannot use {} as bpffs: {source}", mount_point.display())]
    Bpffs {
        /// Where it should be.
        mount_point: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file or a pin cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pinned object cannot be made or opened.
    #[error("cannot use the pin {}: {}; `causeway unload` removes a damaged datapath", path.display(), chain(source))]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        source: PinFailure,
    },
    /// A pinned map is not what this build expects.
    #[error(
        "the pinned map {name} ({}) is a {found}, but this build needs a {expected}: it was made by another version; \
         run `causeway unload` of either version, which ends the flows of the pods, and try again",
        path.display()
    )]
    Layout {
        /// The map.
        name: &'static str,
        /// Its pin.
        path: PathBuf,
        /// What this build needs.
        expected: Box<Layout>,
        /// What is there.
        found: Box<Layout>,
    },
    /// Another version's datapath is in place.
    #[error("{} is the datapath of another version: run `causeway unload` first, which ends the flows of the pods",
        .0.display())]
    ForeignTree(PathBuf),
    /// The pins have gone while they were used.
    #[error("{} has been removed by somebody else: was `causeway unload` run? Try again", .0.display())]
    Vanished(PathBuf),
    /// The object cannot be loaded.
    #[error("cannot load the kernel programs: {}; Linux 6.1 or later and CAP_BPF are needed", chain(.0.as_ref()))]
    Load(#[source] Box<aya::EbpfError>),
    /// A program cannot be loaded.
    #[error("cannot load the kernel program {name}: {}", chain(source.as_ref()))]
    Program {
        /// The program.
        name: &'static str,
        /// What the kernel said, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// The object lacks a program.
    #[error("the embedded object has no program {0}: it was built from other sources, build again")]
    UnknownProgram(&'static str),
    /// A map has no layout.
    #[error("the map {0} has no known layout: it was built from other sources, build again")]
    UnknownMap(&'static str),
    /// A map cannot be read or written.
    #[error("map {name}: {}", chain(source))]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// A map cannot be read or swept in batches.
    #[error("cannot read or sweep the map {name}: {source}")]
    Batch {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The table of pods is full.
    #[error(
        "cwy_pods is full: the node has as many pods as it can have, or departed ones are not yet forgotten"
    )]
    TooManyPods,
    /// A pod has an address of IPv6 alone, and nobody would look at what it sends.
    #[error(
        "the programs are an earlier build's, which serve no pod without an address of IPv4: run `causeway upgrade`, \
         which ends no flow, and try again"
    )]
    NoIpv6,
    /// More ranges than a list may have.
    #[error("{0} ranges are more than the {limit} that cwy_ranges has room for: join neighbouring ones", limit = causeway_common::maps::RANGES)]
    TooManyRanges(usize),
    /// A program cannot be attached or detached.
    #[error("{program} on {hook}: {}", chain(source))]
    Attach {
        /// The program.
        program: &'static str,
        /// Interface and direction.
        hook: String,
        /// What the kernel said.
        source: AttachFailure,
    },
    /// XDP was asked for where it cannot be had.
    #[error("{0}")]
    Xdp(XdpRefusal),
    /// The environment names an unknown mode.
    #[error("{var}={0:?} is no way to attach: use auto, tcx or clsact", var = AttachMode::VARIABLE)]
    AttachMode(String),
    /// tcx is demanded and not there.
    #[error("this kernel has no tcx for {0}: unset {var} to use clsact", var = AttachMode::VARIABLE)]
    NoTcx(String),
    /// An ingress qdisc is in the way.
    #[error(
        "interface {0} has an ingress qdisc, which has no egress hook, and this kernel has no tcx: replace it with \
         `tc qdisc replace dev {0} clsact`, which drops its filters, or remove it"
    )]
    IngressQdisc(String),
    /// Somebody else's filter is in the way.
    #[error(
        "the filter {name:?} stands on {hook} with the priority and handle of ours: move it to another priority"
    )]
    FilterInPlace {
        /// Interface and direction.
        hook: String,
        /// Its name.
        name: String,
    },
    /// The kernel gave no random numbers.
    #[error("cannot draw a random seed: {0}")]
    Random(#[source] io::Error),
    /// rtnetlink failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The node's settings cannot be changed.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Several things went wrong; the rest was done.
    #[error("{action} is incomplete: {}", join(.errors))]
    Incomplete {
        /// What was being done.
        action: String,
        /// What went wrong.
        errors: Vec<Self>,
    },
}

impl DatapathError {
    pub(super) fn file(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File {
            path: path.into(),
            source,
        }
    }

    /// Nothing, or what went wrong while `action` was done to the end all the same.
    pub(super) fn collect(action: impl FnOnce() -> String, mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(Self::Incomplete {
                action: action(),
                errors,
            }),
        }
    }
}

impl From<RestoreError> for DatapathError {
    fn from(RestoreError { path, source }: RestoreError) -> Self {
        Self::File { path, source }
    }
}

/// An error with its causes: aya's own text often names the call and not what the kernel said to it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string().trim_end().to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn join(errors: &[DatapathError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Why a pinned object cannot be made or opened.
#[derive(Debug, Error)]
pub enum PinFailure {
    /// It is a map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// It is a program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// It was being pinned.
    #[error(transparent)]
    Pin(#[from] aya::pin::PinError),
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn an_error_says_what_the_kernel_said_and_says_it_once() {
        let refused = || io::Error::from_raw_os_error(libc::EACCES);
        let call = SyscallError {
            call: "BPF_OBJ_GET",
            io_error: refused(),
        };
        let error = DatapathError::Map {
            name: "cwy_pods",
            source: MapError::SyscallError(call),
        };
        let text = error.to_string();
        assert!(
            text.contains("cwy_pods") && text.contains("BPF_OBJ_GET"),
            "{text}"
        );
        assert_eq!(text.matches(&refused().to_string()).count(), 1, "{text}");
    }

    #[test]
    fn one_error_is_itself_and_several_are_listed() {
        let random = || DatapathError::Random(io::Error::from_raw_os_error(libc::EIO));
        let action = || "the test".to_owned();
        assert!(DatapathError::collect(action, vec![]).is_ok());
        let one = DatapathError::collect(action, vec![random()]).unwrap_err();
        assert_eq!(one.to_string(), random().to_string());
        let two = DatapathError::collect(action, vec![random(), DatapathError::TooManyPods]).unwrap_err();
        let text = two.to_string();
        assert!(text.starts_with("the test is incomplete: "), "{text}");
        assert!(
            text.contains(&random().to_string()) && text.contains("cwy_pods is full"),
            "{text}"
        );
    }
}
