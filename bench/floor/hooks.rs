//! Programs on both hooks of an interface: what the kernel takes for it. Numbers are those of `linux/bpf.h` (Linux 6.6).

use std::{
    ffi::{CString, c_long},
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

#[cfg(target_arch = "x86_64")]
const SYS_BPF: c_long = 321;
#[cfg(target_arch = "aarch64")]
const SYS_BPF: c_long = 280;

const OBJ_PIN: c_long = 6;
const OBJ_GET: c_long = 7;
const LINK_CREATE: c_long = 28;
const LINK_DETACH: c_long = 34;

/// The program of each hook, and the kernel's number of the hook.
const HOOKS: [(&str, u32); 2] = [("cwy_from_pod", 46), ("cwy_to_pod", 47)];

/// Attaches the programs pinned in `programs`, and pins the links in `links`.
pub fn attach(index: u32, programs: &Path, links: &Path) -> io::Result<()> {
    for (name, hook) in HOOKS {
        let program = open(&programs.join(name))?;
        let words = [program.as_raw_fd().cast_unsigned(), index, hook, 0, 0, 0, 0, 0];
        let link = bpf(LINK_CREATE, &words.map(u32::to_ne_bytes).concat())?;
        // SAFETY: the kernel has just made this descriptor for us alone.
        let link = unsafe { OwnedFd::from_raw_fd(link) };
        with_path(OBJ_PIN, &links.join(name), link.as_raw_fd())?;
    }
    Ok(())
}

/// Detaches them.
pub fn detach(links: &Path) -> io::Result<()> {
    for (name, _) in HOOKS {
        let path: PathBuf = links.join(name);
        bpf(LINK_DETACH, &open(&path)?.as_raw_fd().to_ne_bytes())?;
        fs::remove_file(&path)?;
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let object = with_path(OBJ_GET, path, 0)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

fn with_path(command: c_long, path: &Path, object: i32) -> io::Result<i32> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let pointer = (text.as_ptr() as u64).to_ne_bytes();
    let done = bpf(command, &[&pointer[..], &object.to_ne_bytes(), &[0; 4]].concat());
    done.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn bpf(command: c_long, attributes: &[u8]) -> io::Result<i32> {
    // SAFETY: the kernel reads that many bytes; a path that they point to outlives the call.
    match unsafe { syscall(SYS_BPF, command, attributes.as_ptr(), attributes.len()) } {
        result if result < 0 => Err(io::Error::last_os_error()),
        result => Ok(result as i32),
    }
}
