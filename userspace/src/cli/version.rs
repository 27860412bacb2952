//! `causeway version`.

use std::io::{self, Write};

use causeway::datapath::tcx_supported;
use causeway_common::maps::SCHEMA;
use serde::Serialize;

use super::output::Report;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Version {
    /// Of the program.
    #[serde(rename = "version")]
    program: &'static str,
    /// Of the map layouts.
    schema: u32,
    /// Release of the running kernel.
    kernel: String,
    /// Ways to attach that the kernel has, the preferred one first.
    attach_modes: Vec<&'static str>,
}

pub(crate) fn gather() -> Version {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut attach_modes = vec!["clsact"];
    if tcx_supported() {
        attach_modes.insert(0, "tcx");
    }
    Version {
        program: env!("CARGO_PKG_VERSION"),
        schema: SCHEMA,
        kernel,
        attach_modes,
    }
}

impl Report for Version {
    const KIND: &'static str = "Version";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self {
            program,
            schema,
            kernel,
            attach_modes,
        } = self;
        writeln!(out, "causeway {program}, schema {schema}")?;
        writeln!(
            out,
            "kernel {kernel}, attaches with {}",
            attach_modes.join(" or ")
        )
    }
}
