//! The programs under test: the installable tree that `cargo xtask dist` makes.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The tree, by its directory.
#[derive(Clone, Debug)]
pub struct Dist(PathBuf);

impl Dist {
    /// The tree that `CAUSEWAY_DIST` names.
    pub fn from_env() -> Result<Self> {
        let path = env::var_os("CAUSEWAY_DIST").context(
            "CAUSEWAY_DIST is not set: run `cargo xtask test` or `cargo xtask demo`, or after `cargo xtask dist` \
             set it to target/dist",
        )?;
        Self::at(Path::new(&path)).with_context(|| format!("CAUSEWAY_DIST={}", path.display()))
    }

    /// The tree at `path`.
    pub fn at(path: &Path) -> Result<Self> {
        let dist = Self(fs::canonicalize(path).with_context(|| format!("no directory {}", path.display()))?);
        for program in [dist.plugin("azure-vnet"), dist.cli()] {
            ensure!(
                program.is_file(),
                "{} is missing: run `cargo xtask dist`",
                program.display()
            );
        }
        Ok(dist)
    }

    /// A CNI plug-in.
    pub fn plugin(&self, name: &str) -> PathBuf {
        self.plugins().join(name)
    }

    /// The directory of the plug-ins: `CNI_PATH`.
    pub fn plugins(&self) -> PathBuf {
        self.0.join("opt/cni/bin")
    }

    /// The command line.
    pub fn cli(&self) -> PathBuf {
        self.0.join("usr/bin/causeway")
    }

    /// The stock configuration list.
    pub fn conflist(&self) -> PathBuf {
        self.0.join("etc/cni/net.d/10-azure.conflist")
    }

    /// What a runtime hands to the first plug-in of the stock configuration list: the plug-in's own object with the list's name
    /// and version.
    pub fn plugin_config(&self) -> Result<Value> {
        let path = self.conflist();
        first_plugin(&path).with_context(|| format!("reading {}", path.display()))
    }
}

fn first_plugin(path: &Path) -> Result<Value> {
    let list: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let mut plugin = list["plugins"][0].clone();
    ensure!(plugin.is_object(), "no plug-ins");
    plugin["name"] = list["name"].clone();
    plugin["cniVersion"] = list["cniVersion"].clone();
    Ok(plugin)
}
