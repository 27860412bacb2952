//! A configuration list, run as libcni runs it: in order, each with the result before it, back in reverse order.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use causeway_tests::netns::Netns;
use serde_json::{Value, json};

use crate::call::{Call, World};

/// Where Debian has the reference plug-ins.
pub(crate) const REFERENCE: &str = "/usr/lib/cni";

/// A network with its plug-ins.
pub(crate) struct Chain<'a> {
    world: &'a World,
    version: &'static str,
    plugins: Vec<Value>,
    /// What the runtime has for each capability.
    pub(crate) runtime: BTreeMap<&'static str, Value>,
}

impl<'a> Chain<'a> {
    /// `azure-vnet` as it is installed, with the plug-ins `others` after it.
    pub(crate) fn after_ours(
        world: &'a World,
        version: &'static str,
        others: impl IntoIterator<Item = Value>,
    ) -> Result<Self> {
        let mut plugins = vec![world.stock_config()?];
        plugins.extend(others);
        Ok(Self {
            world,
            version,
            plugins,
            runtime: BTreeMap::new(),
        })
    }

    /// Changes the configuration of `azure-vnet`.
    pub(crate) fn ours(&mut self, key: &str, value: Value) {
        let ours = self
            .plugins
            .iter_mut()
            .find(|plugin| plugin["type"] == "azure-vnet");
        ours.expect("the chain has azure-vnet")[key] = value;
    }

    /// ADD of every plug-in. Returns the last result.
    pub(crate) fn add(&self, container: &str, ns: &Netns) -> Result<Value> {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            result = self.call("ADD", container, plugin, &result)?.netns(ns).ok()?;
        }
        Ok(result)
    }

    /// CHECK of `azure-vnet` with the last result. (Debian's portmap 1.1 fails its own where the pod has no IPv6.)
    pub(crate) fn check(&self, container: &str, ns: &Netns, result: &Value) -> Result<()> {
        for plugin in self
            .plugins
            .iter()
            .filter(|plugin| plugin["type"] == "azure-vnet")
        {
            self.call("CHECK", container, plugin, result)?.netns(ns).ok()?;
        }
        Ok(())
    }

    /// DEL of every plug-in, the last one first.
    pub(crate) fn del(&self, container: &str, ns: &Netns, result: &Value) -> Result<()> {
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", container, plugin, result)?.netns(ns).ok()?;
        }
        Ok(())
    }

    fn call(&self, verb: &str, container: &str, plugin: &Value, previous: &Value) -> Result<Call<'a>> {
        let mut config = plugin.clone();
        config["name"] = "azure".into();
        config["cniVersion"] = self.version.into();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let declared = |name: &str| plugin["capabilities"][name] == true;
        let runtime: BTreeMap<_, _> = self.runtime.iter().filter(|(name, _)| declared(name)).collect();
        if !runtime.is_empty() {
            config["runtimeConfig"] = json!(runtime);
        }
        let program = self.world.program(plugin["type"].as_str().unwrap_or_default())?;
        Ok(self.world.call_program(program, verb, container, &config))
    }
}

/// A plug-in of the distribution.
pub(crate) fn reference(name: &str) -> Result<PathBuf> {
    let program = Path::new(REFERENCE).join(name);
    ensure!(
        program.is_file(),
        "{} is missing: `cargo xtask setup` installs it (Debian's containernetworking-plugins)",
        program.display()
    );
    Ok(program)
}
