//! Compiles the bench's kernel programs to `$OUT_DIR/bench.bpf.o`, which the bench embeds.

use std::{env, path::PathBuf};

use xtask::ebpf_object::{BENCH, build_from_script};

fn main() {
    // As in userspace/build.rs.
    let path = |name| env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let root = path("CARGO_MANIFEST_DIR").join("..");
    build_from_script(&BENCH, &root, &path("OUT_DIR").join("bench.bpf.o"));
}
