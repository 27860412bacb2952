//! Compiles the kernel programs to `$OUT_DIR/causeway.bpf.o` and, for IPv6, `$OUT_DIR/causeway6.bpf.o`. The library embeds both.

use std::{env, path::PathBuf};

use xtask::ebpf_object::{CAUSEWAY, CAUSEWAY_IPV6, build_from_script};

fn main() {
    // Both are set by cargo for every build script; as they are at run time, since a workspace can be moved with its
    // target directory. Without them the build fails and names the path it lacks.
    let path = |name| env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let root = path("CARGO_MANIFEST_DIR").join("..");
    build_from_script(&CAUSEWAY, &root, &path("OUT_DIR").join("causeway.bpf.o"));
    build_from_script(&CAUSEWAY_IPV6, &root, &path("OUT_DIR").join("causeway6.bpf.o"));
}
