//! The system call `bpf(2)`, for what aya has no words for.

use std::io;

/// # Safety
///
/// `attributes` must be the structure of `command` in `union bpf_attr` (linux/bpf.h), or longer, and its pointers valid as the
/// command demands.
pub unsafe fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<i32> {
    let length = size_of_val(attributes);
    // SAFETY: the pointer and the length describe `attributes`; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), length) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}
