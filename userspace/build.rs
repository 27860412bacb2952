//! Compiles the kernel programs to `$OUT_DIR/causeway.bpf.o`, which the library embeds.

use std::{
    env,
    path::{Path, PathBuf},
};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // Cargo sets it for every build script; without it the copy fails and says where it was to go.
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    xtask::ebpf_object::build_from_script(&root, &out.join("causeway.bpf.o"));
}
