//! The part of xtask that userspace/build.rs uses: it compiles the kernel programs. The command itself is `main.rs`.
//!
//! No dependency may enter here: whatever does is compiled before everything else.

pub mod ebpf_object;
