//! Runs an iterator program over a map. aya 0.14 loads such programs, but attaches them to no map.

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _},
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use super::{BPF_LINK_CREATE, bpf};

const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

/// Runs an iterator program once over every element of `map`, in the calling thread. What the
/// program writes is thrown away.
///
/// # Errors
///
/// `InvalidInput` when it is no iterator over maps (Linux 5.8), or the map's key
/// or value is smaller than what the program reads.
pub(crate) fn over_map(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    let target = MapTarget {
        map_fd: map.as_raw_fd().cast_unsigned(),
        _rest: [0; 3],
    };
    let mut attributes = IterLinkAttributes {
        program_fd: program.as_raw_fd().cast_unsigned(),
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        info: (&raw const target) as u64,
        info_length: size_of::<MapTarget>() as u32,
        _hole: 0,
    };
    // SAFETY: `info` is readable for the length given and outlives the call.
    let link = owned(unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }?);
    let mut attributes = IterAttributes {
        link_fd: link.as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    // SAFETY: the structure holds no pointer.
    let mut iteration = File::from(owned(unsafe { bpf(BPF_ITER_CREATE, &mut attributes) }?));
    let mut output = [0; 4096];
    loop {
        match iteration.read(&mut output) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // The kernel pauses after a million elements without output, and after a signal.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `union bpf_iter_link_info` with its `map` member.
#[repr(C)]
struct MapTarget {
    map_fd: u32,
    _rest: [u32; 3],
}

/// `link_create` of `union bpf_attr` for an iterator.
#[repr(C)]
struct IterLinkAttributes {
    program_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_length: u32,
    _hole: u32,
}

/// `iter_create` of `union bpf_attr`.
#[repr(C)]
struct IterAttributes {
    link_fd: u32,
    flags: u32,
}
