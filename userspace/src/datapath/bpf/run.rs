//! A program run on a frame of ours (`BPF_PROG_TEST_RUN`, Linux 4.12; with a context, Linux 5.3).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::bpf;

const BPF_PROG_TEST_RUN: libc::c_long = 10;
/// `offsetof(struct __sk_buff, cb)` of `linux/bpf.h` in words, and the words up to the end of `cb`.
const CB: usize = 12;
const WORDS: usize = CB + 5;

/// Runs a tc program on a frame, with `word` in `cb[0]`. Returns what it returns.
pub(crate) fn on_frame(program: BorrowedFd<'_>, frame: &[u8], word: u32) -> io::Result<u32> {
    let mut context = [0u32; WORDS];
    context[CB] = word;
    let mut attributes = RunAttributes {
        program_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        context_size_in: size_of_val(&context) as u32,
        context_in: context.as_ptr() as u64,
        repeat: 1,
        ..RunAttributes::default()
    };
    // SAFETY: `frame` and `context` are readable for the lengths given and outlive the call; nothing is to be written.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes) }?;
    Ok(attributes.result)
}

/// `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct RunAttributes {
    program_fd: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _hole: u32,
}
