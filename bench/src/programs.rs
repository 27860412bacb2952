//! The bench's kernel programs, loaded. Every user loads the object anew and so has maps of its own.

use std::borrow::Borrow;

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::Array,
    programs::{SchedClassifier, Xdp},
};

#[path = "../ebpf/src/layout.rs"]
#[allow(dead_code, reason = "some of it only the programs need")]
pub(crate) mod layout;

use layout::{Counted, Course, Expect, Feed};

// SAFETY: integers without padding.
unsafe impl Pod for Course {}
// SAFETY: as above.
unsafe impl Pod for Expect {}
// SAFETY: as above.
unsafe impl Pod for Counted {}
// SAFETY: as above.
unsafe impl Pod for Feed {}

/// The programs, compiled by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench.bpf.o"));

/// One loaded object. Dropped, its programs are detached.
#[derive(Debug)]
pub(crate) struct Programs(Ebpf);

impl Programs {
    /// Makes the maps. Programs are loaded when they are first asked for.
    pub(crate) fn load() -> Result<Self> {
        Self::load_with(&mut EbpfLoader::new())
    }

    /// As [`Self::load`], with statics or sizes of the caller's.
    pub(crate) fn load_with(loader: &mut EbpfLoader<'_>) -> Result<Self> {
        Ok(Self(
            loader.load(OBJECT).context("cannot load the bench's programs")?,
        ))
    }

    /// An XDP program, loaded.
    pub(crate) fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        let program: &mut Xdp = self.program(name)?.try_into()?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("cannot load {name}"))?;
        }
        Ok(program)
    }

    /// A tc program, loaded.
    pub(crate) fn tc(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        let program: &mut SchedClassifier = self.program(name)?.try_into()?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("cannot load {name}"))?;
        }
        Ok(program)
    }

    /// Writes the one element of an array.
    pub(crate) fn set<T: Pod>(&mut self, map: &str, value: impl Borrow<T>) -> Result<()> {
        let mut array: Array<_, T> = self.map(map)?.try_into()?;
        array
            .set(0, value, 0)
            .with_context(|| format!("cannot write to {map}"))
    }

    /// A map.
    pub(crate) fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.0.map_mut(name).with_context(|| format!("no map {name}"))
    }

    fn program(&mut self, name: &str) -> Result<&mut aya::programs::Program> {
        self.0
            .program_mut(name)
            .with_context(|| format!("no program {name}"))
    }
}
