//! `causeway version`.

use std::io::{self, Write};

use causeway::datapath::{Mechanism, mechanisms};
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
    /// Ways to attach that the kernel has, the preferred one first; null when it does not say.
    attach_modes: Option<Vec<&'static str>>,
}

pub(crate) fn gather() -> Version {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let attach_modes = mechanisms()
        .ok()
        .map(|all| all.into_iter().map(Mechanism::name).collect());
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
        match attach_modes {
            Some(modes) => writeln!(out, "kernel {kernel}, attaches with {}", modes.join(" or ")),
            None => writeln!(out, "kernel {kernel} (how it attaches is told to root)"),
        }
    }
}
