//! What is installed: the network configuration that the runtime reads, and the plug-ins.

use std::{
    fs,
    path::{Path, PathBuf},
};

use causeway::{
    program::{self, ProgramError},
    root::Root,
};
use serde_json::Value;

use super::{Code, Finding, Snapshot};

/// Where runtimes look for network configurations.
const CONFIGURATIONS: &str = "/etc/cni/net.d";
/// Where they look for plug-ins.
const PLUGINS: &str = "/opt/cni/bin";
/// Ours.
const NETWORK: &str = "azure-vnet";
const IPAM: &str = "azure-vnet-ipam";

/// What was found on disk.
#[derive(Debug)]
pub(super) struct Installed {
    directory: PathBuf,
    /// In the order in which the runtime takes them: the types of each file's plug-ins, or why it cannot be read.
    configurations: Vec<(PathBuf, Result<Vec<String>, String>)>,
    /// What each plug-in says of itself, or why it cannot be asked.
    plugins: Vec<(PathBuf, Result<String, ProgramError>)>,
}

impl Installed {
    pub(super) fn read(root: &Root) -> Self {
        let directory = root.path(CONFIGURATIONS);
        let plugins = [NETWORK, IPAM].map(|name| {
            let path = root.path(PLUGINS).join(name);
            let told = program::ask(&path, &[]).map(|told| told.errors);
            (path, told)
        });
        Self {
            configurations: configurations(&directory),
            directory,
            plugins: plugins.into(),
        }
    }
}

fn configurations(directory: &Path) -> Vec<(PathBuf, Result<Vec<String>, String>)> {
    let is_configuration = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conf" | "conflist" | "json"))
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(is_configuration)
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let read = plugin_types(&path);
            (path, read)
        })
        .collect()
}

/// The types of the plug-ins, in their order. A file may be a list or one plug-in.
fn plugin_types(path: &Path) -> Result<Vec<String>, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let document: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let plugins = match document.get("plugins") {
        Some(Value::Array(plugins)) => plugins.iter().collect(),
        Some(_) => return Err("\"plugins\" is no list".to_owned()),
        None => vec![&document],
    };
    let name = |plugin: &&Value| plugin.get("type")?.as_str().map(ToOwned::to_owned);
    let types: Vec<String> = plugins.iter().filter_map(name).collect();
    if types.is_empty() {
        return Err("it names no plug-in".to_owned());
    }
    Ok(types)
}

pub(super) fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let Some(installed) = &snapshot.installed else {
        return Vec::new();
    };
    let mut found = configuration(installed);
    for (path, told) in &installed.plugins {
        found.extend(plugin(path, told));
    }
    found
}

fn configuration(installed: &Installed) -> Vec<Finding> {
    let mut found = Vec::new();
    let at = |code, path: &Path, about: String| Finding::new(code, about).with("PATH", path.display());
    for (path, read) in &installed.configurations {
        if let Err(error) = read {
            let about = format!("{}: {error}", path.display());
            found.push(at(Code::ConfigurationDamaged, path, about));
        }
    }
    let mut readable = installed
        .configurations
        .iter()
        .filter_map(|(path, read)| Some((path, read.as_ref().ok()?)))
        .peekable();
    let first = readable.peek().copied();
    let is_ours = |types: &[String]| types.iter().any(|name| name == NETWORK);
    if !readable.any(|(_, types)| is_ours(types)) {
        // A damaged one may be ours.
        if found.is_empty() {
            let path = installed.directory.join("10-azure.conflist");
            let about = format!(
                "no file in {} has a plug-in {NETWORK}",
                installed.directory.display()
            );
            found.push(at(Code::NoConfiguration, &path, about));
        }
        return found;
    }
    if let Some((path, types)) = first
        && types.first().is_none_or(|name| name != NETWORK)
    {
        let about = format!("the first plug-in of {} is {}", path.display(), types[0]);
        found.push(at(Code::OtherPluginFirst, path, about));
    }
    found
}

fn plugin(path: &Path, told: &Result<String, ProgramError>) -> Option<Finding> {
    let expected = concat!("Causeway ", env!("CARGO_PKG_VERSION"));
    let at = |code, about: String| Some(Finding::new(code, about).with("PATH", path.display()));
    match told {
        Ok(text) if text.lines().any(|line| line.ends_with(expected)) => None,
        Ok(text) => {
            let line = text.lines().next().unwrap_or("nothing");
            at(
                Code::PluginVersion,
                format!("{} says {line:?}, this is {expected}", path.display()),
            )
        }
        Err(error) if error.is_missing() => at(Code::PluginMissing, format!("{} is missing", path.display())),
        Err(error) => at(Code::PluginVersion, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(files: &[(&str, &str)]) -> Vec<&'static str> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let installed = Installed {
            directory: directory.path().to_owned(),
            configurations: configurations(directory.path()),
            plugins: Vec::new(),
        };
        configuration(&installed)
            .iter()
            .map(|finding| finding.code.name())
            .collect()
    }

    #[test]
    fn the_first_plugin_of_the_first_file_counts() {
        let ours = r#"{"plugins": [{"type": "azure-vnet"}, {"type": "portmap"}]}"#;
        let other = r#"{"type": "bridge"}"#;
        assert_eq!(installed(&[("10-azure.conflist", ours)]), [""; 0]);
        assert_eq!(
            installed(&[("10-azure.conflist", ours), ("99-lo.conf", other)]),
            [""; 0]
        );
        assert_eq!(
            installed(&[("10-azure.conflist", ours), ("05-cilium.conf", other)]),
            ["CWY062"]
        );
        assert_eq!(
            installed(&[("10-azure.conflist", ours), ("05.bak", other)]),
            [""; 0]
        );
        let behind = r#"{"plugins": [{"type": "bridge"}, {"type": "azure-vnet"}]}"#;
        assert_eq!(installed(&[("10-azure.conflist", behind)]), ["CWY062"]);
        assert_eq!(installed(&[("99-lo.conf", other)]), ["CWY060"]);
        assert_eq!(installed(&[]), ["CWY060"]);
        assert_eq!(installed(&[("10-azure.conflist", "{")]), ["CWY061"]);
        assert_eq!(
            installed(&[("10-azure.conflist", ours), ("20.conf", "{}")]),
            ["CWY061"]
        );
    }
}
