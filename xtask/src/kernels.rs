//! The rooms of tests on kernels that this machine does not run: Debian's cloud kernels under emulation.
//!
//! A kernel is a package fetched with apt into `target/cache/kernels` ([`fetch`]), its root file system a cpio archive of our
//! own ([`image`]), the machine qemu without KVM ([`guest`]). What runs is in `tests/kernels/plan` ([`plan`]).

mod archive;
mod fetch;
mod guest;
mod image;
mod matrix;
mod plan;

use std::thread;

use anyhow::{Context as _, Result, bail};

use self::{
    matrix::Matrix,
    plan::{Extent, Plan},
};
use crate::{progress::heading, workspace::Workspace};

/// A kernel, and the release of Debian whose packages have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The series: `6.1`.
    pub(crate) name: &'static str,
    suite: &'static str,
}

/// Those that the project promises to run on, beside the one that it is developed on.
const KERNELS: [Kernel; 2] = [
    Kernel {
        name: "6.1",
        suite: "bookworm",
    },
    Kernel {
        name: "6.12",
        suite: "trixie",
    },
];

/// What of it all is to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection<'a> {
    /// One kernel, by its series; all of them without.
    pub(crate) kernel: Option<&'a str>,
    /// Tests with this in their names, in every room of the plan.
    pub(crate) filter: Option<&'a str>,
    /// The part that belongs to every run of the tests, or the whole plan.
    pub(crate) extent: Extent,
}

/// Runs the plan on each kernel and prints what came of it.
pub(crate) fn test(workspace: &Workspace, selection: &Selection<'_>) -> Result<()> {
    let kernels: Vec<_> = KERNELS
        .into_iter()
        .filter(|kernel| selection.kernel.is_none_or(|name| name == kernel.name))
        .collect();
    if kernels.is_empty() {
        let known = KERNELS.map(|kernel| kernel.name).join(", ");
        bail!("no kernel is called so: --kernel takes one of {known}");
    }
    let plan = Plan::read(workspace, selection)?;
    let rooms = image::build_rooms(workspace, &plan)?;
    let mut guests = Vec::new();
    for kernel in kernels {
        heading(&format!("Linux {}", kernel.name));
        let files = fetch::fetch(workspace, &kernel)
            .with_context(|| format!("Linux {} cannot be had", kernel.name))?;
        let steps = plan.steps(kernel.name);
        let image = image::build(workspace, &kernel, &files, &rooms, &steps)?;
        guests.push((kernel, files, image));
    }
    // Side by side: an emulated machine keeps one core of this one busy.
    let parts: Vec<Matrix> = thread::scope(|scope| {
        let running: Vec<_> = guests
            .iter()
            .map(|(kernel, files, image)| scope.spawn(|| guest::run(workspace, kernel, files, image)))
            .collect();
        let done = running.into_iter().map(|guest| {
            guest
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        done.collect::<Result<_>>()
    })?;
    let matrix = Matrix::of(parts);
    matrix.print();
    matrix.judge(selection.filter)
}

pub(crate) use self::plan::Extent as TestExtent;
