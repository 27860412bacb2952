//! Compiles the bench's kernel programs to `$OUT_DIR/bench.bpf.o` and the floor under the CNI plug-ins to `$OUT_DIR/floor`. The
//! bench embeds both.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use xtask::ebpf_object::{BENCH, build_from_script};

fn main() {
    // As in userspace/build.rs.
    let path = |name| env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let root = path("CARGO_MANIFEST_DIR").join("..");
    build_from_script(&BENCH, &root, &path("OUT_DIR").join("bench.bpf.o"));
    compile_floor(&path("OUT_DIR"));
}

/// By itself: it is static, unlike everything that cargo links.
fn compile_floor(out: &Path) {
    println!("cargo::rerun-if-changed=floor");
    let compiled = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition=2024", "-O", "-Cpanic=abort", "-Cstrip=symbols"])
        .args(["-Ctarget-feature=+crt-static", "floor/floor.rs", "-o"])
        .arg(out.join("floor"))
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        println!("cargo::error=floor/floor.rs does not compile");
    }
}
