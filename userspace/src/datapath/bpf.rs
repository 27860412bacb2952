//! The calls of bpf(2) that aya 0.14 does not offer: hash maps in batches ([`batch`]); iterators over a map
//! ([`iterate`]); a program run on a frame ([`run`]); tcx and XDP links by interface index
//! (aya takes a name, and probes the kernel's features first, which costs milliseconds), and where a link is attached.
//!
//! Commands and structures follow `include/uapi/linux/bpf.h` of Linux 6.18. All of the datapath's `unsafe` is here and
//! in its submodules.

pub(crate) mod batch;
pub(crate) mod iterate;
#[cfg(feature = "cli")]
pub(crate) mod run;

use std::{
    ffi::CString,
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::attach::Direction;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// `XDP_FLAGS_DRV_MODE` of `linux/if_link.h`: in the driver, or not at all.
const XDP_FLAGS_DRV_MODE: u32 = 4;

/// A link to a hook of an interface. It lives as long as a descriptor or a pin holds it.
#[derive(Debug)]
pub(crate) struct AttachLink(OwnedFd);

impl AttachLink {
    /// Attaches the program pinned at `program` to an interface, after the programs that are there already.
    ///
    /// # Errors
    ///
    /// `InvalidInput` where the kernel has no tcx (before 6.6, or built without).
    pub(crate) fn tcx(program: &Path, ifindex: u32, direction: Direction) -> io::Result<Self> {
        let attach_type = match direction {
            Direction::Ingress => BPF_TCX_INGRESS,
            Direction::Egress => BPF_TCX_EGRESS,
        };
        Self::create(program, ifindex, attach_type, 0)
    }

    /// Attaches the XDP program pinned at `program` to the driver of an interface (Linux 5.9).
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` where the driver runs no XDP, `EBUSY` where another program is attached, others by the driver: an MTU too
    /// large, receive offloads that exclude it.
    pub(crate) fn xdp(program: &Path, ifindex: u32) -> io::Result<Self> {
        Self::create(program, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE)
    }

    fn create(program: &Path, ifindex: u32, attach_type: u32, flags: u32) -> io::Result<Self> {
        let program = open_pin(program)?;
        let mut attributes = LinkAttributes {
            program_fd: program.as_raw_fd().cast_unsigned(),
            ifindex,
            attach_type,
            flags,
            relative_fd: 0,
            _hole: 0,
            expected_revision: 0,
        };
        // SAFETY: the structure holds no pointer.
        let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }?;
        // SAFETY: the kernel has just made this descriptor for us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Pins the link at `path`.
    pub(crate) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(&self.0, path)
    }

    /// Puts the program pinned at `program` in the place of the link's, without a packet that meets neither.
    pub(crate) fn update(&self, program: &Path) -> io::Result<()> {
        let program = open_pin(program)?;
        let mut attributes = UpdateAttributes {
            link_fd: self.0.as_raw_fd().cast_unsigned(),
            program_fd: program.as_raw_fd().cast_unsigned(),
            flags: 0,
            old_program_fd: 0,
        };
        // SAFETY: the structure holds no pointer.
        unsafe { bpf(BPF_LINK_UPDATE, &mut attributes) }?;
        Ok(())
    }

    /// Opens the link pinned at `path`. `None` when there is no such file.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        match open_pin(path) {
            Ok(fd) => Ok(Some(Self(fd))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Index of the interface; 0 when the link is defunct: its interface is gone, or it was detached.
    ///
    /// # Errors
    ///
    /// `InvalidData` when the object is something else than a tcx or an XDP link.
    pub(crate) fn ifindex(&self) -> io::Result<u32> {
        link_ifindex(&self.0)
    }

    /// Detaches the program at once. Removing the pin alone does so only after an RCU grace period.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let mut attributes = DetachAttributes {
            fd: self.0.as_raw_fd().cast_unsigned(),
        };
        // SAFETY: the structure holds no pointer.
        unsafe { bpf(BPF_LINK_DETACH, &mut attributes) }?;
        Ok(())
    }
}

/// As [`AttachLink::ifindex`], of a descriptor.
pub(crate) fn link_ifindex(link: &OwnedFd) -> io::Result<u32> {
    let mut info = LinkInfo::default();
    // SAFETY: any bytes are a value of `LinkInfo`, the head of what the kernel writes for a link.
    unsafe { read_info(link, &mut info) }?;
    if !matches!(info.link_type, BPF_LINK_TYPE_TCX | BPF_LINK_TYPE_XDP) {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            "the pinned object is neither a tcx nor an XDP link",
        ));
    }
    Ok(info.ifindex)
}

/// Whether the kernel has tcx: asks for the programs on a hook of the loopback interface, which changes nothing.
///
/// # Errors
///
/// `PermissionDenied` without CAP_NET_ADMIN: the kernel does not say.
pub(crate) fn has_tcx() -> io::Result<bool> {
    const LOOPBACK: u32 = 1;
    let mut attributes = QueryAttributes {
        ifindex: LOOPBACK,
        attach_type: BPF_TCX_INGRESS,
        ..Default::default()
    };
    // SAFETY: the structure asks for no program ids, so the kernel writes to none of its pointers.
    match unsafe { bpf(BPF_PROG_QUERY, &mut attributes) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The kernel's number of the program pinned at `path`.
pub(crate) fn program_id(path: &Path) -> io::Result<u32> {
    let mut info = ProgramInfo::default();
    // SAFETY: any bytes are a value of `ProgramInfo`, the head of what the kernel writes for a program.
    unsafe { read_info(&open_pin(path)?, &mut info) }?;
    Ok(info.id)
}

/// The kernel's number of the program in a place of a program array; `None` if there is none.
pub(crate) fn program_at(map: BorrowedFd<'_>, index: u32) -> io::Result<Option<u32>> {
    let mut id = 0u32;
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd().cast_unsigned(),
        _hole: 0,
        key: (&raw const index) as u64,
        value: (&raw mut id) as u64,
        flags: 0,
    };
    // SAFETY: key and value of a program array have four bytes, as these integers, which outlive the call.
    match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) } {
        Ok(_) => Ok(Some(id)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// # Safety
///
/// Any bytes must be a value of `I`.
unsafe fn read_info<I>(object: &OwnedFd, info: &mut I) -> io::Result<()> {
    let mut attributes = InfoAttributes {
        fd: object.as_raw_fd().cast_unsigned(),
        length: size_of::<I>() as u32,
        info: (&raw mut *info) as u64,
    };
    // SAFETY: `info` is writable for the length given and outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(())
}

/// Pins an object at `path`.
pub(crate) fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PathAttributes {
        path: path.as_ptr() as u64,
        fd: object.as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    // SAFETY: `path` is a terminated string that outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes) }?;
    Ok(())
}

/// Opens what is pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PathAttributes {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: `path` is a terminated string that outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
///
/// `attributes` must be the structure of `command`, and its pointers valid as the command demands.
unsafe fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<i32> {
    // SAFETY: the pointer and the length describe `attributes`; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

/// `BPF_OBJ_*` of `union bpf_attr`.
#[repr(C)]
struct PathAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `BPF_MAP_*_ELEM` of `union bpf_attr`.
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    _hole: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `info` of `union bpf_attr`.
#[repr(C)]
struct InfoAttributes {
    fd: u32,
    length: u32,
    info: u64,
}

/// `link_create` of `union bpf_attr`, with its `tcx` member, which is all zeros for XDP.
#[repr(C)]
struct LinkAttributes {
    program_fd: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    _hole: u32,
    expected_revision: u64,
}

/// `query` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct QueryAttributes {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    _hole: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// `link_update` of `union bpf_attr`.
#[repr(C)]
struct UpdateAttributes {
    link_fd: u32,
    program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

/// `link_detach` of `union bpf_attr`.
#[repr(C)]
struct DetachAttributes {
    fd: u32,
}

/// The head of `struct bpf_prog_info`.
#[repr(C, align(8))]
#[derive(Default)]
struct ProgramInfo {
    program_type: u32,
    id: u32,
}

/// The head of `struct bpf_link_info` and the `tcx` member of its union; of `xdp` the index is in the same place.
#[repr(C, align(8))]
#[derive(Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    program_id: u32,
    _hole: u32,
    ifindex: u32,
    attach_type: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_a_pin_has_no_link() {
        assert!(
            AttachLink::open(Path::new("/nonexistent/link"))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<PathAttributes>(), 16);
        assert_eq!(std::mem::offset_of!(LinkInfo, ifindex), 16);
    }
}
