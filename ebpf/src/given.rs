//! References, as the programs get them: from a map, or across the border of a function that is verified by itself, where
//! they are pointers that may be null. The compiler is told how they are aligned, or it would compare and copy addresses in
//! them byte by byte.

use core::{ffi::c_void, hint::assert_unchecked};

/// What a pointer leads to, `None` if it is null.
///
/// # Safety
///
/// `pointer` is null, or points to a `T` that nobody writes but as plain integers, where a `T` may lie.
#[inline(always)]
pub unsafe fn given<'a, T>(pointer: *const T) -> Option<&'a T> {
    // SAFETY: the caller's.
    unsafe {
        assert_unchecked(pointer.is_aligned());
        pointer.as_ref()
    }
}

/// The same, to be written.
///
/// # Safety
///
/// As [`given`]'s; and nobody else holds a reference to it.
#[inline(always)]
pub unsafe fn given_mut<'a, T>(pointer: *mut T) -> Option<&'a mut T> {
    // SAFETY: the caller's.
    unsafe {
        assert_unchecked(pointer.is_aligned());
        pointer.as_mut()
    }
}

/// What a callback of `bpf_loop` and the like has been given as its context.
///
/// # Safety
///
/// `context` points to a `T` that nobody else holds a reference to.
#[inline(always)]
pub unsafe fn context<'a, T>(context: *mut c_void) -> &'a mut T {
    let context = context.cast::<T>();
    // SAFETY: the caller's.
    unsafe {
        assert_unchecked(context.is_aligned());
        &mut *context
    }
}
