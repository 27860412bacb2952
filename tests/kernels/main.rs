//! What a node's kernel may have or lack, found out on kernels that differ: `cargo xtask test --kernels` runs this room on them.
//! It runs on any other kernel too, as far as that has the modules.

mod associations;
mod hooks;
mod weather;
